/* kernels.h - the leaf maths: a backend is one table of operations plus memory and queues. Pointers and dimensions in; no I/O, no
 * knowledge of models. The operations themselves are documented in ops.def.
 *
 * Pointers to a device's memory are opaque outside kernels/: host code moves bytes with upload and download, and never looks (on
 * the CPU they happen to be plain memory; GRAFT_DEVICE=far is a CPU on which they are not, for tests). Operations return nothing
 * and may still be under way when they return; those of a device run in the order in which they were called. */
#ifndef GR_KERNELS_H
#define GR_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/threads.h"

typedef struct gr_device gr_device;

/* Activations: element (r, c) lies at r * ld + c. Borrowed device memory of F32 or the type that gr_device.act_type says; data
 * NULL where an operation may go without. */
typedef struct gr_rows {
    void *data;
    int64_t ld;
    gr_dtype type;
} gr_rows;

/* The same rows from row and col on. */
static inline gr_rows gr_rows_at(gr_rows x, int64_t row, int64_t col) {
    x.data = (char *)x.data + (row * x.ld + col) * (x.type == GR_DTYPE_F32 ? 4 : 2);
    return x;
}

/* A matrix that knows its format: rows x cols, row-major; a row is a whole number of dtype blocks. Borrowed data. */
typedef struct gr_weight {
    gr_dtype dtype;
    int64_t rows, cols;
    const void *data;
} gr_weight;

/* One low-rank adapter of a linear. All pointers borrowed device memory; a NULL gradient means frozen. */
typedef struct gr_lora {
    int64_t rank;
    float scale;    /* alpha/rank, or alpha/sqrt(rank) for rsLoRA, times a user scale */
    const float *A; /* [R,K] */
    const float *B; /* [N,R] */
    float *dA, *dB; /* += or NULL */
} gr_lora;

/* A linear is its slots: y = x W^T + bias + LoRAs. */
typedef struct gr_linear {
    gr_weight w;       /* [N,K] */
    const float *bias; /* [N] or NULL */
    gr_lora *lora;     /* [n_lora] */
    int n_lora;
    float *dw;    /* [N,K] += or NULL: frozen */
    float *dbias; /* [N] += or NULL */
    bool exact;   /* w is of an adapter: its products are never of int8 */
} gr_linear;

/* How the products of frozen weights are made. */
typedef enum gr_base_products {
    GR_BASE_EXACT,
    GR_BASE_INT8_QUANTISED, /* of int8 where the weight is quantised */
    GR_BASE_INT8,           /* of int8: the other factor is rounded to blocks of 32 along the contraction, each with a scale; sums
                               over blocks are float32 */
    GR_BASE_FP8             /* dx alone, of e4m3 (arXiv 2209.05433): a scale for each row of dy and each column of W */
} gr_base_products;

/* Linears that share an input: one product. Made once; what a backend makes of its members (packed, quantised, fused) is its
 * own. */
enum { GR_GROUP_MAX = 3 };
typedef struct gr_group {
    gr_linear *member[GR_GROUP_MAX]; /* borrowed */
    int n;
    gr_dtype compute; /* GR_DTYPE_F32: exact; BF16, F16: both inputs of W's products are rounded to it, sums stay float32. LoRA
                         products are always float32 */
    gr_base_products base;
    bool backward; /* dx will be asked for */
    bool expand;   /* quantised members stay as they are; a device that multiplies other types expands them before each product */
    bool joined;   /* all members are trained, of the type of products, and lie one behind the other: together a matrix */
    void *form;    /* the backend's; NULL: none. Set by place, cleared by release */
} gr_group;

static inline int64_t gr_group_inputs(const gr_group *g) { return g->member[0]->w.cols; }
static inline int64_t gr_group_outputs(const gr_group *g) {
    int64_t n = 0;
    for (int i = 0; i < g->n; i++) n += g->member[i]->w.rows;
    return n;
}
/* Sum of the ranks of all LoRAs. */
static inline int64_t gr_group_rank(const gr_group *g) {
    int64_t rank = 0;
    for (int i = 0; i < g->n; i++)
        for (int j = 0; j < g->member[i]->n_lora; j++) rank += g->member[i]->lora[j].rank;
    return rank;
}

