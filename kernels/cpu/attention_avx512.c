/* attention_avx512.c - attention at this level. */
#include "kernels/cpu/attention_tmpl.h"
