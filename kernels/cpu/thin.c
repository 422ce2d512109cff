/* thin.c - the low-rank products of a group of linears, without any instruction set: their slices, the division of the work, and
 * the sums of gradients over its parts. */
#include "kernels/cpu/thin.h"

#include <string.h>

enum {
    ROWS = 128,    /* of a part: gradients are summed over its rows, then over parts */
    AT_ONCE = 32,  /* rows that pass all slices before the next ones come */
    RANK_MAX = 32, /* beyond, the products do enough work for a matrix product */
};

static int64_t slices(int64_t rank) { return (rank + THIN - 1) / THIN; }
static int ranks_of(int64_t rank, int64_t slice) { return (int)(rank - slice * THIN < THIN ? rank - slice * THIN : THIN); }

/* An adapter of the group: its outputs begin at column `out` of dy, its ranks at column `at` of h. */
typedef struct thin_lora {
    const gr_lora *lora;
    int64_t N, out, at;
} thin_lora;

enum { LORAS_MAX = 16 };

typedef struct thin_job {
    const gr_thin_level *level;
    gr_device *d;
    thin_lora loras[LORAS_MAX];
    int n_loras;
    int64_t n, K, ldh, part_rows, part_floats;
    gr_rows xd, dy;
    float *h, *dh;
    bool want_dh, want_dA;
    float *factors; /* A^T of all adapters together, or each one's B: slices */
    float *parts;   /* [parts][part_floats]: dB of each adapter, then dA of all together: slices */
} thin_job;

static bool describe(thin_job *job, const gr_group *group) {
    int64_t out = 0;
    job->K = gr_group_inputs(group);
    for (int i = 0; i < group->n; out += group->member[i]->w.rows, i++)
        for (int j = 0; j < group->member[i]->n_lora; j++) {
            const gr_lora *lora = &group->member[i]->lora[j];
            if (lora->rank > RANK_MAX || job->n_loras == LORAS_MAX) return false;
            job->loras[job->n_loras++] = (thin_lora){lora, group->member[i]->w.rows, out, job->ldh};
            job->ldh += lora->rank;
        }
    job->factors = gr_cpu_shared(job->d);
    return job->n_loras > 0 && job->n > 0;
}

static int64_t b_floats(const thin_lora *l) { return l->N * THIN * slices(l->lora->rank); }
static int64_t all_b_floats(const thin_job *job) {
    int64_t sum = 0;
    for (int i = 0; i < job->n_loras; i++) sum += b_floats(&job->loras[i]);
    return sum;
}
static int64_t a_floats(const thin_job *job) { return job->K * THIN * slices(job->ldh); }

static bool fits(int64_t floats) { return floats <= GR_CPU_SHARED / (int64_t)sizeof(float); }

/* A of all adapters as slices of their transpose: columns [begin, end). */
static void slice_a(const void *args, int64_t begin, int64_t end) {
    const thin_job *job = args;
    const thin_lora *l = job->loras;
    for (int64_t s = 0, at = 0; s < slices(job->ldh); s++) {
        const float *rows[THIN] = {NULL};
        for (int i = 0; i < THIN && at < job->ldh; i++, at++) {
            l += at == l->at + l->lora->rank;
            rows[i] = l->lora->A + (at - l->at) * job->K;
        }
        job->level->slice(job->factors + s * job->K * THIN, rows, begin, end);
    }
}

static void forward_rows(const void *args, int64_t begin, int64_t end) {
    const thin_job *job = args;
    for (int64_t row = begin; row < end; row += AT_ONCE)
        for (int64_t s = 0; s < slices(job->ldh); s++) {
            gr_thin t = {.b = job->factors + s * job->K * THIN,
                         .to = job->h + row * job->ldh + s * THIN,
                         .ld = job->ldh,
                         .ranks = ranks_of(job->ldh, s)};
            job->level->pass(&t, end - row < AT_ONCE ? end - row : AT_ONCE, job->K, gr_f32_row(job->xd, row), job->xd.ld);
        }
}

bool gr_thin_forward(const gr_thin_level *level, gr_device *d, const gr_product *p, gr_rows xd, int64_t n) {
    thin_job job = {.level = level, .d = d, .n = n, .h = p->h, .xd = xd};
    if (!level || !describe(&job, p->group) || !fits(a_floats(&job))) return false;
    gr_cpu_for(d, job.K, 512, slice_a, &job);
    gr_cpu_for(d, n, AT_ONCE, forward_rows, &job);
    return true;
}

/* ---- backward ---- */

/* B of an adapter as slices; of rank 8 it is one as it stands. */
static const float *sliced_b(const thin_lora *l, const float *slices_of_b) {
    return l->lora->rank == THIN ? l->lora->B : slices_of_b;
}

static void slice_b(void *context, int64_t chunk, int worker) {
    (void)worker;
    const thin_job *job = context;
    const thin_lora *l = &job->loras[chunk];
    int64_t rank = l->lora->rank;
    float *to = job->factors;
    if (rank == THIN) return;
    for (const thin_lora *before = job->loras; before < l; before++) to += b_floats(before);
    memset(to, 0, (size_t)b_floats(l) * sizeof *to);
    for (int64_t j = 0; j < l->N; j++)
        for (int64_t r = 0; r < rank; r++) to[(r / THIN * l->N + j) * THIN + r % THIN] = l->lora->B[j * rank + r];
}

