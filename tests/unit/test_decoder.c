/* The decoder on made-up models of every kind of layer: norms of heads and of branches, biases. Every gradient against finite
 * differences; recomputation, a KV cache, what is chosen from its rows, work that comes again, the sums of a step, and what the
 * hooks are told. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/decoder.h"
#include "core/model/sample.h"
#include "tests/unit/machine.h"
#include "tests/unit/params_copy.h"

enum { L = 2, C = 24, H = 4, K = 2, D = 8, F = 40, V = 50, TOKENS = 23 };

typedef struct world {
    gr_arch arch;
    gr_module_names names[GR_SLOT_COUNT];
    gr_model *m;
    gr_params p;
    gr_batch b;
    float moved[H * D * C]; /* other values of a matrix */
} world;

/* A parameter of so many values about `mean`; where it lies once the set is allocated. */
static int64_t put(world *w, int64_t rows, int64_t cols) {
    int64_t index;
    char name[32];
    snprintf(name, sizeof name, "p%lld", (long long)w->p.n_items);
    assert_ok(gr_params_add(&w->p, name, rows, cols, rows > 1, &index, &err));
    return index;
}

static void fill_linear(world *w, gr_linear *l, int64_t rows, int64_t cols, int64_t *next) {
    int64_t i = (*next)++;
    *l = (gr_linear){.w = {GR_DTYPE_F32, rows, cols, gr_params_value(&w->p, i)}, .dw = gr_params_grad(&w->p, i)};
}

static void fill_vector(world *w, gr_vector *v, int64_t *next) {
    int64_t i = (*next)++;
    *v = (gr_vector){gr_params_value(&w->p, i), gr_params_grad(&w->p, i)};
}

static void fill_values(gr_params *p) {
    float *values = read_all(p, GR_PARAMS_VALUE);
    for (int64_t i = 0; i < p->n_items; i++)
        for (int64_t k = 0; k < p->items[i].n; k++)
            values[p->items[i].offset + k] =
                (p->items[i].rows == 1 ? 1 : 0) + 0.3f * (float)sin(1.3 * (double)k + 0.7 * (double)(k % 7) + (double)i);
    write_all(p, GR_PARAMS_VALUE, values);
    free(values);
}

