#include "peft/checkpoint.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/output.h"
#include "core/io/h5.h"
#include "peft/parts.h"

enum { CHECKPOINT_VERSION = 1, MOST_RANKS = 1 << 20 };

/* The fields of gr_train_state, once: attributes of the file by name. */
typedef struct field {
    const char *name;
    size_t offset;
    bool is_double, later; /* later: older files lack it, it is 0 then */
} field;

#define FIELD(name, is_double)                                                                                                     \
    { #name, offsetof(gr_train_state, name), is_double, false }
#define LATER(name, is_double)                                                                                                     \
    { #name, offsetof(gr_train_state, name), is_double, true }
static const field state_fields[] = {
    FIELD(step, false),
    FIELD(epoch, false),
    FIELD(cursor, false),
    FIELD(optimizer_step, false),
    LATER(loss_scale, true),
    LATER(good_steps, false),
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
#undef LATER

#define FIELD(name)                                                                                                                \
    { #name, offsetof(gr_train_identity, name), false, false }
static const field identity_fields[] = {FIELD(data_key), FIELD(total_steps), FIELD(batch_size), FIELD(seed)};
#undef FIELD

#define LATER(name)                                                                                                                \
    { #name, offsetof(gr_train_split, name), false, true }
static const field split_fields[] = {LATER(micro_batch_tokens), LATER(gradient_checkpointing)};
#undef LATER

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
        bool there = !fields[i].later || gr_h5_has_attribute(h, fields[i].name);
        if (!there) memset(at, 0, sizeof(int64_t)); /* of a double too */
        else if (fields[i].is_double) GR_TRY(gr_h5_get_double(h, fields[i].name, (double *)(void *)at, err));
        else GR_TRY(gr_h5_get_int(h, fields[i].name, (int64_t *)(void *)at, err));
    }
done:
    return st;
}

/* The tensors of a checkpoint are datasets /parameters/NAME, float32 whatever the type of the trained weights, and one for each
 * part of what the optimizer keeps: /adam_exp_avg/NAME ... staging: room for the largest item, here and below. */
static graft_status put_tensors(gr_h5 *h, const gr_params *p, float *staging, graft_error *err) {
    graft_status st = GRAFT_OK;
    char name[256];
    for (int64_t i = 0; i < p->n_items; i++) {
        gr_state_part part[GR_STATE_PARTS];
        snprintf(name, sizeof name, "/parameters/%s", p->items[i].name);
        gr_params_read(p, GR_PARAMS_VALUE, i, staging);
        GR_TRY(gr_h5_put(h, name, GR_H5_F32, 2, (int64_t[]){p->items[i].rows, p->items[i].cols}, staging, err));
        for (int k = 0, n = gr_params_state(p, i, part); k < n; k++) {
            int64_t count = part[k].rows * part[k].cols;
            snprintf(name, sizeof name, "/%s/%s", part[k].name, p->items[i].name);
            p->device->download(p->device, staging, part[k].data, count * (part[k].codes ? 1 : (int64_t)sizeof(float)), 0);
            GR_TRY(
                gr_h5_put(h, name, part[k].codes ? GR_H5_U8 : GR_H5_F32, 2, (int64_t[]){part[k].rows, part[k].cols}, staging, err));
        }
    }
    GR_TRY(gr_device_status(p->device, err));
done:
    return st;
}

static graft_status get_tensor(gr_h5 *h, const gr_state_part *as, const char *item, void *staging, const char *path,
                               graft_error *err) {
    char name[256];
    int64_t shape[2];
    graft_status st;
    gr_h5_type type = as->codes ? GR_H5_U8 : GR_H5_F32;
    snprintf(name, sizeof name, "/%s/%s", as->name, item);
    GR_TRY(gr_h5_shape(h, name, type, 2, shape, err));
    if (shape[0] != as->rows || shape[1] != as->cols)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: %s is %lld x %lld, the recipe makes it %lld x %lld: another adapter.rank?", path,
                       name, (long long)shape[0], (long long)shape[1], (long long)as->rows, (long long)as->cols));
    GR_TRY(gr_h5_get(h, name, type, staging, as->rows * as->cols, err));
done:
    return st;
}

static graft_status get_tensors(gr_h5 *h, gr_params *p, bool state, float *staging, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < p->n_items; i++) {
        const gr_param *item = &p->items[i];
        const gr_state_part value = {.name = "parameters", .rows = item->rows, .cols = item->cols};
        gr_state_part part[GR_STATE_PARTS];
        GR_TRY(get_tensor(h, &value, item->name, staging, path, err));
        gr_params_write(p, GR_PARAMS_VALUE, i, staging);
        for (int k = 0, n = state ? gr_params_state(p, i, part) : 0; k < n; k++) {
            if (p->form.sharded) part[k].rows = item->rows, part[k].cols = item->cols; /* there of all ranks */
            GR_TRY(get_tensor(h, &part[k], item->name, staging, path, err));
            int64_t count = part[k].rows * part[k].cols;
            if (p->form.sharded) gr_params_write(p, k == 0 ? GR_PARAMS_M : GR_PARAMS_V, i, staging);
            else p->device->upload(p->device, part[k].data, staging, count * (part[k].codes ? 1 : (int64_t)sizeof(float)));
        }
    }
done:
    return st;
}

