#include "adapters/impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "kernels/philox.h"

static const double MAX_ALPHA = 1e6; /* far beyond use, and no product with it leaves float32 */

/* ---- which modules: names, suffixes, regular expressions ---- */

static graft_status unknown_target(const char *target, gr_model *m, graft_error *err) {
    enum { MAX_NAMES = 16 };
    const char *names[MAX_NAMES] = {"all-linear"};
    gr_str list = {0};
    int n = 1;
    for (int64_t i = 0; i < m->n_modules && n < MAX_NAMES; i++) {
        bool seen = false;
        names[n] = gr_last_component(m->modules[i].name);
        for (int j = 0; j < n; j++) seen |= strcmp(names[j], names[n]) == 0;
        n += !seen;
    }
    for (int i = 0; i < n; i++) gr_str_printf(&list, "%s%s", i ? ", " : "", names[i]);
    const char *nearest = gr_nearest(target, names, n);
    graft_status st = gr_fail(err, GRAFT_BAD_USAGE, "target_modules: \"%s\" names no module of the model%s%s%s; there are %s",
                              target, nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "", list.data);
    gr_str_release(&list);
    return st;
}

/* Marks what one target names: PEFT takes list items as whole-component suffixes and a regular expression as a full match. */
static graft_status mark_target(bool *wanted, const char *target, gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    pcre2_code *regex = NULL;
    bool found = false, all = strcmp(target, "all-linear") == 0;
    if (strpbrk(target, "*+?[](){}^$|\\")) GR_TRY(gr_regex_compile(&regex, "(?:", target, ")$", err));
    for (int64_t i = 0; i < m->n_modules; i++) {
        bool yes;
        const char *name = m->modules[i].name;
        if (all) yes = i > 0 && strcmp(name, "lm_head") != 0;
        else if (!regex) yes = *target && gr_has_suffix(name, target);
        else GR_TRY(gr_regex_match(&yes, regex, target, name, err));
        wanted[i] |= yes;
        found |= yes;
    }
    if (!found) st = unknown_target(target, m, err);
done:
    pcre2_code_free(regex);
    return st;
}

/* *value = that of the first pattern matching name as PEFT does it, else unchanged. */
static graft_status pattern_value(double *value, const gr_pattern *patterns, pcre2_code *const *regex, int n, const char *name,
                                  graft_error *err) {
    for (int i = 0; i < n; i++) {
        bool yes;
        graft_status st = gr_regex_match(&yes, regex[i], patterns[i].pattern, name, err);
        if (st != GRAFT_OK) return st;
        if (!yes) continue;
        *value = patterns[i].value;
        return GRAFT_OK;
    }
    return GRAFT_OK;
}

/* ---- building ---- */

static graft_status copy_patterns(const gr_pattern **out, gr_arena *arena, const gr_pattern *from, int n, graft_error *err) {
    gr_pattern *copy = gr_arena_alloc(arena, (int64_t)sizeof *copy * GR_MAX(n, 1));
    if (!copy) return gr_fail_memory(err, "adapter");
    for (int i = 0; i < n; i++) {
        copy[i] = (gr_pattern){.pattern = gr_arena_strdup(arena, from[i].pattern), .value = from[i].value};
        if (!copy[i].pattern) return gr_fail_memory(err, "adapter");
    }
    *out = copy;
    return GRAFT_OK;
}

static graft_status check_values(const gr_adapter_config *c, graft_error *err) {
    if (c->rows_alone) return GRAFT_OK;
    if (c->rank < 1 || c->rank > INT16_MAX)
        return gr_fail(err, GRAFT_BAD_USAGE, "rank is %lld, expected 1 to %d", (long long)c->rank, INT16_MAX);
    if (!(fabs(c->alpha) <= MAX_ALPHA)) /* also for NaN */
        return gr_fail(err, GRAFT_BAD_USAGE, "alpha is %g, expected at most %g", c->alpha, MAX_ALPHA);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return gr_fail(err, GRAFT_BAD_USAGE, "dropout is %g, expected 0 to below 1", c->dropout);
    for (int i = 0; i < c->n_rank_pattern; i++) {
        double r = c->rank_pattern[i].value;
        if (!(r >= 1 && r <= INT16_MAX) || r != floor(r))
            return gr_fail(err, GRAFT_BAD_USAGE, "rank_pattern: \"%s\" has rank %g, expected a whole number from 1 to %d",
                           c->rank_pattern[i].pattern, r, INT16_MAX);
    }
    for (int i = 0; i < c->n_alpha_pattern; i++)
        if (!(fabs(c->alpha_pattern[i].value) <= MAX_ALPHA))
            return gr_fail(err, GRAFT_BAD_USAGE, "alpha_pattern: \"%s\" has alpha %g, expected at most %g",
                           c->alpha_pattern[i].pattern, c->alpha_pattern[i].value, MAX_ALPHA);
    return GRAFT_OK;
}

