/* Compiled with AVX512-VNNI, which the level does not promise: CPUs without it take the 256-bit form. */
#include "kernels/cpu/int8_tmpl.h"

void gr_int8_avx512(gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products, int n_products) {
    if (!__builtin_cpu_supports("avx512vnni")) gr_int8_avx2(d, a, lda, m, products, n_products);
    else gr_int8_by(&vector_level, d, a, lda, m, products, n_products);
}