/* What is the run's; tensors, where they are whole here, else the seals of the ranks' files. */
static graft_status write_state(const char *folder, const gr_params *p, const gr_train_state *s, const gr_train_identity *id,
                                const gr_h5_seal *seals, graft_error *err) {
    graft_status st;
    gr_h5 *h = NULL;
    char *path = gr_path_join(folder, "state.h5");
    float *staging = gr_calloc(seals ? 1 : gr_params_largest(p), sizeof *staging);
    if (!path || !staging) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_h5_create(&h, path, err));
    GR_TRY(gr_h5_put_int(h, "graft_checkpoint_version", CHECKPOINT_VERSION, err));
    GR_TRY(gr_h5_put_text(h, "recipe", id->recipe, err));
    GR_TRY(gr_h5_put_int(h, "n_tensors", p->n_items, err));
    GR_TRY(put_fields(h, state_fields, GR_LEN(state_fields), s, err));
    GR_TRY(gr_h5_put_int(h, "compute_dtype", id->compute_dtype, err));
    GR_TRY(gr_h5_put_int(h, "evaluated_step", s->evaluated_step, err));
    GR_TRY(put_fields(h, identity_fields, GR_LEN(identity_fields), id, err));
    GR_TRY(put_fields(h, split_fields, GR_LEN(split_fields), &id->split, err));
    if (seals) GR_TRY(gr_h5_put(h, "/seals", GR_H5_U8, 2, (int64_t[]){p->form.size, sizeof *seals}, seals, err));
    else GR_TRY(put_tensors(h, p, staging, err));
    st = gr_h5_commit(h, err);
    h = NULL;
done:
    gr_h5_close(h);
    free(path);
    free(staging);
    return st;
}

/* All ranks write into the folder that rank 0 has begun; seals[size] of what they wrote. */
static graft_status write_parts(const char *begun, const gr_params *p, gr_h5_seal *seals, gr_comm *comm, graft_error *err) {
    char folder[4096] = "";
    gr_h5_seal mine = {{0}};
    graft_status st;
    if (begun && snprintf(folder, sizeof folder, "%s", begun) >= (int)sizeof folder)
        st = gr_fail(err, GRAFT_BAD_USAGE, "output_dir: %s is too long a name", begun);
    else st = GRAFT_OK;
    GR_TRY(gr_comm_await(comm, "the checkpoint's folder", st, err));
    GR_TRY(gr_comm_broadcast(comm, "the checkpoint's folder", folder, sizeof folder, err));
    st = gr_is_dir(folder)
             ? gr_parts_write(folder, p, &mine, err)
             : gr_fail(err, GRAFT_FAILED, "%s: rank 0 has made it, and it is not here: all ranks must see output_dir", folder);
    GR_TRY(gr_comm_await(comm, "the checkpoint's parts", st, err));
    GR_TRY(gr_comm_gather(comm, "the checkpoint's parts", &mine, sizeof mine, seals, err));
done:
    return st;
}