static void scale_rows(float *x, int64_t ld, int64_t rows, int64_t n, float scale) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j++) x[i * ld + j] *= scale;
}

/* Rows [row, row+rows): dh, then what they give to the part's dB and dA. */
static void backward_rows(const thin_job *job, float *part, int64_t row, int64_t rows) {
    const float *B = job->factors, *h = job->h + row * job->ldh, *dy = gr_f32_row(job->dy, row);
    float *dh = job->dh + row * job->ldh;
    for (const thin_lora *l = job->loras; l < job->loras + job->n_loras; B += b_floats(l), l++)
        for (int64_t s = 0, at = l->at; s < slices(l->lora->rank); s++, at += THIN, part += l->N * THIN) {
            gr_thin t = {.b = job->want_dh ? sliced_b(l, B) + s * l->N * THIN : NULL,
                         .to = dh + at,
                         .s = l->lora->dB ? h + at : NULL,
                         .part = part,
                         .ld = job->ldh,
                         .ranks = ranks_of(l->lora->rank, s)};
            job->level->pass(&t, rows, l->N, dy + l->out, job->dy.ld);
            if (job->want_dh) scale_rows(dh + at, job->ldh, rows, t.ranks, l->lora->scale);
        }
    for (int64_t s = 0; job->want_dA && s < slices(job->ldh); s++, part += job->K * THIN) {
        gr_thin t = {.s = dh + s * THIN, .part = part, .ld = job->ldh, .ranks = ranks_of(job->ldh, s)};
        job->level->pass(&t, rows, job->K, gr_f32_row(job->xd, row), job->xd.ld);
    }
}

static void backward_part(void *context, int64_t chunk, int worker) {
    (void)worker;
    const thin_job *job = context;
    float *part = job->parts + chunk * job->part_floats;
    int64_t begin = chunk * job->part_rows, end = begin + job->part_rows < job->n ? begin + job->part_rows : job->n;
    memset(part, 0, (size_t)job->part_floats * sizeof *part);
    for (int64_t row = begin; row < end; row += AT_ONCE) backward_rows(job, part, row, end - row < AT_ONCE ? end - row : AT_ONCE);
}

/* The parts' floats [begin, end) added into the first part. */
static void add_parts(const void *args, int64_t begin, int64_t end) {
    const thin_job *job = args;
    const float *part = job->parts;
    for (int64_t row = job->part_rows; row < job->n; row += job->part_rows) {
        part += job->part_floats;
        for (int64_t i = begin; i < end; i++) job->parts[i] += part[i];
    }
}

/* The first part's sums into the gradients; a chunk is an adapter. */
static void give_gradients(void *context, int64_t chunk, int worker) {
    (void)worker;
    const thin_job *job = context;
    const thin_lora *l = &job->loras[chunk];
    const gr_lora *lora = l->lora;
    const float *dB = job->parts, *dA = job->parts + all_b_floats(job);
    for (const thin_lora *before = job->loras; before < l; before++) dB += b_floats(before);
    for (int64_t r = 0; r < lora->rank; r++) {
        const float *b = dB + r / THIN * l->N * THIN + r % THIN, *a = dA + (l->at + r) / THIN * job->K * THIN + (l->at + r) % THIN;
        for (int64_t j = 0; lora->dB && j < l->N; j++) lora->dB[j * lora->rank + r] += lora->scale * b[j * THIN];
        for (int64_t k = 0; lora->dA && k < job->K; k++) lora->dA[r * job->K + k] += a[k * THIN];
    }
}

bool gr_thin_backward(const gr_thin_level *level, gr_device *d, const gr_product *p, gr_rows xd, bool want_dx, int64_t n) {
    thin_job job = {.level = level, .d = d, .n = n, .xd = xd, .h = p->h, .dy = p->y, .dh = p->dh, .part_rows = ROWS};
    if (!level || !describe(&job, p->group)) return false;
    for (int i = 0; i < job.n_loras; i++) job.want_dA |= job.loras[i].lora->dA != NULL;
    job.want_dh = want_dx || job.want_dA;
    job.part_floats = all_b_floats(&job) + (job.want_dA ? a_floats(&job) : 0);
    job.parts = job.factors + all_b_floats(&job);
    for (; !fits(all_b_floats(&job) + (n + job.part_rows - 1) / job.part_rows * job.part_floats); job.part_rows *= 2)
        if (job.part_rows >= n) return false;
    gr_threads_run(gr_cpu_threads(d), job.n_loras, slice_b, &job);
    gr_threads_run(gr_cpu_threads(d), (n + job.part_rows - 1) / job.part_rows, backward_part, &job);
    gr_cpu_for(d, job.part_floats, 4096, add_parts, &job);
    gr_threads_run(gr_cpu_threads(d), job.n_loras, give_gradients, &job);
    return true;
}
