#include "kernels/cpu/thin_tmpl.h"