static world open_wide_world(bool qk_norm, bool branch_norm, int64_t vocab) {
    static const gr_slot heads[] = {GR_SLOT_Q_NORM, GR_SLOT_K_NORM}, branches[] = {GR_SLOT_ATTENTION_NORM, GR_SLOT_MLP_NORM};
    world w = {.arch = gr_archs[0]};
    memcpy(w.names, gr_archs[0].modules, sizeof w.names);
    for (int i = 0; i < 2; i++) {
        if (qk_norm) w.names[heads[i]] = (gr_module_names){"a", "b"};
        if (branch_norm) w.names[branches[i]] = (gr_module_names){"c", "d"};
    }
    w.arch.modules = w.names;
    gr_model_config c = {.arch = &w.arch,
                         .n_layers = L,
                         .hidden = C,
                         .n_heads = H,
                         .n_kv_heads = K,
                         .head_dim = D,
                         .ffn = F,
                         .vocab = vocab,
                         .max_positions = 64,
                         .norm_eps = 1e-5f,
                         .rope_theta = 10000};
    assert_ok(gr_model_make(&w.m, &c, machine, GR_DTYPE_F32, 64, &err));
    w.m->config.arch = &gr_archs[0]; /* it has told all: w moves */
    const int64_t shape[7][2] = {{H * D, C}, {K * D, C}, {K * D, C}, {C, H * D}, {F, C}, {F, C}, {C, F}};
    put(&w, vocab, C), put(&w, vocab, C), put(&w, 1, C);
    for (int64_t i = 0; i < L; i++) {
        for (int k = 0; k < 7; k++) put(&w, shape[k][0], shape[k][1]);
        for (int k = 0; k < 6; k++) put(&w, 1, k == 2 || k == 3 ? D : C);
    }
    assert_ok(gr_params_allocate(&w.p, machine.device, true, &err));
    fill_values(&w.p);
    for (int i = 0; i < H * D * C; i++) w.moved[i] = 0.01f * (float)(i % 13);
    int64_t next = 0;
    fill_linear(&w, &w.m->embed, vocab, C, &next), fill_linear(&w, &w.m->head, vocab, C, &next), fill_vector(&w, &w.m->norm, &next);
    for (int64_t i = 0; i < L; i++) {
        gr_layer *l = &w.m->layers[i];
        gr_linear *linears[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        gr_vector *norms[] = {&l->input_norm, &l->post_norm, &l->q_norm, &l->k_norm, &l->attention_norm, &l->mlp_norm};
        for (int k = 0; k < 7; k++) fill_linear(&w, linears[k], shape[k][0], shape[k][1], &next);
        for (int k = 0; k < 6; k++) fill_vector(&w, norms[k], &next);
    }
    int32_t ids[TOKENS];
    uint8_t target[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 7 % V, target[i] = i % 3 != 0;
    assert_ok(gr_batch_append(&w.b, ids, target, 15, 1, &err));
    assert_ok(gr_batch_append(&w.b, ids + 15, target + 15, TOKENS - 15, 2, &err));
    return w;
}

static world open_world(bool qk_norm, bool branch_norm) { return open_wide_world(qk_norm, branch_norm, V); }

static void close_world(world *w) {
    gr_model_free(w->m);
    gr_params_release(&w->p);
    gr_batch_release(&w->b);
}

/* The gradients of all parameters, from zero; nll of the rows. */
static float *gradients(world *w, gr_recompute recompute, float nll[TOKENS], const gr_layer_hooks *hooks) {
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = TOKENS, .training = true, .recompute = recompute, .hooks = hooks};
    machine.device->zero(machine.device, w->p.grad, w->p.n_floats * (int64_t)sizeof(float));
    assert_ok(gr_decoder_new(&d, w->m, &o, &err));
    assert_ok(gr_decoder_train(d, &w->b, &(gr_loss){.scale = 1 / (float)w->b.n_targets, .nll = nll}, &err));
    gr_decoder_free(d);
    return read_all(&w->p, GR_PARAMS_GRAD);
}

static double mean_loss(world *w) {
    gr_decoder *d;
    float nll[TOKENS];
    double sum = 0;
    assert_ok(gr_decoder_new(&d, w->m, &(gr_decoder_options){.max_tokens = TOKENS}, &err));
    assert_ok(gr_decoder_eval(d, &w->b, nll, &err));
    gr_decoder_free(d);
    for (int r = 0; r < TOKENS; r++) sum += (double)nll[r];
    return sum / (double)w->b.n_targets;
}

/* Is item i a norm that this model does not have? */
static bool is_absent(const world *w, int64_t i) {
    int64_t k = (i - 3) % 13 - 7;
    return i >= 3 && ((k == 2 || k == 3) ? !w->m->qk_norm : (k == 4 || k == 5) && !w->m->branch_norm);
}

/* Along each gradient the loss changes by its norm. */
static void gradients_are_slopes(void **state) {
    const double step = 0.01;
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        world w = open_world(kind & 1, kind & 2);
        float nll[TOKENS], *grad = gradients(&w, GR_RECOMPUTE_NONE, nll, NULL), *values = read_all(&w.p, GR_PARAMS_VALUE);
        for (int64_t i = 0; i < w.p.n_items; i++) {
            int64_t n = w.p.items[i].n;
            const float *g = grad + w.p.items[i].offset, *v = values + w.p.items[i].offset;
            float *moved = calloc((size_t)n, sizeof *moved);
            double norm = 0, loss[2];
            for (int64_t k = 0; k < n; k++) norm += (double)g[k] * (double)g[k];
            norm = sqrt(norm);
            if (is_absent(&w, i)) assert_true(norm == 0);
            else assert_true(norm > 1e-4);
            for (int side = 0; side < 2 && norm > 0; side++) {
                for (int64_t k = 0; k < n; k++) moved[k] = (float)((double)v[k] + (side ? -step : step) * (double)g[k] / norm);
                gr_params_write(&w.p, GR_PARAMS_VALUE, i, moved);
                gr_model_renew(w.m);
                loss[side] = mean_loss(&w);
            }
            gr_params_write(&w.p, GR_PARAMS_VALUE, i, v);
            gr_model_renew(w.m);
            free(moved);
            double slope = norm > 0 ? (loss[0] - loss[1]) / (2 * step) : 0;
            if (fabs(slope - norm) > 0.01 * norm + 1e-4)
                fail_msg("kind %d, %s: slope %g, norm of the gradient %g", kind, w.p.items[i].name, slope, norm);
        }
        free(grad), free(values);
        close_world(&w);
    }
}

