#include "peft/checkpoint.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/output.h"
#include "core/io/h5.h"

enum { CHECKPOINT_VERSION = 1 };

/* The fields of gr_train_state, once: attributes of the file by name. */
typedef struct field {
    const char *name;
    size_t offset;
    bool is_double;
} field;

#define FIELD(name, is_double)                                                                                                     \
    { #name, offsetof(gr_train_state, name), is_double }
static const field state_fields[] = {
    FIELD(step, false),
    FIELD(epoch, false),
    FIELD(cursor, false),
    FIELD(optimizer_step, false),
    FIELD(num_tokens, false),
    FIELD(num_target_tokens, false),
    FIELD(best_step, false),
    FIELD(evals_since_best, false),
    FIELD(skipped_in_a_row, false),
    FIELD(window_targets, false),
    FIELD(window_tokens, false),
    FIELD(best_eval_loss, true),
    FIELD(final_loss, true),
    FIELD(window_loss, true),
    FIELD(window_grad_norm, true),
};
#undef FIELD

#define FIELD(name)                                                                                                                \
    { #name, offsetof(gr_train_identity, name), false }
static const field identity_fields[] = {FIELD(data_key), FIELD(total_steps), FIELD(batch_size), FIELD(seed)};
#undef FIELD

char *gr_checkpoint_folder(const char *output_dir, int64_t step) {
    return gr_format("%s/checkpoint-%lld", output_dir, (long long)step);
}

static graft_status put_fields(gr_h5 *h, const field *fields, int n, const void *from, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int i = 0; i < n; i++) {
        const char *at = (const char *)from + fields[i].offset;
        if (fields[i].is_double) GR_TRY(gr_h5_put_double(h, fields[i].name, *(const double *)(const void *)at, err));
        else GR_TRY(gr_h5_put_int(h, fields[i].name, *(const int64_t *)(const void *)at, err));
    }
done:
    return st;
}

static graft_status get_fields(gr_h5 *h, const field *fields, int n, void *to, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int i = 0; i < n; i++) {
        char *at = (char *)to + fields[i].offset;
        if (fields[i].is_double) GR_TRY(gr_h5_get_double(h, fields[i].name, (double *)(void *)at, err));
        else GR_TRY(gr_h5_get_int(h, fields[i].name, (int64_t *)(void *)at, err));
    }
done:
    return st;
}

/* The three sets of tensors of a checkpoint: group and buffer. */
static const struct {
    const char *group;
    gr_params_buffer buffer;
} groups[] = {{"parameters", GR_PARAMS_VALUE}, {"adam_exp_avg", GR_PARAMS_M}, {"adam_exp_avg_sq", GR_PARAMS_V}};

/* staging: room for the largest item, here and below. */
static graft_status put_tensors(gr_h5 *h, const gr_params *p, float *staging, graft_error *err) {
    graft_status st = GRAFT_OK;
    char name[256];
    for (int g = 0; g < GR_LEN(groups); g++)
        for (int64_t i = 0; i < p->n_items; i++) {
            const gr_param *item = &p->items[i];
            int64_t shape[2] = {item->rows, item->cols};
            snprintf(name, sizeof name, "/%s/%s", groups[g].group, item->name);
            gr_params_read(p, groups[g].buffer, i, staging);
            GR_TRY(gr_h5_put(h, name, GR_H5_F32, 2, shape, staging, err));
        }
done:
    return st;
}

static graft_status get_tensors(gr_h5 *h, gr_params *p, int n_groups, float *staging, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    char name[256];
    for (int g = 0; g < n_groups; g++)
        for (int64_t i = 0; i < p->n_items; i++) {
            const gr_param *item = &p->items[i];
            int64_t shape[2];
            snprintf(name, sizeof name, "/%s/%s", groups[g].group, item->name);
            GR_TRY(gr_h5_shape(h, name, GR_H5_F32, 2, shape, err));
            if (shape[0] != item->rows || shape[1] != item->cols)
                GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                               "%s: %s is %lld x %lld, the recipe makes it %lld x %lld: another adapter.rank?", path, name,
                               (long long)shape[0], (long long)shape[1], (long long)item->rows, (long long)item->cols));
            GR_TRY(gr_h5_get(h, name, GR_H5_F32, staging, item->n, err));
            gr_params_write(p, groups[g].buffer, i, staging);
        }
done:
    return st;
}

graft_status gr_checkpoint_save(const char *output_dir, const gr_adapter *adapter, const gr_params *p, const gr_train_state *s,
                                const gr_train_identity *id, graft_error *err) {
    graft_status st;
    gr_h5 *h = NULL;
    char *folder = gr_checkpoint_folder(output_dir, s->step), *tmp = NULL, *path = NULL;
    float *staging = gr_calloc(gr_params_largest(p), sizeof *staging);
    if (!folder || !staging) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_dir_begin(&tmp, folder, true, err));
    if (!(path = gr_path_join(tmp, "state.h5"))) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_h5_create(&h, path, err));
    GR_TRY(gr_h5_put_int(h, "graft_checkpoint_version", CHECKPOINT_VERSION, err));
    GR_TRY(gr_h5_put_text(h, "recipe", id->recipe, err));
    GR_TRY(gr_h5_put_int(h, "n_tensors", p->n_items, err));
    GR_TRY(put_fields(h, state_fields, GR_LEN(state_fields), s, err));
    GR_TRY(gr_h5_put_int(h, "compute_dtype", id->compute_dtype, err));
    GR_TRY(gr_h5_put_int(h, "evaluated_step", s->evaluated_step, err));
    GR_TRY(put_fields(h, identity_fields, GR_LEN(identity_fields), id, err));
    GR_TRY(put_tensors(h, p, staging, err));
    gr_h5 *sealed = h;
    h = NULL; /* commit frees it, whatever happens */
    GR_TRY(gr_h5_commit(sealed, err));
    if (adapter) GR_TRY(gr_adapter_write(adapter, tmp, err));
    GR_TRY(gr_dir_commit(tmp, folder, true, err));
