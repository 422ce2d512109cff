/* int8.c - products of int8 without any instruction set: packing, the division of the work, and the reference. */
#include "kernels/cpu/int8.h"

#include <stddef.h>
#include <string.h>

/* ---- packing ---- */

enum { CHUNK = 256 }; /* a multiple of every dtype block, and of a panel */

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Four bits suffice where the format has them along the contraction. */
static int bits_of(const gr_weight *w, bool transposed) {
    bool four = w->dtype == GR_DTYPE_Q4_0 || w->dtype == GR_DTYPE_Q4_1 || w->dtype == GR_DTYPE_Q4_K;
    return four && !transposed ? 4 : 8;
}

static int8_weight header(const gr_weight *w, bool transposed) {
    int8_weight h = {.n = transposed ? w->cols : w->rows, .k = transposed ? w->rows : w->cols, .bits = bits_of(w, transposed)};
    h.blocks = ceil_div(h.k, I8_BLOCK);
    h.block_bytes = I8_COLUMNS * (h.bits == 8 ? 2 + I8_BLOCK : 4 + I8_BLOCK / 2);
    return h;
}

int64_t gr_int8_size(const gr_weight *w, bool transposed) {
    int8_weight h = header(w, transposed);
    return (int64_t)sizeof h + ceil_div(h.n, I8_COLUMNS) * h.blocks * h.block_bytes;
}

typedef struct pack_job {
    int8_weight *to;
    const gr_weight *w;
} pack_job;

static const uint8_t *storage(const gr_weight *w, int64_t row, int64_t col) {
    const gr_dtype_info *type = gr_dtype_get(w->dtype);
    return (const uint8_t *)w->data + (row * w->cols + col) / type->block * type->block_bytes;
}

/* Block b of 32 in a row: its integers of 4 bits, scale and minimum. */
static void four_bits(const gr_weight *w, int64_t row, int64_t b, uint8_t q[I8_BLOCK], float *scale, float *min) {
    const uint8_t *s = storage(w, row, b * I8_BLOCK);
    *scale = gr_load_half(s);
    if (w->dtype == GR_DTYPE_Q4_K) {
        int g = (int)(b % 8);
        gr_k_scale(scale, min, s + 4, g, *scale, gr_load_half(s + 2));
        *min = -*min;
        for (int j = 0; j < I8_BLOCK; j++) q[j] = s[16 + g / 2 * 32 + j] >> g % 2 * 4 & 15;
        return;
    }
    bool q4_1 = w->dtype == GR_DTYPE_Q4_1;
    *min = q4_1 ? gr_load_half(s + 2) : -8 * *scale;
    s += q4_1 ? 4 : 2;
    for (int j = 0; j < 16; j++) q[j] = s[j] & 15, q[j + 16] = s[j] >> 4;
}

static void put_half(uint8_t *to, float f) {
    uint16_t h = gr_f32_to_f16(f);
    memcpy(to, &h, sizeof h);
}

static uint8_t *block_at(int8_weight *to, int64_t column, int64_t b) {
    return to->data + (column / I8_COLUMNS * to->blocks + b) * to->block_bytes;
}

/* 32 floats, stride apart, as block b of a column. The scale is the half the reader will see; a hostile infinity stays visible. */
static void put_floats(int8_weight *to, int64_t column, int64_t b, const float *x, int64_t stride, int64_t count) {
    uint8_t *block = block_at(to, column, b);
    int64_t j = column % I8_COLUMNS;
    float top = 0;
    for (int64_t i = 0; i < count; i++) {
        float a = x[i * stride] < 0 ? -x[i * stride] : x[i * stride];
        if (!(a <= top)) top = a;
    }
    put_half(block + 2 * j, top / 127.0f);
    float scale = gr_load_half(block + 2 * j), inverse = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < count; i++) {
        float q = __builtin_rintf(x[i * stride] * inverse);
        block[2 * I8_COLUMNS + i / 4 * 4 * I8_COLUMNS + 4 * j + i % 4] = (uint8_t)(int8_t)(q > 127 ? 127 : q > -127 ? q : -127);
    }
}

