#include "core/model/params.h"

#include <stdlib.h>
#include <string.h>

#include "core/model/machine.h"

graft_status gr_params_add(gr_params *p, const char *name, int64_t rows, int64_t cols, bool decay, int64_t *index,
                           graft_error *err) {
    int64_t n, end;
    GR_ASSERT(!p->value);
    if (!gr_mul_ok(&n, rows, cols) || !gr_add_ok(&end, p->n_floats, n) || end > INT64_MAX / 64)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %lld x %lld is too large", name, (long long)rows, (long long)cols);
    if (p->form.optimizer == GR_OPTIMIZER_ADAFACTOR && rows > 1 &&
        (rows > GR_FACTORS_MOST / 2 || cols > GR_FACTORS_MOST - 2 * rows))
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: %lld x %lld is more than adafactor does; use another train.optimizer", name,
                       (long long)rows, (long long)cols);
    if (!gr_grow(&p->items, &p->items_capacity, p->n_items + 1, sizeof *p->items)) return gr_fail_memory(err, "parameters");
    char *copy = gr_strdup(name);
    if (!copy) return gr_fail_memory(err, "parameters");
    p->items[p->n_items] =
        (gr_param){.name = copy, .rows = rows, .cols = cols, .offset = p->n_floats, .n = n, .decay = decay, .lr_scale = 1};
    *index = p->n_items++;
    p->n_parameters += n;
    p->n_floats = gr_params_whole(end);
    return GRAFT_OK;
}

/* ---- where everything lies ---- */

/* Bytes of a piece of state, so that the next is aligned. */
static int64_t piece(int64_t n, int64_t size) { return (n * size + 63) / 64 * 64; }

static int64_t blocks_of(const gr_param *item) { return (item->n + GR_MOMENTS_BLOCK - 1) / GR_MOMENTS_BLOCK; }

enum { SMALL = 4096 }; /* elements below which 8 bits save nothing, as in bitsandbytes */
static bool in_8_bits(const gr_params *p, const gr_param *item) {
    return p->form.optimizer == GR_OPTIMIZER_ADAMW_8BIT && item->rows > 1 && item->n >= SMALL;
}

static int64_t state_bytes(const gr_params *p, const gr_param *item) {
    switch (p->form.optimizer) {
    case GR_OPTIMIZER_ADAMW_8BIT:
        return 2 * (in_8_bits(p, item) ? piece(item->n, 1) + piece(blocks_of(item), sizeof(float)) : piece(item->n, sizeof(float)));
    case GR_OPTIMIZER_ADAFACTOR:
        return item->rows > 1 ? piece(item->rows, sizeof(float)) + piece(item->cols, sizeof(float)) : piece(item->n, sizeof(float));
    default: return 0;
    }
}

static gr_dtype type_of(const gr_params *p, const gr_param *item) {
    return p->form.weights == GR_TRAINED_FP32 || item->rows == 1 ? GR_DTYPE_F32 : GR_DTYPE_BF16;
}

typedef struct lengths {
    int64_t floats, halves, grads;          /* elements */
    int64_t mine, mine_floats, mine_halves; /* likewise, of this rank's parts: of both types, of each */
    int64_t state;                          /* bytes */
} lengths;

/* Where an item lies; its states follow what `all` has. */
static void set_places(const gr_params *p, gr_param *item, const lengths *all, int64_t value_at, int64_t grad_at) {
    const int64_t end = item->offset + item->n;
    const gr_range own = gr_params_own(p, item, p->form.rank);
    item->type = type_of(p, item);
    item->value_at = value_at;
    item->grad_at = grad_at;
    item->state_at = all->state;
    item->first = GR_MIN(own.begin, end) - item->offset;
    item->mine = GR_MAX(0, GR_MIN(own.end, end) - own.begin);
    item->mine_at = all->mine;
    item->kept_at = item->type == GR_DTYPE_F32 ? all->mine_floats : all->mine_halves;
}

/* Where things lie of which one layer at a time is there, and those of early tensors, which come first. */
typedef struct turns {
    int64_t early, kept; /* where the next early one lies; elements of them all */
    int64_t layer, most; /* where the next of this layer lies in its place; elements of a place */
} turns;

/* Where n elements lie: in place `turn`. */
static int64_t take_turn(turns *t, bool early, int64_t turn, int64_t n) {
    int64_t *next = early ? &t->early : &t->layer, at = early ? *next : t->kept + turn * t->most + *next;
    *next += n;
    return at;
}

