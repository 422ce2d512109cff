#define GR_PAIRS
#include "kernels/cpu/gemm_tmpl.h"
