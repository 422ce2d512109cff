/* gemm_avx2.c - GEMM at this level. */
#include "kernels/cpu/gemm_tmpl.h"