static void measure_turns(const gr_params *p, turns *floats, turns *halves, turns *grads) {
    int64_t of_layer[3] = {0};
    turns *const all[3] = {floats, halves, grads};
    for (int64_t i = 0; i < p->n_items; i++) {
        const gr_param *item = &p->items[i];
        const bool is_half = type_of(p, item) != GR_DTYPE_F32, counts[3] = {!is_half, is_half, true};
        if (i > 0 && item->layer != p->items[i - 1].layer) memset(of_layer, 0, sizeof of_layer);
        for (int k = 0; k < 3; k++) {
            const int64_t n = counts[k] ? gr_params_whole(item->n) : 0;
            if (item->early) all[k]->kept += n;
            else of_layer[k] += n, all[k]->most = GR_MAX(all[k]->most, of_layer[k]);
        }
    }
}

/* The length of everything and, with `set`, where each item lies in it. */
static lengths lay_out(const gr_params *p, gr_param *set) {
    const bool grads_turn = p->form.release || p->form.sharded >= GR_SHARDED_GRADIENTS;
    const bool two = p->form.turns && p->form.sharded >= GR_SHARDED_GRADIENTS;
    const bool values_turn = p->form.sharded >= GR_SHARDED_VALUES;
    lengths all = {0};
    turns floats = {0}, halves = {0}, grads = {0};
    measure_turns(p, &floats, &halves, &grads);
    for (int64_t i = 0; i < p->n_items; i++) {
        const gr_param *item = &p->items[i];
        const gr_range own = gr_params_own(p, item, p->form.rank);
        const int64_t n = gr_params_whole(item->n), mine = own.end - own.begin;
        const bool is_half = type_of(p, item) != GR_DTYPE_F32;
        if (i == 0 || item->layer != p->items[i - 1].layer) floats.layer = halves.layer = grads.layer = 0;
        const int64_t value_turn = take_turn(is_half ? &halves : &floats, item->early, item->layer & 1, n);
        const int64_t grad_turn = take_turn(&grads, item->early, two ? item->layer & 1 : 0, n);
        int64_t *values = is_half ? &all.halves : &all.floats;
        if (set) set_places(p, &set[i], &all, values_turn ? value_turn : *values, grads_turn ? grad_turn : item->offset);
        *values += n, all.mine += mine;
        *(is_half ? &all.mine_halves : &all.mine_floats) += mine;
        all.state += state_bytes(p, item);
    }
    all.grads = grads_turn ? grads.kept + (two ? 2 : 1) * grads.most : p->n_floats;
    if (values_turn) all.floats = floats.kept + 2 * floats.most, all.halves = halves.kept + 2 * halves.most;
    return all;
}

void gr_params_bytes(const gr_params *p, int64_t bytes[GR_PARAMS_BUFFERS]) {
    const lengths all = lay_out(p, NULL);
    const bool kept = p->form.sharded >= GR_SHARDED_VALUES;
    const int64_t mine_halves = all.mine_halves * (int64_t)sizeof(uint16_t);
    const int64_t mine = all.mine * (int64_t)sizeof(float), moments = p->form.optimizer == GR_OPTIMIZER_ADAMW ? mine : 0;
    const int64_t each[GR_PARAMS_BUFFERS] = {all.floats * (int64_t)sizeof(float),
                                             all.halves * (int64_t)sizeof(uint16_t),
                                             p->form.weights == GR_TRAINED_BF16 ? mine_halves : 0,
                                             all.grads * (int64_t)sizeof(float),
                                             moments,
                                             moments,
                                             p->form.sharded ? mine : 0,
                                             kept ? all.mine_floats * (int64_t)sizeof(float) : 0,
                                             kept ? mine_halves : 0,
                                             all.state};
    memcpy(bytes, each, sizeof each);
}

