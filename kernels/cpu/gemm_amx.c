#define GR_AMX
#include "kernels/cpu/gemm_tmpl.h"
