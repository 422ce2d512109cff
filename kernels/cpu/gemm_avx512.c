/* gemm_avx512.c - GEMM at this level. */
#include "kernels/cpu/gemm_tmpl.h"
