#include "peft/shard.h"

#include <stdlib.h>
#include <string.h>

#include "core/model/machine.h"

bool gr_shard_form(gr_params_form *form, const gr_recipe *r, enum gr_recipe_train_sharding sharding, int rank, int size) {
    static const gr_sharded what[] = {[GR_SHARDING_NONE] = GR_SHARDED_NOTHING,
                                      [GR_SHARDING_ZERO1] = GR_SHARDED_STATES,
                                      [GR_SHARDING_ZERO2] = GR_SHARDED_GRADIENTS,
                                      [GR_SHARDING_ZERO3] = GR_SHARDED_VALUES};
    form->rank = rank, form->size = size, form->sharded = GR_SHARDED_NOTHING;
    if (size == 1 || sharding == GR_SHARDING_NONE) return true;
    if (gr_shard_has_base(r, sharding, size)) return r->model_compute != GR_COMPUTE_INT8; /* nothing that is trained */
    if (r->adapter_method != GR_METHOD_FULL || r->train_optimizer != GR_OPTIMIZER_ADAMW) return false;
    form->sharded = what[sharding];
    return true;
}

/* ---- memory ---- */

enum { NOWHERE = -2 };

/* Values in the places are old. */
static void forget(gr_shard *s) { s->here[0] = s->here[1] = s->here[2] = s->before = NOWHERE; }

typedef struct extent {
    int64_t layer, share; /* floats of the largest layer's gradients, and of a rank's share of it */
} extent;

static extent extent_of(const gr_params *p) {
    extent most = {0};
    for (int64_t i = 0, end; i < p->n_items; i = end) {
        const gr_range layer = gr_params_layer(p, p->items[i].layer);
        int64_t n = 0;
        for (int rank = 0; rank < p->form.size; rank++) {
            const int64_t share = gr_params_share_of(p, layer, rank).n;
            n += share, most.share = GR_MAX(most.share, share);
        }
        most.layer = GR_MAX(most.layer, n), end = layer.end;
    }
    return most;
}

int64_t gr_shard_bytes(const gr_params *p) {
    return p->form.sharded ? p->form.size * extent_of(p).share * (int64_t)sizeof(float) : 0;
}

static void bring(void *context, int64_t layer);

graft_status gr_shard_init(gr_shard *s, gr_comm *comm, gr_params *p, gr_model *m, graft_error *err) {
    *s = (gr_shard){.leaving = NOWHERE, .last = m->config.n_layers};
    if (!p->form.sharded) return GRAFT_OK;
    const extent most = extent_of(p);
    const int64_t bytes = gr_shard_bytes(p);
    s->params = p;
    forget(s);
    s->stride = most.share;
    if (p->form.sharded >= GR_SHARDED_VALUES) m->elsewhere = (gr_elsewhere){bring, s};
    else if (p->device->joined) {
        s->reader = m;
        if (!(s->comes = gr_calloc(s->last + 2, sizeof *s->comes))) return gr_fail_memory(err, "exchanges of ranks");
    }
    graft_status st = gr_mover_init(&s->move, comm, p->device, bytes + most.layer * (int64_t)sizeof(float), err);
    if (st == GRAFT_OK && !(s->parts = p->device->alloc(p->device, bytes)))
        st = gr_fail_device_memory(p->device, bytes, "sums over ranks", err);
    return st;
}

void gr_shard_release(gr_shard *s) {
    if (s->parts) s->params->device->free(s->params->device, s->parts);
    gr_mover_release(&s->move);
    free(s->comes);
    *s = (gr_shard){0};
}

/* What the compute queue is given from now on comes after it. */
static void wait_for(gr_shard *s, gr_mark done) {
    if (done) s->move.device->wait(s->move.device, GR_QUEUE_COMPUTE, done);
}

/* All that was sent for after an update is there. */
static void all_come(gr_shard *s) {
    for (int64_t i = 0; s->comes && i < s->last + 2; i++) wait_for(s, s->comes[i]), s->comes[i] = 0;
    if (s->comes) s->reader->elsewhere = (gr_elsewhere){0};
}

/* A gr_elsewhere of the model, from an update on and until its last layer is there. */
static void await(void *context, int64_t layer) {
    gr_shard *s = context;
    if (layer == s->last) all_come(s);
    else wait_for(s, s->comes[layer + 1]), s->comes[layer + 1] = 0;
}