static void recomputation_gives_the_same_bits(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        world w = open_world(kind & 1, kind & 2);
        float nll[TOKENS], again[TOKENS], *kept = gradients(&w, GR_RECOMPUTE_NONE, nll, NULL);
        for (int policy = GR_RECOMPUTE_SELECTIVE; policy <= GR_RECOMPUTE_FULL; policy++) {
            float *made = gradients(&w, (gr_recompute)policy, again, NULL);
            assert_memory_equal(made, kept, (size_t)w.p.n_floats * sizeof *made);
            assert_memory_equal(nll, again, sizeof nll);
            free(made);
        }
        free(kept);
        close_world(&w);
    }
}

/* Logits of the last row of each sequence: in one go, and through a cache in pieces of two tokens. */
static void cache_gives_the_same_logits(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        world w = open_world(kind & 1, kind & 2);
        gr_decoder *d;
        gr_kv_cache cache;
        gr_batch piece = {0};
        float whole[2][V], stepped[V];
        int32_t best;
        const int32_t last[] = {14, TOKENS - 1};
        assert_ok(gr_decoder_new(&d, w.m, &(gr_decoder_options){.max_tokens = TOKENS}, &err));
        assert_ok(gr_decoder_logits(d, &w.b, last, 2, &whole[0][0], &err));
        assert_ok(gr_kv_cache_init(&cache, w.m, 2, 20, &err));
        for (int32_t s = 0; s < 2; s++) {
            for (int64_t at = w.b.offset[s], n; at < w.b.offset[s + 1]; at += n) {
                n = GR_MIN(2, w.b.offset[s + 1] - at);
                gr_batch_clear(&piece);
                assert_ok(gr_batch_append(&piece, w.b.tokens + at, NULL, n, 0, &err));
                for (int64_t i = 0; i < n; i++) piece.positions[i] = (int32_t)(at - w.b.offset[s] + i);
                assert_ok(gr_decoder_step(d, &piece, &cache, &s, stepped, &err));
                cache.len[s] -= n; /* the same step again: the best of these logits */
                assert_ok(gr_decoder_step_best(d, &piece, &cache, &s, &best, &err));
                assert_int_equal(cache.len[s], at - w.b.offset[s] + n);
                for (int64_t v = 0; v < V; v++) assert_true(v < best ? stepped[v] < stepped[best] : stepped[v] <= stepped[best]);
            }
            bool card = gr_starts_with(machine.device->level, "cuda"); /* few rows are other products there */
            for (int64_t v = 0; card && v < V; v++) assert_true(fabsf(stepped[v] - whole[s][v]) < 1e-5f * (1 + fabsf(whole[s][v])));
            if (!card) assert_memory_equal(stepped, whole[s], sizeof stepped);
        }
        gr_batch_release(&piece);
        gr_kv_cache_release(&cache);
        gr_decoder_free(d);
        close_world(&w);
    }
}

/* Tokens of two sequences, of more than a listing holds: chosen by listings where these decide, and by the rows that made them,
 * they are those of whole rows of the same steps. Of flat rows some are decided, of peaked ones most. */