done:
    gr_h5_close(h);
    if (st != GRAFT_OK && tmp) gr_remove_all(tmp);
    free(folder);
    free(tmp);
    free(path);
    free(staging);
    return st;
}

/* The fields that tell what the run is, in saved; recipe is owned by the caller. */
static graft_status get_identity(gr_h5 *h, gr_train_identity *saved, char **recipe, graft_error *err) {
    graft_status st;
    GR_TRY(get_fields(h, identity_fields, GR_LEN(identity_fields), saved, err));
    if (gr_h5_get_int(h, "compute_dtype", &saved->compute_dtype, NULL) != GRAFT_OK) saved->compute_dtype = -1; /* an older graft */
    GR_TRY(gr_h5_get_text(h, "recipe", recipe, err));
    saved->recipe = *recipe;
done:
    return st;
}

graft_status gr_checkpoint_load(const char *folder, gr_params *p, gr_train_state *s, gr_checkpoint_check *check,
                                const void *context, graft_error *err) {
    graft_status st;
    gr_h5 *h = NULL;
    gr_train_state state;
    gr_train_identity saved;
    int64_t version, n_tensors;
    char *recipe = NULL, *path = gr_path_join(folder, "state.h5");
    float *staging = gr_calloc(gr_params_largest(p), sizeof *staging);
    if (!path || !staging) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_h5_open(&h, path, err));
    GR_TRY(gr_h5_get_int(h, "graft_checkpoint_version", &version, err));
    if (version != CHECKPOINT_VERSION)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: checkpoint version %lld, this graft reads %d", path, (long long)version,
                       CHECKPOINT_VERSION));
    GR_TRY(get_fields(h, state_fields, GR_LEN(state_fields), &state, err));
    if (gr_h5_get_int(h, "evaluated_step", &state.evaluated_step, NULL) != GRAFT_OK)
        state.evaluated_step = state.step; /* an older graft */
    GR_TRY(get_identity(h, &saved, &recipe, err));
    if (check) GR_TRY(check(context, folder, &saved, &state, err));
    GR_TRY(gr_h5_get_int(h, "n_tensors", &n_tensors, err));
    if (n_tensors != p->n_items)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "%s holds %lld trained tensors, the recipe makes %lld: another adapter.target_modules?", path,
                       (long long)n_tensors, (long long)p->n_items));
    GR_TRY(get_tensors(h, p, s ? GR_LEN(groups) : 1, staging, path, err));
    if (s) *s = state;
done:
    gr_h5_close(h);
    free(recipe);
    free(path);
    free(staging);
    return st;
}

static bool has_state(const char *output_dir, int64_t step) {
    char *folder = gr_checkpoint_folder(output_dir, step), *path = folder ? gr_path_join(folder, "state.h5") : NULL;
    bool there = path && gr_exists(path);
    free(folder);
    free(path);
    return there;
}

/* Steps of the checkpoints in output_dir, newest first; *steps is the caller's. -1 when out of memory. */
static int64_t list_checkpoints(int64_t **steps, const char *output_dir) {
    int64_t n = 0, capacity = 0;
    struct dirent *e;
    *steps = NULL;
    DIR *dir = opendir(output_dir);
    if (!dir) return 0;
    while ((e = readdir(dir))) {
        char *end;
        if (!gr_starts_with(e->d_name, "checkpoint-")) continue;
        long long step = strtoll(e->d_name + strlen("checkpoint-"), &end, 10);
        if (*end || step < 0 || !has_state(output_dir, step)) continue;
        if (!gr_grow(steps, &capacity, n + 1, sizeof **steps)) {
            n = -1;
            break;
        }
        int64_t at = n++;
        for (; at > 0 && (*steps)[at - 1] < step; at--) (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
    }
    closedir(dir);
    return n;
}

bool gr_checkpoint_any(const char *output_dir) {
    int64_t *steps;
    int64_t n = list_checkpoints(&steps, output_dir);
    free(steps);
    return n != 0;
}

graft_status gr_checkpoint_last(char **folder, const char *output_dir, graft_error *err) {
    int64_t *steps;
    int64_t n = list_checkpoints(&steps, output_dir);
    graft_status st = n < 0 ? gr_fail_memory(err, "list of checkpoints") : GRAFT_OK;
    *folder = NULL;
    for (int64_t i = 0; i < n && !*folder; i++) {
        gr_h5 *h = NULL;
        char *candidate = gr_checkpoint_folder(output_dir, steps[i]),
             *path = candidate ? gr_path_join(candidate, "state.h5") : NULL;
        graft_error why = {0};
        st = path ? gr_h5_open(&h, path, &why) : gr_fail_memory(&why, "checkpoint");
        if (st == GRAFT_OK) {
            *folder = candidate;
            candidate = NULL;
        } else {
            gr_warn("%s: passed over", why.msg);
            if (err) *err = why;
        }
        gr_h5_close(h);
        free(candidate);
        free(path);
    }
    free(steps);
    return st;
}

void gr_checkpoint_prune(const char *output_dir, int64_t keep, int64_t best_step) {
    int64_t *steps;
    int64_t n = list_checkpoints(&steps, output_dir), kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (steps[i] == best_step || kept < keep) {
            kept += steps[i] != best_step;
            continue;
        }
        char *folder = gr_checkpoint_folder(output_dir, steps[i]);
        if (folder) gr_remove_piece(folder);
        free(folder);
    }
    free(steps);
}
