/* ops.h - what the files of test_ops share: calls of an operation on buffers whose surroundings are watched (ops_call.c), and each
 * file's cases. test_ops.c runs them; one that works on a few operations alone names them: GRAFT_OPS="rope,add". */
#ifndef GR_TEST_OPS_H
#define GR_TEST_OPS_H

#include "kernels/cpu/impl.h"
#include "mirror.h"

enum { GUARD = 16, OUTPUTS = 16, BUFFERS = 64 };

typedef struct output {
    gr_rows x;
    int64_t rows, cols;
    bool whole; /* no function of the batch's rows one by one */
} output;

typedef struct guarded {
    float *p;
    int64_t size, cols, ld; /* of the size, columns from cols to ld are guards too */
} guarded;

/* One call of an operation: rows row0..row0+n of a virtual batch, sizes of variant v. Owns its buffers. */
typedef struct call {
    gr_device *d;
    int64_t row0, n;
    int variant;
    int64_t columns; /* instead of the variant's; 0: those */
    guarded buffers[BUFFERS];
    int n_buffers, n_outputs;
    output outputs[OUTPUTS];
    double tolerance;
    int off; /* of buffers from 64-byte alignment: 1 */
} call;

typedef struct operation {
    const char *name;
    void (*run)(call *c);
} operation;

extern call *running;      /* the one whose operation is being called */
extern bool on_card;       /* the level under test is a card's: */
extern gr_dtype card_type; /* some rows are of this type there, */
extern bool few_digits;    /* and values have no more digits than bfloat16 */

/* ---- ops_call.c: buffers of a call. Guarded on both sides; a tag, a row and a column give a value in [-1,1). ---- */

float *buffer(call *c, int64_t n);                                                        /* [n], of guards */
gr_rows filled_rows(call *c, int tag, int64_t row0, int64_t n, int64_t cols, int64_t ld); /* rows row0.. of the tag's matrix */
float *fixed(call *c, int tag, int64_t n, int64_t cols);                                  /* its first n rows, close */
gr_rows rows(call *c, int tag, int64_t cols);                                             /* those of the call, in most variants */
int64_t apart(const call *c, int tag, int64_t cols);                                      /* ... as far apart as this */
float *numbers(call *c, int tag, int64_t each);                                           /* those of the call, close */
gr_rows closed(float *x, int64_t cols);                                                   /* rows that stand close */
int32_t *indices(call *c, int64_t below);                                                 /* [n] */
uint64_t *row_keys(call *c);                                                              /* [n] */
gr_weight weight(call *c, gr_dtype dtype, int tag, int64_t n_rows, int64_t n_cols);       /* columns fill whole blocks */
int64_t width(const call *c);                                                             /* by variant */
gr_dtype variant_dtype(const call *c);

/* What is compared. */
void out_rows(call *c, gr_rows x, int64_t cols);
void out_numbers(call *c, float *x, int64_t each);
void out_whole(call *c, gr_rows x, int64_t n, int64_t cols);
void out_sum(call *c, float *x, int64_t n);

/* Frees the buffers; fails where something was written beside them. */
void release(call *c);

/* ---- ops_call.c: devices and calls ---- */

enum { FEW_ROWS = 8 }; /* a card's way for so many rows is another one */

extern const char *const levels[]; /* a test's state is the number of one */
bool is_card(const char *level);
bool available(const char *level);
bool chosen(const operation *op); /* by GRAFT_OPS; int8 is not of cards */
gr_device *device(const char *level, int n_threads);
void close_device(gr_device *d);
mirror *mirrored(gr_device *d); /* the mirror of a card, or NULL */

void make_wide_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n, int64_t columns);
void make_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n);
void compare(const call *a, const call *b, const operation *op,
             const char *level); /* by a's tolerance; b may be of some of its rows */
void compare_bits(const call *a, const call *b, const operation *op, const char *what);

/* ---- the cases: ops_rows.c, ops_linear.c, ops_attention.c, ops_cache.c, ops_loss.c, ops_optimizer.c ---- */

#define GR_OP(name, params, args) void call_##name(call *c);
#include "kernels/ops.def"
#undef GR_OP
void call_int8(call *c);
void call_int8_error(call *c);

/* ops_linear.c, and ops_fp8.c that uses it */
enum { FEW_SIZES = 8, LINEAR_SIZES = FEW_SIZES - 1 }; /* the last one for few rows alone */
/* Two linears that share x: one plain with bias, one with two LoRAs. */
typedef struct linears {
    gr_linear l[2];
    gr_lora lora[2];
    gr_group group;
    gr_dropout dropout;
    int64_t K, N, rank;
} linears;
void make_linears(call *c, linears *g, bool trained);
gr_product product_of(call *c, const linears *g); /* half of the variants drop nothing */
gr_dtype few_type(int variant);
void test_many_rows(void **state);
void test_few_rows(void **state);
void test_long_contraction(void **state);
void test_fp8(void **state);

/* ops_attention.c */
enum { HEADS = 8, ATTENTIONS = 4 * 2 * HEADS }; /* variants of attention */
void test_long_attention(void **state);
void test_packed_attention(void **state);
void test_cached_attention(void **state);

/* ops_cache.c */
void test_card_cache(void **state);
void test_kept_panels(void **state);
void test_window(void **state);
void test_forgotten_panels(void **state);

#endif
