#define GR_AMX
#include "kernels/cpu/attention_tmpl.h"
