/* quantize.h - rows of floats to the quantised types: from_f32 of the table in dtype.c. n is a multiple of the type's block.
 * The types of GGUF give what ggml's reference quantisers (quantize_row_*_ref) give. A NaN becomes some code. */
#ifndef GR_QUANTIZE_H
#define GR_QUANTIZE_H

#include <stdint.h>

void gr_quantize_q4_0(void *dst, const float *src, int64_t n);
void gr_quantize_q5_0(void *dst, const float *src, int64_t n);
void gr_quantize_q5_1(void *dst, const float *src, int64_t n);
void gr_quantize_q8_0(void *dst, const float *src, int64_t n);
void gr_quantize_q4_k(void *dst, const float *src, int64_t n);
void gr_quantize_q5_k(void *dst, const float *src, int64_t n);
void gr_quantize_q6_k(void *dst, const float *src, int64_t n);
void gr_quantize_nf4(void *dst, const float *src, int64_t n);

#endif