graft_status gr_params_allocate(gr_params *p, gr_device *device, bool training, graft_error *err) {
    void *buffers[GR_PARAMS_BUFFERS] = {0};
    int64_t bytes[GR_PARAMS_BUFFERS];
    static const struct {
        const char *name;
        bool training;
    } what[GR_PARAMS_BUFFERS] = {{"trained weights", false}, {"trained weights", false}, {"trained weights", false},
                                 {"gradients", true},        {"optimizer states", true}, {"optimizer states", true},
                                 {"gradients", true},        {"trained weights", false}, {"trained weights", false},
                                 {"optimizer states", true}};
    int missing = -1;
    gr_params_bytes(p, bytes);
    (void)lay_out(p, p->items);
    p->device = device;
    for (int i = 0; i < GR_PARAMS_BUFFERS; i++) {
        if ((what[i].training && !training) || (bytes[i] == 0 && i > 0)) continue;
        buffers[i] = device->alloc(device, bytes[i]);
        if (!buffers[i] && missing < 0) missing = i;
        if (buffers[i]) device->zero(device, buffers[i], bytes[i]);
    }
    p->value = buffers[0], p->half = buffers[1], p->low = buffers[2], p->grad = buffers[3], p->m = buffers[4], p->v = buffers[5];
    p->sum = buffers[6], p->kept = buffers[7], p->kept_half = buffers[8], p->state = buffers[9];
    p->n_grads = training ? bytes[3] / (int64_t)sizeof(float) : 0;
    p->n_mine = training ? lay_out(p, NULL).mine : 0;
    return missing < 0 ? GRAFT_OK : gr_fail_device_memory(device, bytes[missing], what[missing].name, err);
}

int64_t gr_params_find(const gr_params *p, const char *name) {
    for (int64_t i = 0; i < p->n_items; i++)
        if (strcmp(p->items[i].name, name) == 0) return i;
    return -1;
}

int64_t gr_params_largest(const gr_params *p) {
    int64_t largest = 0;
    for (int64_t i = 0; i < p->n_items; i++) largest = GR_MAX(largest, p->items[i].n);
    return largest;
}

/* ---- to the host and back ---- */

/* Where the first element lies of this rank's part of a tensor of either type. */
static float *own_floats(const gr_params *p, const gr_param *x) {
    return p->kept ? p->kept + x->kept_at : p->value + x->value_at + x->first;
}

static uint16_t *own_halves(const gr_params *p, const gr_param *x) {
    return p->kept_half ? p->kept_half + x->kept_at : p->half + x->value_at + x->first;
}

/* Of element `first` of an item; of what is sharded, it is in this rank's part. */
static float *place_of(const gr_params *p, gr_params_buffer which, const gr_param *x, int64_t first) {
    switch (which) {
    case GR_PARAMS_VALUE: return own_floats(p, x) + (first - x->first);
    case GR_PARAMS_GRAD: return p->sum ? p->sum + x->mine_at + (first - x->first) : p->grad + x->grad_at + first;
    case GR_PARAMS_M: return p->m + x->mine_at + (first - x->first);
    default: return p->v + x->mine_at + (first - x->first);
    }
}

enum { CONVERTED = 2048 }; /* values at a time */

static void read_halves(const gr_params *p, const gr_param *x, int64_t first, int64_t n, float *dst) {
    uint16_t half[CONVERTED], low[CONVERTED] = {0};
    for (int64_t i = 0, count; i < n; i += count) {
        const int64_t at = first + i - x->first;
        count = GR_MIN(CONVERTED, n - i);
        p->device->download(p->device, half, own_halves(p, x) + at, count * (int64_t)sizeof *half, 0);
        if (p->low) p->device->download(p->device, low, p->low + x->kept_at + at, count * (int64_t)sizeof *low, 0);
        for (int64_t k = 0; k < count; k++) { /* see gr_trained */
            uint32_t bits = ((uint32_t)half[k] - (low[k] >> 15)) << 16 | low[k];
            memcpy(&dst[i + k], &bits, sizeof bits);
        }
    }
}

static void write_halves(gr_params *p, const gr_param *x, int64_t first, int64_t n, const float *src) {
    uint16_t half[CONVERTED], low[CONVERTED];
    for (int64_t i = 0, count; i < n; i += count) {
        const int64_t at = first + i;
        count = GR_MIN(CONVERTED, n - i);
        for (int64_t k = 0; k < count; k++) {
            uint32_t bits;
            memcpy(&bits, &src[i + k], sizeof bits);
            low[k] = (uint16_t)bits;
            half[k] = p->low ? (uint16_t)((bits + 0x8000) >> 16) : gr_f32_to_bf16(src[i + k]);
        }
        p->device->upload(p->device, own_halves(p, x) + (at - x->first), half, count * (int64_t)sizeof *half);
        const int64_t begin = GR_MAX(at, x->first), end = GR_MIN(at + count, x->first + x->mine);
        if (p->low && begin < end)
            p->device->upload(p->device, p->low + x->kept_at + (begin - x->first), low + (begin - at),
                              (end - begin) * (int64_t)sizeof *low);
    }
}

