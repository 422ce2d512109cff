/* Do all ranks train the same? They are started by one command, but may run where it means something else: another folder, another
 * environment, another processor. What differs would train on in silence, or have ranks wait for each other in vain. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "peft/recipe_schema.h"
#include "peft/run.h"

enum { SHOWN_BYTES = 56 };

/* A value as ranks compare it. */
typedef struct said {
    uint64_t hash;
    char text[SHOWN_BYTES]; /* its beginning, for people */
} said;

static void say(said *s, const char *text) {
    s->hash = XXH3_64bits(text, strlen(text));
    snprintf(s->text, sizeof s->text, "%s", text);
}

/* mine[n] against rank 0's. what: of them all, for the message; names[n]. */
static graft_status compare(gr_comm *comm, const char *what, const said *mine, const char *const *names, int64_t n,
                            graft_error *err) {
    graft_status st = GRAFT_OK;
    const int64_t bytes = n * (int64_t)sizeof *mine;
    said *first = gr_calloc(n, sizeof *first);
    if (!first) st = gr_fail_memory(err, what);
    GR_TRY(gr_comm_agree(comm, what, st, NULL, err)); /* one that has failed before comes here too: it leaves */
    memcpy(first, mine, (size_t)bytes);
    GR_TRY(gr_comm_broadcast(comm, what, first, bytes, err));
    for (int64_t i = 0; i < n && st == GRAFT_OK; i++)
        if (mine[i].hash != first[i].hash)
            st = gr_fail(err, GRAFT_BAD_USAGE, "%s: %s here, %s at rank 0: all ranks must train the same", names[i], mine[i].text,
                         first[i].text);
    st = gr_comm_agree(comm, what, st, NULL, err);
done:
    free(first);
    return st;
}

/* Each rank may have its own of these: where a host has its files and what it lends. Of data the contents are compared. */
static bool is_local(int row) {
    static const int rows[] = {GR_ROW__extends,  GR_ROW_model_base,    GR_ROW_adapter_init_from,  GR_ROW_data_train,
                               GR_ROW_data_eval, GR_ROW_data_template, GR_ROW_data_cache,         GR_ROW__device,
                               GR_ROW__threads,  GR_ROW_log_every,     GR_ROW_train_memory_limit, GR_ROW_log_tensorboard,
                               GR_ROW_log_plot};
    for (int i = 0; i < GR_LEN(rows); i++)
        if (rows[i] == row) return true;
    return false;
}

graft_status gr_alike_settings(const gr_run *run, graft_error *err) {
    said mine[GR_N_RECIPE_KEYS] = {0};
    char name[GR_N_RECIPE_KEYS][64];
    const char *names[GR_N_RECIPE_KEYS];
    if (!run->comm) return GRAFT_OK;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        gr_str value = {0};
        if (!is_local(i)) gr_key_print(k, run->r, &value);
        snprintf(name[i], sizeof name[i], "%s%s%s", k->section, *k->section ? "." : "", k->name);
        names[i] = name[i];
        say(&mine[i], value.data ? value.data : "");
        gr_str_release(&value);
    }
    return compare(run->comm, "the settings", mine, names, GR_N_RECIPE_KEYS, err);
}

static void say_number(said *s, uint64_t number) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    say(s, text);
}

graft_status gr_alike_work(const gr_run *run, graft_error *err) {
    static const char *const names[] = {"type of the products",  "tokens of data.train", "samples of data.train",
                                        "data.train, by a hash", "tokens of data.eval",  "samples of data.eval",
                                        "data.eval, by a hash",  "trained parameters",   "model.base, by a hash"};
    const gr_dataset *sets[] = {run->train, run->eval};
    said mine[GR_LEN(names)] = {0};
    if (!run->comm) return GRAFT_OK;
    say(&mine[0], gr_dtype_get(run->session.model->compute)->name);
    for (int i = 0; i < GR_LEN(sets); i++) {
        const gr_dataset *d = sets[i];
        say_number(&mine[1 + 3 * i], d ? (uint64_t)d->offset[d->n_samples] : 0);
        say_number(&mine[2 + 3 * i], d ? (uint64_t)d->n_samples : 0);
        say_number(&mine[3 + 3 * i], d ? d->key : 0);
    }
    say_number(&mine[7], (uint64_t)run->params.n_parameters);
    say_number(&mine[8], gr_weights_glance(run->session.model->weights));
    return compare(run->comm, "the data", mine, names, GR_LEN(names), err);
}

graft_status gr_alike_values(const gr_run *run, graft_error *err) {
    static const char *const names[] = {"the adapter's first values (adapter.init_from), by a hash"};
    const gr_params *p = &run->params;
    graft_status st = GRAFT_OK;
    uint64_t hash = 0;
    said mine = {0};
    if (!run->comm || !run->adapter) return GRAFT_OK; /* of a whole model they are those of the base */
    float *value = gr_calloc(gr_params_largest(p), sizeof *value);
    if (!value) st = gr_fail_memory(err, names[0]);
    for (int64_t i = 0; value && i < p->n_items; i++) {
        gr_params_read(p, GR_PARAMS_VALUE, i, value);
        hash = XXH3_64bits_withSeed(value, (size_t)p->items[i].n * sizeof *value, hash);
    }
    free(value);
    if (st == GRAFT_OK) st = gr_device_status(run->session.machine.device, err);
    say_number(&mine, hash);
    GR_TRY(gr_comm_agree(run->comm, "the first values", st, NULL, err));
    GR_TRY(compare(run->comm, "the first values", &mine, names, 1, err));
done:
    return st;
}
