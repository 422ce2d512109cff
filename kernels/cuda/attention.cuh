/* attention.cuh - what the kernels of attention share: a call as they take it, who sees whom, and the list of the work, which each
 * block reads off the lengths of the sequences: the host does not know them. */
#ifndef GR_CUDA_ATTENTION_CUH
#define GR_CUDA_ATTENTION_CUH

#include <limits.h>

#include "kernels/cuda/rows.cuh"

/* gr_attention by value. Positions are counted within a sequence and fit an int. */
struct gr_attend {
    gr_view q, k, v, out, dq, dk, dv, dout;
    float *lse, *delta;
    const int32_t *pos;
    const float *turns;
    const gr_seq *seqs;
    int n_seqs, H, K, D;
    float scale, softcap;
    int window;   /* INT_MAX: all */
    bool decoded; /* sequences of one query go their own way (attention_decode.cu) */
};

/* By the shape of a call alone. */
enum { GR_DECODE_HEAD = 256 };
static inline bool gr_attention_decodes(const gr_attention *a) { return a->kv && a->D <= GR_DECODE_HEAD; }

static inline gr_attend gr_attend_of(const gr_attention *a) {
    gr_attend t = {};
    t.q = gr_view_of(a->q), t.k = gr_view_of(a->k), t.v = gr_view_of(a->v), t.out = gr_view_of(a->out);
    t.dq = gr_view_of(a->dq), t.dk = gr_view_of(a->dk), t.dv = gr_view_of(a->dv), t.dout = gr_view_of(a->dout);
    t.lse = a->lse, t.delta = a->delta, t.pos = a->pos, t.turns = a->turns, t.seqs = a->seqs;
    t.n_seqs = (int)a->n_seqs, t.H = (int)a->H, t.K = (int)a->K, t.D = (int)a->D;
    t.scale = a->scale, t.softcap = a->softcap;
    t.window = a->window > 0 && a->window < INT_MAX ? (int)a->window : INT_MAX;
    t.decoded = gr_attention_decodes(a);
    return t;
}

/* Columns from col on, where a head begins. */
static __device__ __forceinline__ gr_view gr_columns(gr_view x, int col) {
    x.data = (char *)x.data + (int64_t)col * (x.type == GR_DTYPE_F32 ? 4 : 2);
    x.wide = x.wide && col % 8 == 0;
    return x;
}

static __device__ __forceinline__ bool gr_sees(const gr_attend &a, int position, int key) {
    return key <= position && key > position - a.window;
}

/* The first key that a query at this position sees. */
static __device__ __forceinline__ int gr_first_seen(const gr_attend &a, int position) {
    return position >= a.window ? position - a.window + 1 : 0;
}

/* A tile of a sequence's queries, or of its keys, and a head. */
struct gr_query_piece {
    int64_t q_start, kv_start; /* of the sequence */
    int q_len, kv_len;
    int first, rows; /* of the tile, within the sequence's queries or keys */
    int head;
};

/* The pieces of a block. Tiles of queries see more keys the later they are, tiles of keys are seen by more queries the earlier they
 * are: level by level from the heaviest on, each level the tiles of all sequences that have so many, all heads of a tile next to
 * each other. Blocks take turns, every other time in the other direction, so that all get about the same. Kept in the registers
 * of each warp, whose lanes look at 32 sequences at a time. */
struct gr_work {
    const gr_seq *seqs;
    int n_seqs, tile, heads;
    bool keys;                /* tiles of keys */
    bool decoded;             /* not of sequences of one query */
    int turn;                 /* of the block */
    int level, count, before; /* tiles of this level; pieces of those above */
};

static __device__ __forceinline__ int gr_work_tiles(const gr_work &w, int s) {
    if (s >= w.n_seqs || (w.decoded && w.seqs[s].q_len == 1)) return 0;
    return (int)(((w.keys ? w.seqs[s].kv_len : w.seqs[s].q_len) + w.tile - 1) / w.tile);
}

static __device__ int gr_work_count(const gr_work &w, int level) {
    int n = 0, lane = threadIdx.x % 32;
    for (int s = 0; s < w.n_seqs; s += 32) n += __popc(__ballot_sync(0xffffffffu, gr_work_tiles(w, s + lane) > level));
    return n;
}

