/* attention_tmpl.h - causal attention of a vectorised level as products of small blocks (FlashAttention, arXiv 2205.14135). Key
 * blocks start at position 0 of their sequence and are padded with zeros to KEYS, masked scores weigh exactly 0: a row's bits
 * depend on nothing but its own keys. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/attention_operands.h"
#include "kernels/cpu/impl.h"

enum {
    KEYS = GR_KV_BLOCK,
    QUERIES = 64,
    GROUP = 8,  /* query heads of a key/value head that share its packed key blocks */
    BLOCKS = 4, /* blocks of queries that share them; in the backward, blocks of keys that share packed queries */
};

/* Where the parts of a task's scratch begin, in floats. */
typedef struct forward_parts {
    int64_t packed, q, scores, p, m, sum, out, end;
} forward_parts;

typedef struct backward_parts {
    int64_t k, v, k_turned, dk, dv, key_floats; /* those of one key block, key_floats apart */
    int64_t q, dout, q_turned, dout_turned, lse, delta, scores, ds, p_rows, ds_rows, ds_panels, dq, end;
} backward_parts;

typedef struct attention {
    gr_device *d;
    const gr_seq *seqs;
    int64_t n_seqs, H, K, D, ldq, ldkv, ldo;
    float scale, softcap;
    int64_t window;
    int64_t blocks; /* of a task, BLOCKS at most */
    const float *q, *k, *v;
    float *out, *lse, *delta; /* backward reads the first two */
    gr_cpu_kv *panels;        /* forward */
    forward_parts forward;
    float *dq, *dk, *dv, *partial; /* backward */
    const float *dout;
    backward_parts backward;
} attention;

static attention attention_of(gr_device *d, const gr_attention *a) {
    gr_check_attention(a);
    return (attention){.d = d,
                       .seqs = a->seqs,
                       .n_seqs = a->n_seqs,
                       .H = a->H,
                       .K = a->K,
                       .D = a->D,
                       .ldq = a->q.ld,
                       .ldkv = a->k.ld,
                       .ldo = a->out.ld,
                       .scale = a->scale,
                       .softcap = a->softcap,
                       .window = a->window,
                       .q = gr_f32(a->q),
                       .k = gr_f32(a->k),
                       .v = gr_f32(a->v),
                       .out = gr_f32(a->out),
                       .lse = a->lse,
                       .delta = a->delta,
                       .panels = gr_cpu_kv_of(a->kv),
                       .dq = gr_f32(a->dq),
                       .dk = gr_f32(a->dk),
                       .dv = gr_f32(a->dv),
                       .dout = gr_f32(a->dout)};
}

static const float log2_e = 1.44269504f, ln_2 = 0.693147181f;

/* Which calls a level takes itself, and whom it leaves the others to. */
#if defined(GR_BF16)
#define ATTENDS(compute) ((compute) == GR_DTYPE_BF16)
#define EXACT(name)      name##_avx512
#else
#define ATTENDS(compute) true
#define EXACT(name)      name##_generic
#endif

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Make room for more floats behind end; returns where. */
static int64_t part(int64_t *end, int64_t floats) {
    int64_t at = *end;
    *end += padded(floats, 16);
    return at;
}

/* Scores are multiplied by this, so that powers of 2 take the place of those of e. */
static inline float log2_scale(const attention *t) { return t->scale * log2_e; }

/* Scores before their scale are capped, where they are at all: scores[m, n] with rows ld apart, n a multiple of VL. */
static void cap_scores(const attention *t, float *scores, int64_t m, int64_t n, int64_t ld) {
    const vf to_cap = v_set(t->scale / t->softcap), back = v_set(t->softcap / t->scale);
    if (t->softcap == 0) return;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += VL) {
            float *s = scores + i * ld + j;
            v_store(s, v_mul(v_tanh(v_mul(v_load(s), to_cap)), back));
        }
}

#include "kernels/cpu/attention_backward.h"
#include "kernels/cpu/attention_forward.h"