static void listings_give_the_tokens_of_rows(void **state) {
    (void)state;
    enum { WIDE = 3000, STEPS = 24 };
    static const gr_generate_options ways[] = {{.temperature = 0.02f, .top_p = 0.9f, .repetition_penalty = 1},
                                               {.temperature = 2, .top_p = 1, .repetition_penalty = 1.3f},
                                               {.temperature = 0.1f, .top_p = 1, .top_k = 40, .repetition_penalty = 1.1f}};
    static float rows[2][WIDE], row[WIDE];
    static int32_t scratch[WIDE];
    static gr_listing list[2];
    world w = open_wide_world(true, true, WIDE);
    gr_decoder *d;
    assert_ok(gr_decoder_new(&d, w.m, &(gr_decoder_options){.max_tokens = TOKENS, .listings = 2}, &err));
    int decided = 0, open = 0;
    for (int way = 0; way < GR_LEN(ways); way++) {
        const gr_generate_options *o = &ways[way];
        gr_kv_cache cache;
        gr_batch b = {0};
        const int32_t slots[] = {1, 0};
        int32_t seen[2][STEPS + 1] = {{3}, {5}};
        assert_ok(gr_kv_cache_init(&cache, w.m, 2, STEPS, &err));
        for (int i = 0; i < STEPS; i++) {
            gr_batch_clear(&b);
            for (int s = 0; s < 2; s++) {
                assert_ok(gr_batch_append(&b, &seen[s][i], NULL, 1, 0, &err));
                b.positions[s] = i;
            }
            assert_ok(gr_decoder_step(d, &b, &cache, slots, &rows[0][0], &err));
            cache.len[0]--, cache.len[1]--; /* the same step again */
            assert_ok(gr_decoder_step_list(d, &b, &cache, slots, gr_sample_temperature(o), list, &err));
            for (int s = 0; s < 2; s++) {
                const float random = (float)(i * 7 % STEPS) / STEPS;
                int32_t id = gr_sample_listed(&list[s], WIDE, seen[s], i + 1, o, random, scratch);
                decided += id >= 0, open += id < 0;
                assert_ok(gr_decoder_step_row(d, s, row, &err));
                assert_memory_equal(row, rows[s], sizeof row);
                seen[s][i + 1] = gr_sample(row, WIDE, seen[s], i + 1, o, random, scratch);
                if (id >= 0) assert_int_equal(id, seen[s][i + 1]);
            }
        }
        gr_kv_cache_release(&cache);
        gr_batch_release(&b);
    }
    assert_true(decided > 2 * STEPS && open > 0);
    gr_decoder_free(d);
    close_world(&w);
}

/* ---- work that comes again ---- */

static bool (*repeat)(gr_device *d, const gr_repeat *key);
static int64_t given;

static bool count_repeat(gr_device *d, const gr_repeat *key) {
    bool yes = repeat(d, key);
    given += yes;
    return yes;
}

enum { DECODED = 21 };

/* Tokens for sequences `from` to 2 of a cache, `each` of them; logits of both. */
static void decode(gr_decoder *d, gr_kv_cache *cache, int from, int64_t each, float logits[2][V]) {
    gr_batch b = {0};
    int32_t slots[2], ids[4];
    for (int s = from; s < 2; s++) {
        int64_t at = b.n, len = cache->len[s];
        for (int64_t i = 0; i < each; i++) ids[i] = (int32_t)((len + i) * 5 + 11 * s) % V;
        assert_ok(gr_batch_append(&b, ids, NULL, each, 0, &err));
        for (int64_t i = 0; i < each; i++) b.positions[at + i] = (int32_t)(len + i);
        slots[s - from] = s;
    }
    assert_ok(gr_decoder_step(d, &b, cache, slots, logits[from], &err));
    gr_batch_release(&b);
}

/* The logits of tokens that are decoded one by one, while all changes that a record of the work could miss: other sequences, larger
 * batches, new values, forms and caches. */