static void pack_columns_of_rows(const void *args, int64_t begin, int64_t end) {
    const pack_job *job = args;
    const gr_dtype_info *type = gr_dtype_get(job->w->dtype);
    int8_weight *to = job->to;
    memset(block_at(to, begin, 0), 0, (size_t)(to->blocks * to->block_bytes)); /* a panel, its filling included */
    for (int64_t row = begin; row < end; row++)
        for (int64_t b = 0; b < to->blocks; b++) {
            uint8_t *block = block_at(to, row, b), q[I8_BLOCK];
            int64_t j = row % I8_COLUMNS;
            float x[CHUNK], scale, min;
            if (to->bits == 4) {
                four_bits(job->w, row, b, q, &scale, &min);
                put_half(block + 2 * j, scale);
                put_half(block + 2 * (I8_COLUMNS + j), min);
                for (int i = 0; i < 16; i++)
                    block[4 * I8_COLUMNS + i / 4 * 4 * I8_COLUMNS + 4 * j + i % 4] = (uint8_t)(q[i] | q[i + 16] << 4);
            } else if (job->w->dtype == GR_DTYPE_Q8_0) {
                const uint8_t *s = storage(job->w, row, b * I8_BLOCK);
                memcpy(block + 2 * j, s, 2);
                for (int i = 0; i < I8_BLOCK; i++) /* no writer makes -128, and the products cannot take it */
                    block[2 * I8_COLUMNS + i / 4 * 4 * I8_COLUMNS + 4 * j + i % 4] = s[2 + i] == 0x80 ? 0x81 : s[2 + i];
            } else {
                if (b * I8_BLOCK % CHUNK == 0 || type->block == 1) {
                    int64_t wanted = type->block == 1 ? I8_BLOCK : CHUNK, left = to->k - b * I8_BLOCK;
                    type->to_f32(x, storage(job->w, row, b * I8_BLOCK), left < wanted ? left : wanted);
                }
                int64_t left = to->k - b * I8_BLOCK;
                put_floats(to, row, b, type->block == 1 ? x : x + b * I8_BLOCK % CHUNK, 1, left < I8_BLOCK ? left : I8_BLOCK);
            }
        }
}

/* Chunks of columns of a weight whose rows are the contraction. */
static void pack_columns(const void *args, int64_t begin, int64_t end) {
    const pack_job *job = args;
    const gr_dtype_info *type = gr_dtype_get(job->w->dtype);
    int8_weight *to = job->to;
    float x[I8_BLOCK][CHUNK];
    for (int64_t j0 = begin * CHUNK; j0 < end * CHUNK && j0 < to->n; j0 += CHUNK) {
        int64_t n = to->n - j0 < CHUNK ? to->n - j0 : CHUNK;
        memset(block_at(to, j0, 0), 0, (size_t)(ceil_div(n, I8_COLUMNS) * to->blocks * to->block_bytes));
        for (int64_t b = 0; b < to->blocks; b++) {
            int64_t rows = to->k - b * I8_BLOCK < I8_BLOCK ? to->k - b * I8_BLOCK : I8_BLOCK;
            for (int64_t i = 0; i < rows; i++) type->to_f32(x[i], storage(job->w, b * I8_BLOCK + i, j0), n);
            for (int64_t j = 0; j < n; j++) put_floats(to, j0 + j, b, &x[0][j], CHUNK, rows);
        }
    }
}

void gr_int8_pack(gr_device *d, void *packed, const gr_weight *w, bool transposed) {
    pack_job job = {packed, w};
    *job.to = header(w, transposed);
    if (transposed) gr_cpu_for(d, ceil_div(w->cols, CHUNK), 1, pack_columns, &job);
    else gr_cpu_for(d, w->rows, I8_COLUMNS, pack_columns_of_rows, &job);
}

/* ---- the work ---- */

/* A block of C: its rows of A stay in the second-level cache. */
enum { ROW_BLOCK = 128, PANEL_BLOCK = 4, CHUNKS_A_THREAD = 12, LD_MORE = 16 };

typedef struct int8_job {
    const int8_level *level;
    int8_rows rows;
    const float *a;
    int64_t lda, k;
    const gr_int8_product *products; /* of all rows of A; these begin at row `first` */
    int64_t first, row_block, row_blocks;
    int64_t panels, panel_blocks; /* those of all products, one after the other, in blocks of equal size */
} int8_job;

static void round_rows(const void *args, int64_t begin, int64_t end) {
    const int8_job *job = args;
    job->level->round(&job->rows, job->a, job->lda, job->k, begin, end);
}

static int64_t panels_of(const int8_weight *w) { return ceil_div(w->n, I8_COLUMNS); }

static void product_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const int8_job *job = context;
    int64_t i0 = chunk % job->row_blocks * job->row_block, i1 = i0 + job->row_block, block = chunk / job->row_blocks;
    int64_t p0 = job->panels * block / job->panel_blocks, p1 = job->panels * (block + 1) / job->panel_blocks;
    if (i1 > job->rows.m) i1 = job->rows.m;
    for (const gr_int8_product *in = job->products; p1 > 0; in++) {
        gr_int8_product p = *in;
        int64_t panels = panels_of(p.packed);
        p.c += job->first * p.ldc;
        if (p0 < panels) job->level->product(&job->rows, &p, i0, i1, p0, p1 < panels ? p1 : panels);
        p0 = p0 > panels ? p0 - panels : 0;
        p1 -= panels;
    }
}