static bool halved(gr_params_buffer which, const gr_param *x) { return which == GR_PARAMS_VALUE && x->type == GR_DTYPE_BF16; }

static bool holds_part(const gr_params *p) { return p->form.sharded >= GR_SHARDED_VALUES; }

/* Are floats first .. first + n there for all that is asked? */
static bool is_here(const gr_params *p, gr_params_buffer which, const gr_param *x, int64_t first, int64_t n) {
    const bool all =
        which == GR_PARAMS_VALUE ? !holds_part(p) && !(halved(which, x) && p->low) : which == GR_PARAMS_GRAD && !p->sum;
    return all || n == 0 || (first >= x->first && first + n <= x->first + x->mine);
}

void gr_params_read_part(const gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst) {
    const gr_param *x = &p->items[item];
    GR_ASSERT(first >= 0 && n >= 0 && first + n <= x->n);
    if (p->fetch && !is_here(p, which, x, first, n)) {
        p->fetch(p->fetch_context, which, item, first, n, dst);
        return;
    }
    GR_ASSERT(is_here(p, which, x, first, n));
    if (halved(which, x)) read_halves(p, x, first, n, dst);
    else if (n > 0) p->device->download(p->device, dst, place_of(p, which, x, first), n * (int64_t)sizeof *dst, 0);
}

void gr_params_read(const gr_params *p, gr_params_buffer which, int64_t item, float *dst) {
    gr_params_read_part(p, which, item, 0, p->items[item].n, dst);
}

void gr_params_write_part(gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, const float *src) {
    const gr_param *x = &p->items[item];
    GR_ASSERT(first >= 0 && n >= 0 && first + n <= x->n);
    if (which != GR_PARAMS_VALUE || holds_part(p)) { /* of what is sharded, this rank's part */
        const int64_t begin = GR_MAX(first, x->first), end = GR_MIN(first + n, x->first + x->mine);
        src += begin - first, first = begin, n = GR_MAX(0, end - begin);
    }
    if (halved(which, x)) write_halves(p, x, first, n, src);
    else if (n > 0) p->device->upload(p->device, place_of(p, which, x, first), src, n * (int64_t)sizeof *src);
}

void gr_params_write(gr_params *p, gr_params_buffer which, int64_t item, const float *src) {
    gr_params_write_part(p, which, item, 0, p->items[item].n, src);
}

gr_weight gr_params_weight(const gr_params *p, int64_t i) {
    const gr_param *item = &p->items[i];
    const void *data = item->type == GR_DTYPE_F32 ? (const void *)gr_params_value(p, i) : p->half + item->value_at;
    return (gr_weight){.dtype = item->type, .rows = item->rows, .cols = item->cols, .data = data};
}

/* ---- the optimizer ---- */

int gr_params_state(const gr_params *p, int64_t i, gr_state_part parts[GR_STATE_PARTS]) {
    const gr_param *x = &p->items[i];
    char *at = p->state ? p->state + x->state_at : NULL;
    int64_t blocks = blocks_of(x), floats = piece(x->n, sizeof(float));
    if (p->form.optimizer == GR_OPTIMIZER_ADAFACTOR && x->rows == 1) {
        parts[0] = (gr_state_part){"adafactor_all", at, 1, x->n, false};
        return 1;
    }
    if (p->form.optimizer == GR_OPTIMIZER_ADAFACTOR) {
        parts[0] = (gr_state_part){"adafactor_row", at, 1, x->rows, false};
        parts[1] = (gr_state_part){"adafactor_col", at + piece(x->rows, sizeof(float)), 1, x->cols, false};
        return 2;
    }
    if (!in_8_bits(p, x)) {
        const bool flat = p->form.optimizer == GR_OPTIMIZER_ADAMW, all = x->mine == x->n;
        const int64_t rows = all ? x->rows : 1, cols = all ? x->cols : x->mine;
        parts[0] = (gr_state_part){"adam_exp_avg", flat ? (void *)(p->m + x->mine_at) : at, rows, cols, false};
        parts[1] = (gr_state_part){"adam_exp_avg_sq", flat ? (void *)(p->v + x->mine_at) : at + floats, rows, cols, false};
        return 2;
    }
    char *scales = at + 2 * piece(x->n, 1);
    parts[0] = (gr_state_part){"adam8_exp_avg", at, x->rows, x->cols, true};
    parts[1] = (gr_state_part){"adam8_exp_avg_sq", at + piece(x->n, 1), x->rows, x->cols, true};
    parts[2] = (gr_state_part){"adam8_exp_avg_scale", scales, 1, blocks, false};
    parts[3] = (gr_state_part){"adam8_exp_avg_sq_scale", scales + piece(blocks, sizeof(float)), 1, blocks, false};
    return 4;
}