static void decode_all(float logits[DECODED][2][V], bool repeats) {
    world w = open_world(true, true);
    gr_decoder *d;
    gr_kv_cache cache[2];
    machine.device->repeat = repeats ? count_repeat : NULL;
    given = 0;
    assert_ok(gr_decoder_new(&d, w.m, &(gr_decoder_options){.max_tokens = TOKENS}, &err));
    for (int i = 0; i < 2; i++) assert_ok(gr_kv_cache_init(&cache[i], w.m, 2, 60, &err));
    memset(logits, 0, sizeof(float[DECODED][2][V]));
    decode(d, &cache[0], 0, 4, logits[0]), decode(d, &cache[1], 0, 3, logits[0]);
    for (int i = 0; i < DECODED; i++) {
        if (i == 8) gr_params_write(&w.p, GR_PARAMS_VALUE, 3, w.moved), gr_model_renew(w.m);
        if (i == 13) gr_model_unplace(w.m);
        if (i == 18) decode(d, &cache[0], 0, 4, logits[i]);
        decode(d, &cache[i >= 4 && i < 8], i % 5 == 4, 1, logits[i]);
    }
    for (int i = 0; i < 2; i++) gr_kv_cache_release(&cache[i]);
    gr_decoder_free(d);
    close_world(&w);
    machine.device->repeat = repeat;
}

static void decoding_repeats_itself(void **state) {
    static float plain[DECODED][2][V], again[DECODED][2][V];
    (void)state;
    repeat = machine.device->repeat;
    decode_all(plain, false);
    decode_all(again, repeat != NULL);
    assert_memory_equal(plain, again, sizeof plain);
    if (gr_starts_with(machine.device->level, "cuda")) assert_true(given > 0 && given < DECODED - 5);
}

enum { TRAINED = 11 };

/* The gradients of batches of one shape as they add up: of other tokens and targets each, with another shape between them, and with
 * new values, which go to another place later. */
static float *train_all(bool repeats) {
    world w = open_world(true, true);
    gr_decoder *d;
    gr_batch longer = {0};
    const int32_t ids[] = {4, 8, 15, 16, 23, 42, 1, 2, 3};
    assert_ok(gr_batch_append(&longer, ids, NULL, GR_LEN(ids), 3, &err));
    for (int i = 1; i < GR_LEN(ids); i++) longer.targets[i - 1] = ids[i], longer.weight[i - 1] = 1, longer.n_targets++;
    machine.device->repeat = repeats ? count_repeat : NULL;
    given = 0;
    machine.device->zero(machine.device, w.p.grad, w.p.n_floats * (int64_t)sizeof(float));
    assert_ok(gr_decoder_new(&d, w.m, &(gr_decoder_options){.max_tokens = TOKENS, .training = true}, &err));
    for (int i = 0; i < TRAINED; i++) {
        for (int k = 0; k < TOKENS; k++) w.b.tokens[k] = (w.b.tokens[k] + 3 * i) % V, w.b.weight[k] = (k + i) % 3 != 0;
        if (i == 6) gr_params_write(&w.p, GR_PARAMS_VALUE, 3, w.moved), gr_model_renew(w.m);
        if (i == 8) gr_model_unplace(w.m);
        assert_ok(gr_decoder_train(d, &w.b, &(gr_loss){.scale = 1 / (float)(TOKENS + i)}, &err));
        if (i == 5) assert_ok(gr_decoder_train(d, &longer, &(gr_loss){.scale = 1}, &err));
    }
    gr_decoder_free(d);
    float *grad = read_all(&w.p, GR_PARAMS_GRAD);
    gr_batch_release(&longer);
    close_world(&w);
    machine.device->repeat = repeat;
    return grad;
}

static void training_repeats_itself(void **state) {
    (void)state;
    world w = open_world(true, true);
    repeat = machine.device->repeat;
    float *plain = train_all(false), *again = train_all(repeat != NULL);
    assert_memory_equal(plain, again, (size_t)w.p.n_floats * sizeof *plain);
    if (gr_starts_with(machine.device->level, "cuda")) assert_in_range(given, 2, 2 * (TRAINED + 1) - 4);
    free(plain), free(again);
    close_world(&w);
}

