/* attention_backward.cu - which way its gradients go. */
#include "kernels/cuda/attention.cuh"

void gr_attention_backward_cuda(gr_device *d, const gr_attention *a) { gr_attention_backward_plain(d, a); }