static gr_trained trained_of(const gr_params *p, const gr_param *x) {
    if (x->type == GR_DTYPE_F32) return (gr_trained){.f32 = own_floats(p, x)};
    return (gr_trained){.bf16 = own_halves(p, x),
                        .low = p->low ? p->low + x->kept_at : NULL,
                        .seed = p->form.seed,
                        .first = (uint64_t)(x->offset + x->first)};
}

static const float *gradient_of(const gr_params *p, const gr_param *x) {
    return p->sum ? p->sum + x->mine_at : p->grad + x->grad_at;
}

/* One item, with states of its own. */
static void update_item(const gr_params *p, int64_t i, const gr_adamw *a, const gr_step_stats *s) {
    const gr_param *x = &p->items[i];
    const gr_ops *op = p->device->ops;
    const gr_trained w = trained_of(p, x);
    const float *grad = gradient_of(p, x);
    gr_state_part part[GR_STATE_PARTS];
    if (x->mine == 0) return;
    int n = gr_params_state(p, i, part);
    if (p->form.optimizer == GR_OPTIMIZER_ADAFACTOR) {
        const gr_factors f = n == 2 ? (gr_factors){.row = part[0].data, .col = part[1].data} : (gr_factors){.all = part[0].data};
        op->adafactor(p->device, &w, &f, grad, x->rows, x->cols, a, s);
    } else if (n == 4) {
        const gr_moments8 m = {.m = part[0].data, .v = part[1].data, .m_scale = part[2].data, .v_scale = part[3].data};
        op->adamw_8bit(p->device, &w, &m, grad, x->n, a, s);
    } else op->adamw(p->device, &w, part[0].data, part[1].data, grad, x->mine, a, s);
}

static gr_adamw how_for(const gr_param *item, double learning_rate, const gr_adamw *how) {
    gr_adamw a = *how;
    a.lr = (float)(learning_rate * (double)item->lr_scale);
    if (!item->decay) a.weight_decay = 0;
    return a;
}

/* Are these updated alike, and is what is updated of the second right behind that of the first, gaps between them aside? */
static bool go_together(const gr_params *p, const gr_param *a, const gr_param *b) {
    return a->decay == b->decay && a->lr_scale == b->lr_scale && (!p->form.sharded || a->layer == b->layer);
}

void gr_params_update(gr_params *p, int64_t first, int64_t last, double learning_rate, const gr_adamw *how,
                      const gr_step_stats *s) {
    bool flat = p->form.optimizer == GR_OPTIMIZER_ADAMW && p->form.weights == GR_TRAINED_FP32;
    for (int64_t i = first, end; i < last; i = end) { /* runs of tensors that are updated alike */
        const gr_param *item = &p->items[i], *begin = NULL;
        const gr_adamw a = how_for(item, learning_rate, how);
        int64_t n = 0;
        end = i + 1;
        if (!flat) {
            update_item(p, i, &a, s);
            continue;
        }
        while (end < last && go_together(p, item, &p->items[end])) end++;
        for (int64_t k = i; k < end; k++) {
            if (!begin && p->items[k].mine > 0) begin = &p->items[k];
            n += gr_params_whole(p->items[k].mine);
        }
        if (!begin) continue;
        const gr_trained w = trained_of(p, begin);
        p->device->ops->adamw(p->device, &w, p->m + begin->mine_at, p->v + begin->mine_at, gradient_of(p, begin), n, &a, s);
    }
}

void gr_params_release(gr_params *p) {
    for (int64_t i = 0; i < p->n_items; i++) free(p->items[i].name);
    free(p->items);
    void *buffers[GR_PARAMS_BUFFERS] = {p->value, p->half, p->low, p->grad, p->m, p->v, p->sum, p->kept, p->kept_half, p->state};
    for (int i = 0; i < GR_PARAMS_BUFFERS; i++)
        if (buffers[i]) p->device->free(p->device, buffers[i]);
    *p = (gr_params){0};
}