/* Rank 0's work, and of the others what they have a share of. */
static graft_status save(const char *folder, const gr_adapter *adapter, const gr_params *p, const gr_train_state *s,
                         const gr_train_identity *id, gr_comm *comm, graft_error *err) {
    const bool writes = gr_comm_rank(comm) == 0;
    graft_status st = GRAFT_OK;
    char *tmp = NULL;
    gr_h5_seal *seals = p->form.sharded ? gr_calloc(p->form.size, sizeof *seals) : NULL;
    if (p->form.sharded && !seals) st = gr_fail_memory(err, "checkpoint");
    if (st == GRAFT_OK && writes) st = gr_dir_begin(&tmp, folder, true, err);
    if (p->form.sharded) {
        GR_TRY(gr_comm_agree(comm, "the checkpoint", st, NULL, err));
        GR_TRY(write_parts(tmp, p, seals, comm, err));
    }
    if (!writes || st != GRAFT_OK) goto done;
    GR_TRY(write_state(tmp, p, s, id, seals, err));
    if (adapter) GR_TRY(gr_adapter_write(adapter, tmp, err));
    GR_TRY(gr_dir_commit(tmp, folder, true, err));
done:
    if (st != GRAFT_OK && tmp) gr_remove_all(tmp);
    free(seals);
    free(tmp);
    return st;
}

graft_status gr_checkpoint_save(const char *output_dir, const gr_adapter *adapter, const gr_params *p, const gr_train_state *s,
                                const gr_train_identity *id, gr_comm *comm, graft_error *err) {
    char *folder = gr_checkpoint_folder(output_dir, s->step);
    graft_status st = folder ? save(folder, adapter, p, s, id, comm, err) : gr_fail_memory(err, "checkpoint");
    free(folder);
    return gr_comm_await(comm, "the checkpoint", st, err);
}

/* ---- reading ---- */

static graft_status open_parts(gr_checkpoint *c, graft_error *err) {
    graft_status st;
    int64_t shape[2];
    gr_h5_seal *seals = NULL;
    GR_TRY(gr_h5_shape(c->h5, "/seals", GR_H5_U8, 2, shape, err));
    if (shape[0] < 1 || shape[0] > MOST_RANKS || shape[1] != sizeof *seals)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: /seals is %lld x %lld", c->path, (long long)shape[0], (long long)shape[1]));
    seals = gr_calloc(shape[0], sizeof *seals);
    c->parts = gr_calloc(shape[0], sizeof *c->parts);
    if (!seals || !c->parts) GR_TRY(gr_fail_memory(err, "checkpoint"));
    c->n_parts = shape[0];
    GR_TRY(gr_h5_get(c->h5, "/seals", GR_H5_U8, seals, shape[0] * shape[1], err));
    GR_TRY(gr_parts_open(c->parts, c->folder, seals, c->n_parts, err));
done:
    free(seals);
    return st;
}

graft_status gr_checkpoint_open(gr_checkpoint *c, const char *folder, graft_error *err) {
    graft_status st;
    *c = (gr_checkpoint){.folder = gr_strdup(folder), .path = gr_path_join(folder, "state.h5")};
    if (!c->folder || !c->path) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_h5_open(&c->h5, c->path, err));
    if (gr_h5_has(c->h5, "/seals")) GR_TRY(open_parts(c, err));
done:
    if (st != GRAFT_OK) gr_checkpoint_close(c);
    return st;
}

void gr_checkpoint_close(gr_checkpoint *c) {
    for (int64_t i = 0; i < c->n_parts; i++) gr_h5_close(c->parts[i]);
    free(c->parts);
    gr_h5_close(c->h5);
    free(c->folder);
    free(c->path);
    *c = (gr_checkpoint){0};
}

