/* flat_avx2.c - the element-wise operations at this level. */
#include "kernels/cpu/vec.h"

#include "kernels/cpu/flat_tmpl.h"
