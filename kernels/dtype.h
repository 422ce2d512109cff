/* dtype.h - element types of weights, one table row each: sizes, names, conversion from and to float.
 * Quantised types are those of GGUF (block formats of ggml, little endian), and NF4, which lives in memory only. */
#ifndef GR_DTYPE_H
#define GR_DTYPE_H

#include <stdint.h>

typedef enum gr_dtype {
    GR_DTYPE_F32 = 0,
    GR_DTYPE_F16,
    GR_DTYPE_BF16,
    GR_DTYPE_Q4_0,
    GR_DTYPE_Q4_1,
    GR_DTYPE_Q5_0,
    GR_DTYPE_Q5_1,
    GR_DTYPE_Q8_0,
    GR_DTYPE_Q4_K,
    GR_DTYPE_Q5_K,
    GR_DTYPE_Q6_K,
    GR_DTYPE_NF4,
    GR_DTYPE_COUNT
} gr_dtype;

typedef struct gr_dtype_info {
    const char *name;                                         /* "bf16", as recipes and messages write it */
    const char *safetensors_name;                             /* "BF16", NULL when the format has no such type */
    int gguf_type;                                            /* ggml_type number, -1 when GGUF has no such type */
    int64_t block, block_bytes;                               /* elements in a block; bytes of a block */
    void (*to_f32)(float *dst, const void *src, int64_t n);   /* n: multiple of block */
    void (*from_f32)(void *dst, const float *src, int64_t n); /* NULL: graft does not make this type. F16, BF16: to nearest even;
                                                                 quantised: quantize.h */
} gr_dtype_info;

const gr_dtype_info *gr_dtype_get(gr_dtype dtype);
/* -1 when there is none. */
int gr_dtype_from_name(const char *name);
int gr_dtype_from_gguf(int gguf_type);
int gr_dtype_from_safetensors(const char *name);

/* Bytes of n elements (n must be a multiple of the block), -1 on overflow or a partial block. */
int64_t gr_dtype_bytes(gr_dtype dtype, int64_t n);

float gr_bf16_to_f32(uint16_t h);
uint16_t gr_f32_to_bf16(float f); /* nearest even; NaN stays NaN */
float gr_f16_to_f32(uint16_t h);
uint16_t gr_f32_to_f16(float f);

#endif
