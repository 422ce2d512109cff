/* flat_generic.c - the element-wise operations without special instructions. */
#define LEVEL(name) name##_generic
#include "kernels/cpu/flat_tmpl.h"