/* ---- gradients leave ---- */

/* Those that have left. */
static void add_up(gr_shard *s) {
    const gr_params *p = s->params;
    gr_device *d = p->device;
    if (s->leaving == NOWHERE) return;
    const gr_range items = gr_params_layer(p, s->leaving);
    const gr_params_share first = gr_params_share_of(p, items, 0), last = gr_params_share_of(p, items, p->form.size - 1);
    const int64_t n = gr_params_share_of(p, items, p->form.rank).n;
    wait_for(s, s->left);
    if (n > 0) {
        const gr_rows to = {p->sum + p->items[items.begin].mine_at, n, GR_DTYPE_F32}, from = {s->parts, n, GR_DTYPE_F32};
        d->ops->sum_parts(d, s->parts, s->parts, p->form.size, s->stride, n);
        d->ops->add(d, to, from, 1, n);
    }
    d->zero(d, p->grad + first.grad_at, (last.grad_at + last.n - first.grad_at) * (int64_t)sizeof(float));
    s->leaving = NOWHERE;
}

void gr_shard_reduce(gr_shard *s, int64_t layer) {
    const gr_params *p = s->params;
    if (!p || s->st != GRAFT_OK) return;
    const gr_range items = gr_params_layer(p, layer);
    const int64_t float_bytes = (int64_t)sizeof(float);
    add_up(s);                                                                                /* their parts make room */
    for (int at = 0; layer < 0 && at < GR_LEN(s->arrives); at++) wait_for(s, s->arrives[at]); /* an update comes next */
    if (layer < 0) all_come(s);
    if (items.begin == items.end) return;
    const int64_t mine = gr_params_share_of(p, items, p->form.rank).n;
    for (int i = 0; i < p->form.size; i++) {
        const gr_params_share share = gr_params_share_of(p, items, i);
        s->move.out[i] = (gr_piece){p->grad + share.grad_at, share.n * float_bytes};
        s->move.in[i] = (gr_piece){s->parts + i * s->stride, mine * float_bytes};
    }
    s->st = gr_mover_begin(&s->move, "the gradients", &s->left, &s->err);
    if (s->st != GRAFT_OK) return;
    s->leaving = layer;
    if (!p->form.turns || layer < 0) add_up(s);
}

graft_status gr_shard_status(const gr_shard *s, graft_status st, graft_error *err) {
    if (st != GRAFT_OK || s->st == GRAFT_OK) return st;
    if (err) *err = s->err;
    return s->st;
}

/* ---- weights come ---- */

/* Every rank's piece of a layer in one of the types: that of this rank at `mine`, all where they belong in `all`. */
static graft_status gather(gr_shard *s, const char *mine, char *all, const int64_t *at, const int64_t *n, int64_t bytes,
                           gr_mark *done, graft_error *err) {
    const int rank = s->params->form.rank, size = s->params->form.size;
    int64_t sum = 0;
    for (int i = 0; i < size; i++) {
        s->move.out[i] = (gr_piece){(void *)(uintptr_t)mine, n[rank] * bytes}; /* only read */
        s->move.in[i] = (gr_piece){all + at[i] * bytes, n[i] * bytes};
        sum += n[i];
    }
    return sum > 0 ? gr_mover_begin(&s->move, "the weights", done, err) : GRAFT_OK;
}

static graft_status gather_layer(gr_shard *s, gr_range items, gr_mark *done, graft_error *err) {
    const gr_params *p = s->params;
    const gr_params_share own = gr_params_share_of(p, items, p->form.rank);
    int64_t at[2][p->form.size], n[2][p->form.size];
    for (int i = 0; i < p->form.size; i++) {
        const gr_params_share share = gr_params_share_of(p, items, i);
        at[0][i] = share.float_at, n[0][i] = share.n_floats;
        at[1][i] = share.half_at, n[1][i] = share.n_halves;
    }
    const float *floats = p->kept ? p->kept + own.kept_float_at : p->value + own.float_at;
    const uint16_t *halves = p->kept_half ? p->kept_half + own.kept_half_at : p->half + own.half_at;
    graft_status st = gather(s, (const char *)floats, (char *)p->value, at[0], n[0], (int64_t)sizeof *floats, done, err);
    return st == GRAFT_OK ? gather(s, (const char *)halves, (char *)p->half, at[1], n[1], (int64_t)sizeof *halves, done, err) : st;
}