static graft_status compile_patterns(pcre2_code ***out, const gr_pattern *patterns, int n, graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = gr_calloc(GR_MAX(n, 1), sizeof **out);
    if (!*out) return gr_fail_memory(err, "patterns");
    for (int i = 0; i < n; i++) GR_TRY(gr_regex_compile(&(*out)[i], "(.*\\.)?(", patterns[i].pattern, ")$", err));
done:
    return st;
}

static void free_patterns(pcre2_code **regex, int n) {
    for (int i = 0; regex && i < n; i++) pcre2_code_free(regex[i]);
    free(regex);
}

static graft_status add_module(gr_adapter *a, const gr_adapter_module *module, graft_error *err) {
    graft_status st;
    char name[128];
    bool embedding = gr_adapter_is_embedding(module);
    gr_adapter_module *copy = &a->modules[a->n_modules];
    *copy = *module;
    snprintf(name, sizeof name, "%s%s", module->name, embedding ? ".lora_embedding_A" : ".lora_A.weight");
    GR_TRY(gr_params_add(a->params, name, embedding ? module->in : module->rank, embedding ? module->rank : module->in, true,
                         &copy->a, err));
    snprintf(name, sizeof name, "%s%s", module->name, embedding ? ".lora_embedding_B" : ".lora_B.weight");
    GR_TRY(gr_params_add(a->params, name, module->out, module->rank, true, &copy->b, err));
    a->n_modules++;
done:
    return st;
}

static graft_status add_modules(gr_adapter *a, gr_model *m, const bool *wanted, graft_error *err) {
    graft_status st = GRAFT_OK;
    const gr_adapter_config *c = &a->config;
    pcre2_code **ranks = NULL, **alphas = NULL;
    int64_t n = m->n_modules;
    a->modules = gr_calloc(n, sizeof *a->modules);
    if (!a->modules) GR_TRY(gr_fail_memory(err, "adapter"));
    GR_TRY(compile_patterns(&ranks, c->rank_pattern, c->n_rank_pattern, err));
    GR_TRY(compile_patterns(&alphas, c->alpha_pattern, c->n_alpha_pattern, err));
    for (int64_t i = 0; i < n; i++) {
        if (!wanted[i]) continue;
        gr_adapter_module module = {.index = i, .alpha = c->alpha, .out = m->modules[i].out, .in = m->modules[i].in};
        double rank = (double)c->rank;
        snprintf(module.name, sizeof module.name, "%s", m->modules[i].name);
        GR_TRY(pattern_value(&rank, c->rank_pattern, ranks, c->n_rank_pattern, module.name, err));
        GR_TRY(pattern_value(&module.alpha, c->alpha_pattern, alphas, c->n_alpha_pattern, module.name, err));
        module.rank = (int64_t)rank;
        GR_TRY(add_module(a, &module, err));
    }
done:
    free_patterns(ranks, c->n_rank_pattern);
    free_patterns(alphas, c->n_alpha_pattern);
    return st;
}

/* What the files record as target_modules: the last component where every module of the model that ends in it is adapted, else the
 * module's whole name. Any reader that knows PEFT's suffix rule then finds exactly these modules. */
static graft_status record_targets(gr_adapter *a, gr_model *m, const bool *wanted, graft_error *err) {
    const char **targets = gr_arena_alloc(&a->arena, (int64_t)sizeof *targets * GR_MAX(a->n_modules, 1));
    int n = 0;
    if (!targets) return gr_fail_memory(err, "adapter");
    for (int64_t j = 0; j < a->n_modules; j++) {
        const char *target = gr_last_component(a->modules[j].name);
        bool all = true, seen = false;
        for (int64_t i = 0; i < m->n_modules; i++) all &= wanted[i] || !gr_has_suffix(m->modules[i].name, target);
        if (!all) target = a->modules[j].name;
        for (int i = 0; i < n; i++) seen |= strcmp(targets[i], target) == 0;
        if (!seen) targets[n++] = target;
    }
    a->config.target_modules = targets;
    a->config.n_target_modules = n;
    return GRAFT_OK;
}