/* A mask that is a function of (seed, row_key[r], site, column): Philox counter hi = row_key[r], lo = site << 32 | column / 4, word
 * column % 4; kept, and divided by 1-p, when word >= p * 2^32. */
typedef struct gr_dropout {
    float p;
    uint64_t seed;
    const uint64_t *row_key; /* [n] device memory */
    uint32_t site;
} gr_dropout;

/* One use of a group: its buffers forward, and those that backward reads and needs. */
typedef struct gr_product {
    const gr_group *group;
    gr_rows x;                 /* [n,K] the input */
    gr_rows y;                 /* [n,N_0 | N_1 | ...] the outputs side by side; for backward their gradients */
    float *h;                  /* [n,rank] products of x (after dropout) with the As of all LoRAs in order; NULL without LoRA */
    const gr_dropout *dropout; /* of the LoRAs' input; NULL: none */
    gr_rows xd, dxd;           /* [n,K] scratch, with dropout alone; dxd for backward */
    float *dh;                 /* [n,rank] scratch for backward */
} gr_product;

/* RMSNorm (arXiv 1910.07467) of every part of a row by itself: the row is one, or its heads are. */
typedef struct gr_norm {
    const float *w; /* [width] */
    float *dw;      /* [width] += or NULL: frozen */
    float eps;
    int64_t parts, width; /* of a row */
} gr_norm;

typedef struct gr_seq { /* one sequence of a flat batch, see gr_attention */
    int64_t q_start, q_len, kv_start, kv_len;
} gr_seq;

/* Keys and values of one layer's KV cache. */
typedef struct gr_kv {
    gr_rows rows; /* [slots * max_len, K*D keys | K*D values], close: ld is 2KD */
    void *form;   /* the backend's: what else it keeps of them */
} gr_kv;

typedef struct gr_kv_shape {
    int64_t n_layers, n_slots, max_len, K, D;
    gr_dtype compute; /* of the model: what act_type makes the rows' type of */
} gr_kv_shape;

/* Causal attention, block-diagonal over sequences (FlashAttention's recurrence, arXiv 2205.14135; no score matrix kept).
 * Sequence s: queries are rows q_start..+q_len of q, out, lse; keys and values are rows kv_start..+kv_len of k and v (a training
 * buffer or a KV cache); query j stands at position kv_len - q_len + j and sees keys 0..that position, the last `window` of them.
 * Head h of q at column h*D; its key/value head is h / (H/K). lse[row,H] (may be NULL) = log-sum-exp of the scaled scores. */
typedef struct gr_attention {
    gr_rows q, k, v, out; /* k and v with the same ld */
    float *lse;
    gr_rows dq, dk, dv, dout; /* backward: the first three are "=", with the row strides of q, k, v; dout that of out */
    float *delta;             /* [rows,H] scratch for backward */
    const int32_t *pos;       /* [rows] and rope's table, by which q and k were turned: backward turns dq and dk back; */
    const float *turns;       /* NULL: they were not */
    const gr_seq *seqs;       /* [n_seqs] device memory */
    int64_t n_seqs;
    bool single; /* each sequence has one query: a backend may rely on it */
    int64_t H, K, D;
    float scale;
    int64_t window;   /* keys that a query sees at most, its own the last: those at positions > its own - window; 0: all */
    float softcap;    /* scaled scores become softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118), 0: not */
    gr_dtype compute; /* BF16: factors of products may be rounded to it, where that is faster; scores and sums are float32 */
    const gr_kv *kv;  /* k and v are its rows; NULL: they are not of a cache */
} gr_attention;

/* What one step adds up on the device, from which AdamW takes what it needs; the host reads it later. */
enum { GR_LOSS_SCALE_FIRST = 1 << 16, GR_LOSS_SCALE_MOST = 1 << 24, GR_LOSS_SCALE_STEPS = 2000 }; /* as torch's GradScaler */
typedef struct gr_step_stats {
    double nll;             /* sum over targets of weight * nll */
    double squares;         /* of all gradients; from step_prepare on without the loss scale */
    int64_t bad_row;        /* the first row whose nll is not finite, -1: none */
    int64_t optimizer_step; /* updates made, this one included: AdamW's bias correction */
    float clip;             /* what gradients are multiplied with */
    float loss_scale;   /* what they were made larger by, so that half floats hold them (arXiv 1710.03740); 0: nothing, always */
    int32_t good_steps; /* in a row at this loss_scale */
    int32_t nonfinite;  /* nll or gradients are: nothing is updated */
    int32_t halt;       /* nothing is updated any more */
} gr_step_stats;

