/* attention_avx2.c - attention at this level. */
#include "kernels/cpu/attention_tmpl.h"
