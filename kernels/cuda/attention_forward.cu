/* attention_forward.cu - which way attention goes. */
#include "kernels/cuda/attention.cuh"

void gr_attention_forward_cuda(gr_device *d, const gr_attention *a) { gr_attention_forward_plain(d, a); }