/* The largest of a row's finite logits, from the largest down; of equals (0 and -0 are) the smaller column first. listed and rest
 * may be off by what sums in double are; of rest by GR_LISTING_ERROR of it and GR_LISTING_LEAST besides. */
enum { GR_LISTED = 1024 };
#define GR_LISTING_ERROR 2e-5
#define GR_LISTING_LEAST 1e-18
typedef struct gr_listed {
    float value;
    int32_t column;
} gr_listed;
typedef struct gr_listing {
    gr_listed entry[GR_LISTED];
    int32_t n;      /* entries; the others are not written */
    int32_t finite; /* logits that are; all are listed where these are n */
    double listed;  /* the sum of exp((logit - largest) / temperature) of the entries */
    double rest;    /* and of the other finite ones */
} gr_listing;

/* Of a gated unit (arXiv 2002.05202). GELU_TANH: x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, torch's approximate="tanh". */
typedef enum gr_activation { GR_ACTIVATION_SILU, GR_ACTIVATION_GELU_TANH } gr_activation;

/* What the loss of a row of logits is made of beside its cross entropy. */
typedef struct gr_loss_terms {
    float softcap;      /* logits become softcap * tanh(logit / softcap) first (Gemma 2), 0: not */
    float z_loss;       /* the loss of a row has + z_loss * logsumexp^2 (PaLM, arXiv 2204.02311), 0: not */
    const float *scale; /* device memory: what gradients are multiplied with (gr_step_stats.loss_scale); NULL: 1 */
} gr_loss_terms;

typedef struct gr_adamw {
    float lr, beta1, beta2, epsilon, weight_decay;
} gr_adamw;

/* Values that an optimizer updates: float32, or bfloat16 with or without what float32 has more. With it, bf16 is the nearest to the
 * float32 (halves away from zero): that has the bits (bf16 - (low >> 15)) << 16 | low. Without it a new value is rounded up or down
 * at random, so that its mean is right: by Philox (seed, GR_PURPOSE_ROUND), counter hi = optimizer_step, lo = e / 8 of element
 * e = first + i, of whose words it takes half e % 8. */
typedef struct gr_trained {
    float *f32;     /* [n], or NULL: */
    uint16_t *bf16; /* [n] */
    uint16_t *low;  /* [n], or NULL */
    uint64_t seed, first;
} gr_trained;

/* Both moments of AdamW in 8 bits (arXiv 2110.02861): value i is map[code[i]] * scale[i / 256], the scale the largest magnitude of
 * its block. map is bitsandbytes' dynamic one, signed for m, unsigned for v. All zero is 0. */
enum { GR_MOMENTS_BLOCK = 256 };
typedef struct gr_moments8 {
    uint8_t *m, *v;           /* [n] codes */
    float *m_scale, *v_scale; /* [n / 256, rounded up] */
} gr_moments8;

/* What Adafactor (arXiv 1804.04235) keeps of g^2: of a matrix the means of its rows and columns, of a vector all. */
typedef struct gr_factors {
    float *row, *col; /* [rows], [cols], or NULL: */
    float *all;       /* [rows * cols] */
} gr_factors;
enum {
    GR_FACTORS_MOST = 8 << 20
}; /* of a matrix 2 rows + cols: what an update keeps of it beside these is floats of that number */

typedef struct gr_ops {
#define GR_OP(name, params, args) void(*name) params;
#include "kernels/ops.def"
#undef GR_OP
} gr_ops;

/* Queues run beside each other; within one, work runs in order. Operations are work of GR_QUEUE_COMPUTE. */
typedef enum gr_queue { GR_QUEUE_COMPUTE, GR_QUEUE_COPY, GR_QUEUE_COMM } gr_queue;
typedef int64_t gr_mark; /* a point in a queue: the work given to it before; 0: no work */

