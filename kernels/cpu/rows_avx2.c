/* rows_avx2.c - norm, activation and loss at this level. */
#include "kernels/cpu/rows_tmpl.h"
