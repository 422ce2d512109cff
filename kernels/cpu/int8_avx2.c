#include "kernels/cpu/int8_tmpl.h"

void gr_int8_avx2(gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products, int n_products) {
    gr_int8_by(&vector_level, d, a, lda, m, products, n_products);
}