/* Bytes for a rank, or from one; 0 bytes: nothing is moved. */
typedef struct gr_piece {
    void *data;
    int64_t bytes;
} gr_piece;

/* Asked again and again while a device is waited for whose work may wait for other ranks. */
typedef struct gr_watch {
    /* false, and *why, when there is no more sense in waiting. waited: seconds so far; infinite where the device knows that it is
     * in vain, but not whose fault it is: then false comes back. */
    bool (*goes_on)(void *context, double waited, const char **why);
    void *context;
} gr_watch;
enum { GR_RANKS_NAME = 128 };

/* What work is: equal keys, equal arguments of all its operations. */
typedef struct gr_repeat {
    int64_t key[12];
} gr_repeat;

struct gr_device {
    const gr_ops *ops;
    const char *level;       /* "cpu-generic", "cpu-avx2", "cpu-avx512", "cpu-avx512bf16", "cpu-amx" */
    const char *about;       /* what it is and what drives it, for people; NULL: nothing but the level */
    const char *id;          /* of a card: the same in all processes that have opened it, and no other's; NULL: no card */
    double flops, bandwidth; /* of products of bfloat16, and bytes, a second: where a plan goes by them; 0: it measures */
    double flops_f32;        /* of products of float32 */
    double link;             /* bytes a second to other devices, one way, where a plan goes by it */
    bool fast_bf16;          /* multiplies bfloat16 faster than float32 */
    bool int8, fp8;          /* makes products of int8, of e4m3 (gr_base_products) */
    bool queues;             /* work may be under way when a call returns: read results late */
    bool in_host;            /* its memory is the host's: host memory may be handed to operations, and is touched by them alone */

    void *(*alloc)(gr_device *d, int64_t bytes); /* 64-byte aligned, not zeroed; NULL when out of memory */
    void (*free)(gr_device *d, void *p);         /* NULL is fine */
    void (*zero)(gr_device *d, void *p, int64_t bytes);
    void (*copy)(gr_device *d, void *to, const void *from, int64_t bytes);
    void (*upload)(gr_device *d, void *to, const void *host, int64_t bytes); /* host may be reused on return */
    /* The same beside GR_QUEUE_COMPUTE: in GR_QUEUE_COPY, after a mark (0: at once). Who reads it waits for the mark that comes
     * back. */
    gr_mark (*upload_beside)(gr_device *d, void *to, const void *host, int64_t bytes, gr_mark after);
    /* Waits for the work before the mark (0: all) and copies to host. */
    void (*download)(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after);
    /* The device's own view of host memory that stays as it is until unmap: that memory itself where the device reaches it, else a
     * copy. NULL when out of memory. */
    const void *(*map)(gr_device *d, const void *host, int64_t bytes);
    void (*unmap)(gr_device *d, const void *p); /* NULL is fine */
    gr_mark (*mark)(gr_device *d, gr_queue queue);
    void (*wait)(gr_device *d, gr_queue queue, gr_mark mark); /* what is given to the queue from now on comes after the mark */
    const char *(*sync)(gr_device *d); /* waits for all; NULL, or what went wrong since the device was opened */
    bool (*memory)(gr_device *d, int64_t *total, int64_t *available); /* bytes of its own; false: it lives in the host's */
    int64_t (*footprint)(gr_device *d, int64_t bytes); /* memory that alloc of so many bytes takes once all of it was touched */
    int64_t shared_bytes; /* that operations share as scratch, at most; what is never touched takes no memory, but a card's own */
    /* A rehearsal: from begin on operations are only noted, and at the end the scratch that the largest of them want is there, so
     * that none of them allocates when it comes; false when out of memory. NULL: operations need none. */
    bool (*rehearse)(gr_device *d, bool begin);
    /* Work that may come again: operations, zero and copy, whose arguments are the same whenever the key is, until memory is freed
     * or a group placed or released; what varies lies in the device's memory. To be asked until it says no, the work given after
     * each yes, as `while (d->repeat(d, &key)) work();`: it is done once, given here or done again from a record. A work may be
     * given to be recorded, and again where that failed. NULL: a device that has nothing to gain. */
    bool (*repeat)(gr_device *d, const gr_repeat *key);
    /* Activations: their type, and the elements from a row to the next that rows of so many want. */
    gr_dtype (*act_type)(gr_device *d, gr_dtype compute);
    int64_t (*row_stride)(gr_device *d, int64_t width, gr_dtype type);