graft_status gr_adapter_build(gr_adapter **out, const gr_adapter_config *config, gr_model *m, const bool *wanted, gr_params *params,
                              graft_error *err) {
    graft_status st;
    gr_adapter *a = NULL;
    GR_TRY(check_values(config, err));
    a = gr_calloc(1, sizeof *a);
    if (!a) GR_TRY(gr_fail_memory(err, "adapter"));
    a->params = params ? params : &a->own;
    a->config = *config;
    a->vocab = m->config.vocab;
    a->config.base = gr_arena_strdup(&a->arena, config->base ? config->base : "");
    if (!a->config.base) GR_TRY(gr_fail_memory(err, "adapter"));
    GR_TRY(copy_patterns(&a->config.rank_pattern, &a->arena, config->rank_pattern, config->n_rank_pattern, err));
    GR_TRY(copy_patterns(&a->config.alpha_pattern, &a->arena, config->alpha_pattern, config->n_alpha_pattern, err));
    GR_TRY(add_modules(a, m, wanted, err));
    GR_TRY(record_targets(a, m, wanted, err));
    GR_TRY(gr_adapter_add_rows(a, config, m, err));
    *out = a;
    a = NULL;
done:
    gr_adapter_free(a);
    return st;
}

graft_status gr_adapter_plan(gr_adapter **out, const gr_adapter_config *config, gr_model *m, gr_params *params, graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = NULL;
    bool *wanted = gr_calloc(m->n_modules, sizeof *wanted);
    if (!wanted) GR_TRY(gr_fail_memory(err, "adapter"));
    if (config->n_target_modules < 1 && !config->rows_alone)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "target_modules is empty: name modules such as q_proj, or all-linear"));
    for (int i = 0; i < config->n_target_modules; i++) GR_TRY(mark_target(wanted, config->target_modules[i], m, err));
    GR_TRY(gr_adapter_build(out, config, m, wanted, params, err));
done:
    free(wanted);
    return st;
}

int64_t gr_adapter_n_parameters(const gr_adapter *a) {
    int64_t n = 0;
    for (int64_t j = 0; j < a->n_modules; j++) n += a->modules[j].rank * (a->modules[j].in + a->modules[j].out);
    for (int i = 0; i < GR_ROWS_COUNT; i++) n += a->config.rows[i].n > 0 ? a->params->items[a->rows[i]].n : 0;
    return n;
}

void gr_adapter_free(gr_adapter *a) {
    if (!a) return;
    gr_params_release(&a->own);
    free(a->modules);
    gr_arena_release(&a->arena);
    free(a);
}

/* ---- values ---- */

static float normal(uint64_t seed, uint64_t module, uint64_t element) {
    uint32_t word[4];
    gr_philox(word, seed, GR_PURPOSE_INIT, module, element);
    double u = ((double)word[0] + 1) * 0x1p-32, v = (double)word[1] * 0x1p-32; /* u in (0, 1]: its logarithm is finite */
    return (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
}

graft_status gr_adapter_init(gr_adapter *a, uint64_t seed, graft_error *err) {
    float *staging = gr_calloc(gr_params_largest(a->params), sizeof *staging);
    if (!staging) return gr_fail_memory(err, "adapter");
    for (int64_t j = 0; j < a->n_modules; j++) {
        const gr_adapter_module *module = &a->modules[j];
        bool embedding = gr_adapter_is_embedding(module);
        int64_t i = embedding ? module->b : module->a;
        float bound = (float)(1 / sqrt((double)module->in));
        for (int64_t k = 0; k < a->params->items[i].n; k++)
            staging[k] = embedding ? normal(seed, (uint64_t)j, (uint64_t)k)
                                   : bound * (2 * gr_random_uniform(seed, GR_PURPOSE_INIT, (uint64_t)j, (uint64_t)k) - 1);
        gr_params_write(a->params, GR_PARAMS_VALUE, i, staging);
    }
    free(staging);
    return GRAFT_OK;
}

graft_status gr_adapter_copy(gr_adapter *a, const gr_adapter *from, graft_error *err) {
    bool rescaled = false;
    graft_status st = gr_adapter_copy_rows(a, from, err);
    if (st != GRAFT_OK || from->config.rows_alone) return st;
    if (a->config.rows_alone)
        return gr_fail(err, GRAFT_BAD_INPUT, "the adapter to start from has a LoRA, and rows alone are trained: merge it first");
    for (int64_t j = 0; j < GR_MAX(a->n_modules, from->n_modules); j++) {
        const gr_adapter_module *to = j < a->n_modules ? &a->modules[j] : NULL;
        const gr_adapter_module *src = j < from->n_modules ? &from->modules[j] : NULL;
        if (!to || !src || strcmp(to->name, src->name) != 0)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "the adapter to start from has %s where %s is trained: use the same target_modules",
                           src ? src->name : "no further module", to ? to->name : "no further module");
        if (to->rank != src->rank || to->in != src->in || to->out != src->out)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: the adapter to start from has rank %lld (%lld -> %lld), expected %lld (%lld -> %lld)", to->name,
                           (long long)src->rank, (long long)src->in, (long long)src->out, (long long)to->rank, (long long)to->in,
                           (long long)to->out);
        rescaled |= fabs(gr_adapter_scale(a, to) - gr_adapter_scale(from, src)) > 1e-6;
    }
    if (rescaled) gr_warn("the adapter to start from had another alpha: its effect is rescaled to the recipe's");
    float *staging = gr_calloc(gr_params_largest(from->params), sizeof *staging);
    if (!staging) return gr_fail_memory(err, "adapter");
    for (int64_t i = 0; i < 2 * a->n_modules; i++) {
        const gr_adapter_module *to = &a->modules[i / 2], *src = &from->modules[i / 2];
        gr_params_read(from->params, GR_PARAMS_VALUE, i % 2 ? src->b : src->a, staging);
        gr_params_write(a->params, GR_PARAMS_VALUE, i % 2 ? to->b : to->a, staging);
    }
    free(staging);
    return GRAFT_OK;
}

