/* missing.c - operations that are not written yet refuse by name. */
#include "kernels/cuda/cuda.h"

#define GR_OP(name, params, args)                                                                                                  \
    __attribute__((weak)) void gr_##name##_cuda params { gr_cuda_refuse(d, "%s is not written yet", #name); }
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "kernels/ops.def"
#undef GR_OP

#define WEAK __attribute__((weak))
WEAK int64_t gr_cuda_group_bytes(gr_device *d, const gr_group *g) { return 0; }
WEAK bool gr_cuda_place(gr_device *d, gr_group *g) { return true; }
WEAK void gr_cuda_renew(gr_device *d, gr_group *g) {}
WEAK void gr_cuda_release(gr_device *d, gr_group *g) {}
WEAK int64_t gr_cuda_row_stride(gr_device *d, int64_t width, gr_dtype type) { return width; }
WEAK bool gr_cuda_gemm_open(gr_device *d) { return true; }
WEAK void gr_cuda_gemm_close(gr_device *d) {}
WEAK void gr_cuda_multiply(gr_device *d, const gr_cuda_product *p) {}
WEAK void gr_cuda_expand(gr_device *d, void *to, int64_t ld, gr_dtype type, const gr_weight *w, int64_t fill_cols) {}
WEAK bool gr_cuda_few_rows(gr_device *d, const gr_product *p, int64_t n) { return false; }
WEAK void gr_cuda_linear_few(gr_device *d, const gr_product *p, int64_t n) {}
WEAK int64_t gr_cuda_kv_bytes(gr_device *d, const gr_kv_shape *shape) { return 0; }
WEAK bool gr_cuda_kv_open(gr_device *d, gr_kv *layers, const gr_kv_shape *shape) { return false; }
WEAK void gr_cuda_kv_close(gr_device *d, gr_kv *layers) {}