void gr_int8_by(const int8_level *level, gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products,
                int n_products) {
    const int8_weight *w = products[0].packed;
    int64_t blocks = w->blocks, row_bytes = blocks * (I8_BLOCK + 2 * (int64_t)sizeof(float) + (int64_t)sizeof(int32_t));
    int64_t capacity = GR_CPU_SHARED / row_bytes - LD_MORE, panels = 0;
    uint8_t *at = gr_cpu_shared(d);
    for (int i = 0; i < n_products; i++) panels += panels_of(products[i].packed);
    for (int64_t i = 0, count; i < m; i += count) {
        count = m - i < capacity ? m - i : capacity;
        int64_t ld = count < LD_MORE ? count : count + LD_MORE; /* those of a few rows stand together: they travel between cores */
        int8_job job = {.level = level,
                        .rows = {.m = count, .blocks = blocks, .ld = ld},
                        .a = a + i * lda,
                        .lda = lda,
                        .k = w->k,
                        .products = products,
                        .first = i,
                        .panels = panels};
        job.rows.code = (int8_t *)at;
        job.rows.scale = (float *)(at + count * blocks * I8_BLOCK);
        job.rows.sum = job.rows.scale + ld * blocks;
        job.rows.offset = (int32_t *)(job.rows.sum + ld * blocks);
        job.row_blocks = ceil_div(count, ROW_BLOCK);
        job.row_block = ceil_div(count, job.row_blocks);
        /* few rows read the weight once: long stretches for each thread, in pieces small enough that all are done at the same
         * time */
        int64_t pieces = CHUNKS_A_THREAD * gr_threads_count(gr_cpu_threads(d));
        job.panel_blocks = job.row_blocks > 1 ? ceil_div(panels, PANEL_BLOCK) : panels < pieces ? panels : pieces;
        gr_cpu_for(d, count, gr_cpu_row_grain(w->k), round_rows, &job);
        gr_threads_run(gr_cpu_threads(d), job.panel_blocks * job.row_blocks, product_task, &job);
    }
}

/* ---- the reference ---- */

static void round_generic(const int8_rows *r, const float *a, int64_t lda, int64_t k, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t b = 0; b < r->blocks; b++) int8_round_block(r, i, b, a + i * lda, k);
}

/* Block b of a column: its integers, scale and minimum. */
static void unpack(const int8_weight *w, int64_t column, int64_t b, int8_t q[I8_BLOCK], float *scale, float *min) {
    const uint8_t *block = int8_panel(w, column / I8_COLUMNS) + b * w->block_bytes;
    int64_t j = column % I8_COLUMNS;
    for (int p = 0; p < I8_BLOCK; p++) {
        int64_t at = p % (w->bits == 8 ? 32 : 16) / 4 * 4 * I8_COLUMNS + 4 * j + p % 4;
        q[p] = (int8_t)(w->bits == 8 ? block[2 * I8_COLUMNS + at] : block[4 * I8_COLUMNS + at] >> p / 16 * 4 & 15);
    }
    *scale = gr_load_half(block + 2 * j);
    *min = w->bits == 8 ? 0 : gr_load_half(block + 2 * (I8_COLUMNS + j));
}

static void product_generic(const int8_rows *r, const gr_int8_product *p, int64_t i0, int64_t i1, int64_t p0, int64_t p1) {
    const int8_weight *w = p->packed;
    for (int64_t j = p0 * I8_COLUMNS; j < p1 * I8_COLUMNS && j < w->n; j++) {
        float sum[ROW_BLOCK] = {0}, scale, min;
        for (int64_t b = 0; b < w->blocks; b++) {
            int8_t q[I8_BLOCK];
            unpack(w, j, b, q, &scale, &min);
            for (int64_t i = i0; i < i1; i++) {
                const int8_t *x = r->code + (i * r->blocks + b) * I8_BLOCK;
                int32_t dot = 0;
                for (int e = 0; e < I8_BLOCK; e++) dot += x[e] * q[e];
                sum[i - i0] += (float)dot * (scale * r->scale[b * r->ld + i]);
                if (w->bits == 4) sum[i - i0] += min * r->sum[b * r->ld + i];
            }
        }
        for (int64_t i = i0; i < i1; i++) {
            float *c = p->c + i * p->ldc + j;
            *c = (p->accumulate ? *c : 0) + (sum[i - i0] + (p->bias ? p->bias[j] : 0));
        }
    }
}

void gr_int8_generic(gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products, int n_products) {
    static const int8_level level = {round_generic, product_generic};
    gr_int8_by(&level, d, a, lda, m, products, n_products);
}