/* ---- slots of the model ---- */

double gr_adapter_scale(const gr_adapter *a, const gr_adapter_module *module) {
    double rank = (double)module->rank;
    return module->alpha / (a->config.use_rslora ? sqrt(rank) : rank);
}

static graft_status check_fits(const gr_adapter_module *module, gr_model *m, graft_error *err) {
    if (module->index >= m->n_modules)
        return gr_fail(err, GRAFT_BAD_INPUT, "the model has no module %s that the adapter targets", module->name);
    const gr_module *own = &m->modules[module->index];
    if (strcmp(own->name, module->name) != 0 || own->out != module->out || own->in != module->in)
        return gr_fail(err, GRAFT_BAD_INPUT, "the adapter's %s (%lld -> %lld) does not fit the model's %s (%lld -> %lld)",
                       module->name, (long long)module->in, (long long)module->out, own->name, (long long)own->in,
                       (long long)own->out);
    return GRAFT_OK;
}

graft_status gr_adapter_attach(gr_adapter *a, gr_model *m, double user_scale, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool planned = !a->params->value; /* the shapes alone */
    GR_TRY(gr_adapter_check_rows(a, m, user_scale, err));
    /* Room for all first: a failure leaves the model as it was. */
    for (int64_t j = 0; j < a->n_modules; j++) {
        GR_TRY(check_fits(&a->modules[j], m, err));
        gr_linear *l = m->modules[a->modules[j].index].linear;
        gr_lora *more = realloc(l->lora, (size_t)(l->n_lora + 1) * sizeof *more);
        if (!more) GR_TRY(gr_fail_memory(err, "adapter slots"));
        l->lora = more;
    }
    gr_model_unplace(m);
    GR_TRY(gr_adapter_attach_rows(a, m, err));
    for (int64_t j = 0; j < a->n_modules; j++) {
        const gr_adapter_module *module = &a->modules[j];
        gr_linear *l = m->modules[module->index].linear;
        l->lora[l->n_lora++] = (gr_lora){.rank = module->rank,
                                         .scale = (float)(user_scale * gr_adapter_scale(a, module)),
                                         .A = planned ? NULL : gr_params_value(a->params, module->a),
                                         .B = planned ? NULL : gr_params_value(a->params, module->b),
                                         .dA = gr_params_grad(a->params, module->a),
                                         .dB = gr_params_grad(a->params, module->b)};
    }
done:
    return st;
}

void gr_adapter_detach_all(gr_model *m) {
    gr_model_detach_rows(m);
    for (int64_t i = 0; i < m->n_modules; i++) {
        gr_linear *l = m->modules[i].linear;
        free(l->lora);
        l->lora = NULL, l->n_lora = 0;
    }
}