graft_status gr_shard_renew(gr_shard *s, graft_error *err) {
    const gr_params *p = s->params;
    graft_status st = GRAFT_OK;
    gr_mark done = 0;
    if (p) forget(s);
    if (!p || p->form.sharded >= GR_SHARDED_VALUES) return GRAFT_OK;
    for (int64_t layer = -1; layer <= s->last && st == GRAFT_OK; layer++) {
        gr_mark *at = s->comes ? &s->comes[layer + 1] : &done;
        st = gather_layer(s, gr_params_layer(p, layer), at, err);
        if (!s->comes) wait_for(s, done);
    }
    if (s->comes) s->reader->elsewhere = (gr_elsewhere){await, s};
    return st;
}

static graft_status gather_frozen(gr_shard *s, int64_t layer, gr_mark *done, graft_error *err) {
    const gr_frozen *f = s->model->frozen;
    const gr_range mine = gr_frozen_part(s->model, layer, f->rank);
    for (int i = 0; i < f->size; i++) {
        const gr_range part = gr_frozen_part(s->model, layer, i);
        s->move.out[i] = (gr_piece){f->kept + f->layers[layer + 1].kept_at, mine.end - mine.begin};
        s->move.in[i] = (gr_piece){f->place[layer & 1] + part.begin, part.end - part.begin};
    }
    return gr_mover_begin(&s->move, "the base", done, err);
}

/* Where a layer's weights come to, an index of here; -1: it has none that come. */
static int place_of(const gr_shard *s, int64_t layer) {
    if (s->model) return s->model->frozen->layers[layer + 1].bytes > 0 ? (int)(layer & 1) : -1;
    const gr_range items = gr_params_layer(s->params, layer);
    return items.begin == items.end ? -1 : s->params->items[items.begin].early ? 2 : (int)(layer & 1);
}

static graft_status ask_for_layer(gr_shard *s, int64_t layer, graft_error *err);

/* Unless it is there, or on its way. */
static void send_for(gr_shard *s, int64_t layer) {
    const int at = place_of(s, layer);
    if (s->st != GRAFT_OK || at < 0 || s->here[at] == layer) return;
    if (s->reads && s->params->form.rank == 0) s->st = ask_for_layer(s, layer, &s->err);
    if (s->st != GRAFT_OK) return;
    s->st = s->model ? gather_frozen(s, layer, &s->arrives[at], &s->err)
                     : gather_layer(s, gr_params_layer(s->params, layer), &s->arrives[at], &s->err);
    s->here[at] = layer;
}

/* A gr_elsewhere of the model: the layer is there; that which will be read next is sent for, up to the last and down to the
 * first. */
static void bring(void *context, int64_t layer) {
    gr_shard *s = context;
    const int64_t next = layer < 0 || layer > s->before ? layer + 1 : layer - 1;
    const int at = place_of(s, layer);
    send_for(s, layer);
    if (at >= 0) wait_for(s, s->arrives[at]), s->arrives[at] = 0;
    if (!s->reads && layer < s->last && next >= 0) send_for(s, next);
    s->before = layer;
}

/* ---- the frozen base ---- */

bool gr_shard_has_base(const gr_recipe *r, enum gr_recipe_train_sharding sharding, int ranks) {
    return ranks > 1 && r->adapter_method != GR_METHOD_FULL && sharding == GR_SHARDING_ZERO3;
}

graft_status gr_shard_init_base(gr_shard *s, gr_comm *comm, gr_model *m, graft_error *err) {
    int64_t most = 0;
    if (!m->frozen) return GRAFT_OK;
    for (int64_t i = -1; i <= m->config.n_layers; i++) most = GR_MAX(most, 2 * m->frozen->layers[i + 1].bytes);
    s->model = m;
    forget(s);
    m->elsewhere = (gr_elsewhere){bring, s};
    return gr_mover_init(&s->move, comm, m->device, most, err);
}

/* ---- one rank reads, the others serve ---- */

enum { LAYER = -1, ENOUGH = -2 };
typedef struct request {
    int64_t which;          /* a gr_params_buffer, or a whole layer, or that was all */
    int64_t item, first, n; /* item: or the layer */
} request;

/* Floats of r that a rank has. */
static gr_range part_of(const gr_params *p, const request *r, int rank) {
    const gr_param *item = &p->items[r->item];
    const gr_range own = gr_params_own(p, item, rank);
    const int64_t begin = GR_MAX(r->first, own.begin - item->offset), end = GR_MIN(r->first + r->n, own.end - item->offset);
    return (gr_range){begin, GR_MAX(begin, end)};
}