static graft_status check_version(const gr_checkpoint *c, graft_error *err) {
    int64_t version;
    graft_status st = gr_h5_get_int(c->h5, "graft_checkpoint_version", &version, err);
    if (st != GRAFT_OK || version == CHECKPOINT_VERSION) return st;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: checkpoint version %lld, this graft reads %d", c->path, (long long)version,
                   CHECKPOINT_VERSION);
}

graft_status gr_checkpoint_identity(const gr_checkpoint *c, gr_train_identity *saved, char **recipe, graft_error *err) {
    graft_status st;
    *recipe = NULL;
    GR_TRY(check_version(c, err));
    GR_TRY(get_fields(c->h5, identity_fields, GR_LEN(identity_fields), saved, err));
    GR_TRY(get_fields(c->h5, split_fields, GR_LEN(split_fields), &saved->split, err));
    if (gr_h5_get_int(c->h5, "compute_dtype", &saved->compute_dtype, NULL) != GRAFT_OK)
        saved->compute_dtype = -1; /* an older graft */
    GR_TRY(gr_h5_get_text(c->h5, "recipe", recipe, err));
    saved->recipe = *recipe;
done:
    return st;
}

graft_status gr_checkpoint_read(const gr_checkpoint *c, gr_params *p, gr_train_state *s, gr_checkpoint_check *check,
                                const void *context, graft_error *err) {
    graft_status st;
    gr_train_state state;
    gr_train_identity saved;
    int64_t n_tensors;
    char *recipe = NULL;
    float *staging = gr_calloc(gr_params_largest(p), sizeof *staging);
    if (!staging) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_checkpoint_identity(c, &saved, &recipe, err));
    GR_TRY(get_fields(c->h5, state_fields, GR_LEN(state_fields), &state, err));
    if (gr_h5_get_int(c->h5, "evaluated_step", &state.evaluated_step, NULL) != GRAFT_OK)
        state.evaluated_step = state.step; /* an older graft */
    if (check) GR_TRY(check(context, c->folder, &saved, &state, err));
    GR_TRY(gr_h5_get_int(c->h5, "n_tensors", &n_tensors, err));
    if (n_tensors != p->n_items)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "%s holds %lld trained tensors, the recipe makes %lld: another adapter.target_modules?", c->path,
                       (long long)n_tensors, (long long)p->n_items));
    if (c->parts) GR_TRY(gr_parts_read(c->parts, c->folder, c->n_parts, p, s != NULL, err));
    else GR_TRY(get_tensors(c->h5, p, s != NULL, staging, c->path, err));
    if (s) *s = state;
done:
    free(recipe);
    free(staging);
    return st;
}

graft_status gr_checkpoint_load(const char *folder, gr_params *p, gr_train_state *s, gr_checkpoint_check *check,
                                const void *context, graft_error *err) {
    gr_checkpoint c;
    graft_status st = gr_checkpoint_open(&c, folder, err);
    if (st == GRAFT_OK) st = gr_checkpoint_read(&c, p, s, check, context, err);
    gr_checkpoint_close(&c);
    return st;
}

/* ---- those of a folder ---- */

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

graft_status gr_checkpoint_open_last(gr_checkpoint *c, const char *output_dir, bool quiet, graft_error *err) {
    int64_t *steps;
    int64_t n = list_checkpoints(&steps, output_dir);
    graft_status st = n < 0 ? gr_fail_memory(err, "list of checkpoints") : GRAFT_OK;
    gr_checkpoint before = *c;
    *c = (gr_checkpoint){0};
    for (int64_t i = 0; i < n && !c->h5; i++) {
        char *candidate = gr_checkpoint_folder(output_dir, steps[i]);
        graft_error why = {0};
        if (candidate && before.folder && strcmp(candidate, before.folder) == 0) {
            *c = before, before = (gr_checkpoint){0};
            st = GRAFT_OK;
        } else st = candidate ? gr_checkpoint_open(c, candidate, &why) : gr_fail_memory(&why, "checkpoint");
        free(candidate);
        if (st == GRAFT_OK) continue;
        if (!quiet) gr_warn("%s: passed over", why.msg);
        if (err) *err = why;
    }
    gr_checkpoint_close(&before);
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