static __device__ gr_work gr_work_of(const gr_attend &a, int tile, int heads, bool keys) {
    gr_work w = {a.seqs, a.n_seqs, tile, heads, keys, a.decoded, 0, 0, 0, 0};
    int most = 0, lane = threadIdx.x % 32;
    for (int s = lane; s < w.n_seqs; s += 32) most = max(most, gr_work_tiles(w, s));
    most = (int)__reduce_max_sync(0xffffffffu, most);
    w.level = most - 1;
    w.count = most > 0 ? gr_work_count(w, most - 1) : 0;
    return w;
}

/* The next piece; false: there is none. All threads of the block get the same. */
static __device__ bool gr_work_next(gr_work *w, gr_query_piece *p) {
    const int lane = threadIdx.x % 32, blocks = (int)gridDim.x, block = (int)blockIdx.x;
    int at = w->turn * blocks + (w->turn % 2 ? blocks - 1 - block : block);
    w->turn++;
    while (w->level >= 0 && at - w->before >= w->count * w->heads) {
        w->before += w->count * w->heads;
        w->level--;
        w->count = w->level >= 0 ? gr_work_count(*w, w->level) : 0;
    }
    if (w->level < 0) return false;
    int nth = (at - w->before) / w->heads, s = 0; /* of the sequences that have a tile at this level */
    for (int from = 0;; from += 32) {
        unsigned have = __ballot_sync(0xffffffffu, gr_work_tiles(*w, from + lane) > w->level);
        if (nth >= __popc(have)) {
            nth -= __popc(have);
            continue;
        }
        bool me = (have >> lane & 1) && __popc(have & ((1u << lane) - 1)) == nth;
        s = from + __ffs((int)__ballot_sync(0xffffffffu, me)) - 1;
        break;
    }
    const gr_seq seq = w->seqs[s];
    const int len = (int)(w->keys ? seq.kv_len : seq.q_len), tiles = (len + w->tile - 1) / w->tile;
    p->q_start = seq.q_start, p->kv_start = seq.kv_start;
    p->q_len = (int)seq.q_len, p->kv_len = (int)seq.kv_len;
    p->first = (w->keys ? tiles - 1 - w->level : w->level) * w->tile;
    p->rows = min(w->tile, len - p->first);
    p->head = (at - w->before) % w->heads;
    return true;
}

/* ---- on tensor cores ---- */

static const float GR_LOG2_E = 1.44269504f;

/* A score after scale and cap; tanh x = 1 - 2 / (e^2x + 1), to 1e-7 of the cap. */
static __device__ __forceinline__ float gr_capped(const gr_attend &a, float score) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(score * (2 * GR_LOG2_E * a.scale / a.softcap)));
    return a.softcap - a.softcap * __fdividef(2, y + 1);
}

/* Whether a call goes there: factors may be rounded, all its rows are of one type of 2 bytes and move in whole pieces of 8
 * columns. No number of rows decides. */
static inline bool gr_attention_in_tiles(const gr_attention *a, const gr_rows *all, int n) {
    bool good = a->compute != GR_DTYPE_F32 && a->q.type != GR_DTYPE_F32 && a->D % 8 == 0 && a->D <= 256 && a->scale > 0;
    for (int i = 0; i < n; i++) good = good && all[i].type == a->q.type && gr_view_of(all[i]).wide;
    return good;
}

/* A launch whose blocks share out the work. */
#define GR_ATTEND(d, a, kernel, n_blocks, n_threads, bytes)                                                                        \
    do {                                                                                                                           \
        if ((a)->n_seqs > 0 && !gr_cuda_idle(d) &&                                                                                 \
            gr_cuda_check(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)), #kernel))    \
            GR_LAUNCH(d, kernel, (unsigned)(n_blocks), n_threads, bytes, gr_attend_of(a));                                         \
    } while (0)

/* attention_plain.cu: any rows, any size of head up to this. */
enum { GR_PLAIN_HEAD = 1024 };
void gr_attention_forward_plain(gr_device *d, const gr_attention *a);
void gr_attention_backward_plain(gr_device *d, const gr_attention *a);

/* attention_decode.cu: the sequences of one query of a call that decodes. */
void gr_attention_decode(gr_device *d, const gr_attention *a);

#endif