/* The sum that stays on the device is that of the rows, in their order; a row that is not finite is named. */
static void sums_stay_on_the_device(void **state) {
    (void)state;
    world w = open_world(true, true);
    gr_device *dev = machine.device;
    gr_decoder *d;
    gr_step_stats sums, *stats = dev->alloc(dev, sizeof *stats);
    gr_step_stats none = {.optimizer_step = 4};
    float nll[TOKENS];
    double sum = 0;
    assert_non_null(stats);
    dev->upload(dev, stats, &none, sizeof none);
    dev->ops->step_begin(dev, stats);
    assert_ok(gr_decoder_new(&d, w.m, &(gr_decoder_options){.max_tokens = TOKENS, .training = true}, &err));
    gr_loss loss = {.scale = 1, .stats = stats, .nll = nll};
    assert_ok(gr_decoder_train(d, &w.b, &loss, &err));
    dev->download(dev, &sums, stats, sizeof sums, 0);
    for (int r = 0; r < TOKENS; r++) sum += (double)nll[r] * w.b.weight[r];
    assert_true(sums.nll == sum && sums.bad_row == -1 && sums.optimizer_step == 4);
    float *embed = calloc(V * C, sizeof *embed);
    for (int i = 0; i < V * C; i++) embed[i] = NAN;
    gr_params_write(&w.p, GR_PARAMS_VALUE, 0, embed);
    free(embed);
    loss.first_row = 100;
    assert_ok(gr_decoder_train(d, &w.b, &loss, &err));
    dev->download(dev, &sums, stats, sizeof sums, 0);
    assert_true(isnan(sums.nll));
    assert_int_equal(sums.bad_row, 100); /* row 0 predicts a target */
    gr_decoder_free(d);
    dev->free(dev, stats);
    close_world(&w);
}

/* ---- rows of tokens: a second segment of embedding and head ---- */

enum { LISTS = 4 };
static const struct {
    int32_t ids[V];
    int64_t n;
} lists[LISTS] = {{{3, 7, 8, 49}, 4}, {{0, 1, 2, 3, 4, 5}, 6}, {{20, 21, 22}, 3}, {{47, 48, 49}, 3}};

static int32_t every_token[V];

static void freeze(world *w) {
    w->m->embed.dw = w->m->head.dw = w->m->norm.dw = NULL;
    for (int64_t i = 0; i < L; i++) {
        gr_layer *l = &w->m->layers[i];
        gr_linear *linears[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        gr_vector *norms[] = {&l->input_norm, &l->post_norm, &l->q_norm, &l->k_norm, &l->attention_norm, &l->mlp_norm};
        for (int k = 0; k < 7; k++) linears[k]->dw = NULL;
        for (int k = 0; k < 6; k++) norms[k]->dw = NULL;
    }
}

/* Rows ids[n] of a matrix [V,C] at from into rows close together at to; spoil: and what they were becomes nonsense. */
static void move_rows(float *to, float *from, const int32_t *ids, int64_t n, bool spoil) {
    for (int64_t i = 0; i < n; i++) {
        memcpy(to + i * C, from + ids[i] * C, C * sizeof *to);
        for (int64_t k = 0; spoil && k < C; k++) from[ids[i] * C + k] = 9;
    }
}

static double distance(const float *a, const float *b, int64_t n) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++)
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]), norm += (double)b[i] * (double)b[i];
    return sqrt(difference / norm);
}

/* Rows of a segment in a world where all else is frozen and those of the whole matrix are nonsense: the loss is that of a world
 * that trains everything, bit for bit; gradients pass a head in parts, whose sums end in other places. */