/* All ranks: what r asks for goes to dst of rank 0, the others' own place for their part of it. */
static graft_status bring_part(gr_shard *s, const request *r, float *dst, graft_error *err) {
    gr_params *p = s->params;
    const int size = p->form.size, rank = p->form.rank;
    const gr_range mine = part_of(p, r, rank);
    gr_piece out[size], in[size];
    float *here = rank == 0 ? dst + (mine.begin - r->first) : dst;
    if (mine.begin < mine.end) gr_params_read_part(p, (gr_params_buffer)r->which, r->item, mine.begin, mine.end - mine.begin, here);
    for (int i = 0; i < size; i++) {
        const gr_range part = part_of(p, r, i);
        const int64_t bytes = (part.end - part.begin) * (int64_t)sizeof *dst;
        out[i] = (gr_piece){here, i == 0 && rank != 0 ? (mine.end - mine.begin) * (int64_t)sizeof *dst : 0};
        in[i] = (gr_piece){rank == 0 ? dst + (part.begin - r->first) : NULL, rank == 0 && i != 0 ? bytes : 0};
    }
    return gr_comm_exchange(s->move.comm, "a tensor", out, in, err);
}

static graft_status ask(gr_shard *s, request *r, graft_error *err) {
    graft_status st = gr_comm_await(s->move.comm, "a tensor", GRAFT_OK, err); /* they wait for as long as rank 0 is busy */
    return st == GRAFT_OK ? gr_comm_broadcast(s->move.comm, "a tensor", r, sizeof *r, err) : st;
}

static graft_status ask_for_layer(gr_shard *s, int64_t layer, graft_error *err) {
    return ask(s, &(request){.which = LAYER, .item = layer}, err);
}

/* A gr_params.fetch of rank 0. */
static void fetch(void *context, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst) {
    gr_shard *s = context;
    gr_params *p = s->params;
    request r = {(int64_t)which, item, first, n};
    p->fetch = NULL; /* what is here is read here */
    if (s->st == GRAFT_OK) s->st = ask(s, &r, &s->err);
    if (s->st == GRAFT_OK) s->st = bring_part(s, &r, dst, &s->err);
    if (s->st != GRAFT_OK) memset(dst, 0, (size_t)n * sizeof *dst);
    p->fetch = fetch;
}

/* Of the others: until rank 0 says that it was all. */
static graft_status serve(gr_shard *s, const char *what, graft_error *err) {
    float *own = gr_calloc(gr_params_largest(s->params), sizeof *own);
    graft_status st = own ? GRAFT_OK : gr_fail_memory(err, what);
    for (request r = {0};;) {
        GR_TRY(gr_comm_await(s->move.comm, what, st, err));
        GR_TRY(gr_comm_broadcast(s->move.comm, what, &r, sizeof r, err));
        if (r.which == ENOUGH) break;
        if (r.which == LAYER) bring(s, r.item);
        else GR_TRY(bring_part(s, &r, own, err));
        GR_TRY(gr_shard_status(s, GRAFT_OK, err));
    }
done:
    s->reads = false;
    free(own);
    return st;
}

graft_status gr_shard_begin_reading(gr_shard *s, const char *what, graft_error *err) {
    if (!s->params) return GRAFT_OK;
    if (s->comes && s->reader->elsewhere.bring) { /* no pass has come since the update */
        all_come(s);
        gr_model_renew(s->reader);
    }
    s->reads = true;
    if (s->params->form.rank != 0) return serve(s, what, err);
    s->params->fetch = fetch, s->params->fetch_context = s;
    return GRAFT_OK;
}

graft_status gr_shard_end_reading(gr_shard *s, const char *what, graft_status mine, graft_error *err) {
    request end = {.which = ENOUGH};
    if (!s->params || s->params->form.rank != 0) return mine;
    s->reads = false, s->params->fetch = NULL;
    if (s->st != GRAFT_OK) return gr_shard_status(s, GRAFT_OK, err); /* why what was read was wrong */
    graft_status st = gr_comm_await(s->move.comm, what, mine, err);
    return st == GRAFT_OK ? gr_comm_broadcast(s->move.comm, what, &end, sizeof end, err) : st;
}
