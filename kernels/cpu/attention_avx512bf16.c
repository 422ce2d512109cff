#define GR_PAIRS
#include "kernels/cpu/attention_tmpl.h"