static void check_segment(const int32_t *ids, int64_t n, bool tied) {
    world full = open_world(true, false), part = open_world(true, false);
    world *worlds[] = {&full, &part};
    for (int i = 0; tied && i < 2; i++) {
        gr_model *m = worlds[i]->m;
        m->config.tied = true, m->head.w = m->embed.w, m->head.dw = m->embed.dw;
    }
    float nll[TOKENS], again[TOKENS], *want = gradients(&full, GR_RECOMPUTE_NONE, nll, NULL), wanted[2][V * C], made[2][2][V * C];
    gr_params rows = {0};
    int64_t index;
    for (int i = 0; i < 2 - tied; i++) assert_ok(gr_params_add(&rows, i ? "head" : "embed", n, C, true, &index, &err));
    assert_ok(gr_params_allocate(&rows, machine.device, true, &err));
    freeze(&part);
    for (int i = 0; i < 2 - tied; i++) {
        float *matrix = calloc(V * C, sizeof *matrix);
        gr_params_read(&part.p, GR_PARAMS_VALUE, i, matrix);
        move_rows(wanted[i], matrix, ids, n, true);
        gr_params_write(&part.p, GR_PARAMS_VALUE, i, matrix);
        gr_params_write(&rows, GR_PARAMS_VALUE, i, wanted[i]);
        move_rows(wanted[i], want + full.p.items[i].offset, ids, n, false);
        free(matrix);
    }
    for (int i = 0; i < 2 - tied; i++) {
        gr_rows_values values = {ids, n, gr_params_value(&rows, i), gr_params_grad(&rows, i)};
        assert_ok(gr_model_attach_rows(part.m, i > 0, &values, &err));
    }
    assert_int_equal(gr_model_attach_rows(part.m, false, &(gr_rows_values){.ids = ids, .n = n}, &err), GRAFT_BAD_USAGE);
    for (int policy = GR_RECOMPUTE_NONE; policy <= GR_RECOMPUTE_FULL; policy++) {
        machine.device->zero(machine.device, rows.grad, rows.n_floats * (int64_t)sizeof(float));
        free(gradients(&part, (gr_recompute)policy, again, NULL));
        assert_memory_equal(nll, again, sizeof nll);
        for (int i = 0; i < 2 - tied; i++) {
            gr_params_read(&rows, GR_PARAMS_GRAD, i, made[i][policy > 0]);
            assert_true(distance(made[i][policy > 0], wanted[i], n * C) < 1e-6);
            if (policy > 0) assert_memory_equal(made[i][0], made[i][1], (size_t)(n * C) * sizeof(float));
        }
    }
    assert_true(mean_loss(&full) == mean_loss(&part));
    gr_model_detach_rows(part.m);
    assert_true(mean_loss(&full) != mean_loss(&part));
    free(want);
    gr_params_release(&rows);
    close_world(&full), close_world(&part);
}

static void a_segment_trains_as_the_whole_does(void **state) {
    (void)state;
    for (int i = 0; i < V; i++) every_token[i] = i;
    for (int tied = 0; tied < 2; tied++) {
        for (int i = 0; i < LISTS; i++) check_segment(lists[i].ids, lists[i].n, tied);
        check_segment(every_token, V, tied);
    }
}

static char told[256];

static void tell(char what, int64_t layer) {
    snprintf(told + strlen(told), sizeof told - strlen(told), "%c%lld ", what, (long long)layer);
}
static void on_enter(void *context, int64_t layer) { tell(*(const char *)context, layer); }
static void on_leave(void *context, int64_t layer) { (void)context, tell(')', layer); }
static void on_gradient(void *context, int64_t layer) { (void)context, tell('!', layer); }

static void hooks_bracket_layers(void **state) {
    (void)state;
    world w = open_world(false, false);
    float nll[TOKENS];
    gr_layer_hooks hooks = {on_enter, on_leave, on_gradient, "("};
    *told = 0;
    free(gradients(&w, GR_RECOMPUTE_FULL, nll, &hooks));
    assert_string_equal(told, "(-1 )-1 (0 )0 (1 )1 (2 )2 !2 (1 )1 !1 (0 )0 !0 (-1 )-1 !-1 ");
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_slopes),
        cmocka_unit_test(recomputation_gives_the_same_bits),
        cmocka_unit_test(cache_gives_the_same_logits),
        cmocka_unit_test(sums_stay_on_the_device),
        cmocka_unit_test(hooks_bracket_layers),
        cmocka_unit_test(a_segment_trains_as_the_whole_does),
        cmocka_unit_test(listings_give_the_tokens_of_rows),
        cmocka_unit_test(decoding_repeats_itself),
        cmocka_unit_test(training_repeats_itself),
    };
    return cmocka_run_group_tests(tests, open_machine, close_machine);
}