    /* The form of a group. bytes: memory that place takes. place: members are filled; false when out of memory. renew: trained
     * members have changed. */
    int64_t (*group_bytes)(gr_device *d, const gr_group *g);
    /* Scratch of its own that products of so many rows take; beside shared_bytes; NULL: none. */
    int64_t (*scratch_bytes)(gr_device *d, const gr_group *g, int64_t rows);
    bool (*place)(gr_device *d, gr_group *g);
    void (*renew)(gr_device *d, gr_group *g);
    void (*release)(gr_device *d, gr_group *g);
    /* Is the form all that products read of members that are not trained? Their data may be given back then, and w.data be NULL. */
    bool (*holds)(gr_device *d, const gr_group *g);

    /* layers[n_layers] of a KV cache. bytes: once every position was filled; open: false when out of memory. */
    int64_t (*kv_bytes)(gr_device *d, const gr_kv_shape *shape);
    bool (*kv_open)(gr_device *d, gr_kv *layers, const gr_kv_shape *shape);
    void (*kv_close)(gr_device *d, gr_kv *layers); /* zeroed ones are fine */

    /* Devices of several ranks that move bytes between their memories by themselves; all NULL: the host does it. Every rank calls
     * these in the same order.
     * ranks_name: can it? *about says by what (NCCL, its version), or why not. name[GR_RANKS_NAME], where it is not NULL, becomes
     * that of these ranks: one of them asks for it, all join by it.
     * ranks_join: connects the ranks, and waits for all; what it allocates it allocates then. false: sync says why. watch is
     * copied, and asked from then on wherever this device is waited for; when it says no, what is under way ends and the device
     * has failed.
     * exchange: work of GR_QUEUE_COMM: each rank's out[i] becomes rank i's in[rank], both [size] of device memory, which nothing
     * else uses until it is done. Both are copied; pieces of a pair have the same number of bytes on both sides.
     * ranks_leave: for a run that has failed: exchanges under way end, with any result; nothing waits for a rank any more. */
    bool (*ranks_name)(gr_device *d, char *name, const char **about);
    bool (*ranks_join)(gr_device *d, const char *name, int rank, int size, const gr_watch *watch);
    void (*exchange)(gr_device *d, const gr_piece *out, const gr_piece *in);
    void (*ranks_leave)(gr_device *d);
    bool joined; /* exchange may be called */

    void (*close)(gr_device *d);
    void *impl; /* the backend's own */
};

/* The device of a name: "cpu" (threads: the host's pool, borrowed, on which the CPU's operations run), "cuda" or "cuda:N" (card N,
 * by libgraft_cuda.so, which GRAFT_CUDA_LIB may name), "auto": the first card, else the CPU. "cuda@R", "auto@R": the card of rank R
 * of this host, R modulo the number of those that this process is given (a rank may be given its own alone). The CPU's level is the
 * best there is, or the one named by the environment variable GRAFT_CPU (generic | avx2 | avx512 | avx512bf16 | amx; one the CPU
 * lacks is an error). For tests GRAFT_DEVICE says what auto is, far too: see far.c. NULL and *why on failure; where auto is the
 * CPU, *why says why it is no card (valid until the next call of this thread), else NULL. */
gr_device *gr_device_open(const char *name, gr_threads *threads, const char **why);
/* Is it such a name? */
bool gr_device_is_name(const char *name);
/* Is NVIDIA's driver installed? Where it is and auto takes no card, something is wrong with the card or the backend. */
bool gr_device_has_driver(void);
/* Cards that graft plan knows without having one: a100-40gb, a100-80gb, h100, h200. gr_device_open takes these names too; such a
 * device has no operations. */
bool gr_planned_is_name(const char *name);
void gr_device_close(gr_device *d); /* NULL is fine */

/* For tests and benches: the table of a level, NULL when this CPU lacks it. levels: "generic", "avx2", "avx512", "avx512bf16",
 * "amx". */
const gr_ops *gr_cpu_ops(const char *level);

#endif
