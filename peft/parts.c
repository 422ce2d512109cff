#include "peft/parts.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/model/machine.h"

/* What there is of each tensor. */
static const struct {
    const char *name;
    gr_params_buffer buffer;
} kinds[] = {{"parameters", GR_PARAMS_VALUE}, {"adam_exp_avg", GR_PARAMS_M}, {"adam_exp_avg_sq", GR_PARAMS_V}};

char *gr_parts_path(const char *folder, int64_t rank, int64_t ranks) {
    return gr_format("%s/state-%lld-of-%lld.h5", folder, (long long)rank, (long long)ranks);
}

static graft_status put(gr_h5 *h, const gr_params *p, int64_t *ranges, float *staging, graft_error *err) {
    graft_status st = GRAFT_OK;
    char name[256];
    for (int64_t i = 0; i < p->n_items; i++) {
        int64_t *first = &ranges[2 * i], *n = &ranges[2 * i + 1];
        gr_params_mine(p, i, first, n);
        for (int k = 0; k < GR_LEN(kinds) && *n > 0; k++) {
            snprintf(name, sizeof name, "/%s/%s", kinds[k].name, p->items[i].name);
            gr_params_read_part(p, kinds[k].buffer, i, *first, *n, staging);
            GR_TRY(gr_h5_put(h, name, GR_H5_F32, 1, n, staging, err));
        }
    }
    GR_TRY(gr_h5_put(h, "/first", GR_H5_I64, 2, (int64_t[]){p->n_items, 2}, ranges, err));
    GR_TRY(gr_device_status(p->device, err));
done:
    return st;
}

graft_status gr_parts_write(const char *folder, const gr_params *p, gr_h5_seal *seal, graft_error *err) {
    graft_status st;
    gr_h5 *h = NULL;
    char *path = gr_parts_path(folder, p->form.rank, p->form.size);
    int64_t *ranges = gr_calloc(2 * p->n_items, sizeof *ranges);
    float *staging = gr_calloc(gr_params_largest(p), sizeof *staging);
    if (!path || !ranges || !staging) GR_TRY(gr_fail_memory(err, "checkpoint"));
    GR_TRY(gr_h5_create(&h, path, err));
    GR_TRY(put(h, p, ranges, staging, err));
    st = gr_h5_commit_sealed(h, seal, err);
    h = NULL;
done:
    gr_h5_close(h);
    free(path);
    free(ranges);
    free(staging);
    return st;
}

graft_status gr_parts_open(struct gr_h5 **files, const char *folder, const gr_h5_seal *seals, int64_t ranks, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < ranks && st == GRAFT_OK; i++) {
        char *path = gr_parts_path(folder, i, ranks);
        if (!path) return gr_fail_memory(err, "checkpoint");
        st = gr_h5_open(&files[i], path, err);
        const gr_h5_seal seal = st == GRAFT_OK ? gr_h5_seal_of(files[i]) : seals[i];
        if (memcmp(&seal, &seals[i], sizeof seal) != 0)
            st = gr_fail(err, GRAFT_BAD_INPUT, "%s: is not the file that was written with its state.h5", path);
        free(path);
    }
    return st;
}

/* One tensor of one kind as a whole, from the parts of all ranks, which follow each other; only its elements from..to are read. */
static graft_status gather(struct gr_h5 *const *files, const int64_t *ranges, int64_t ranks, const gr_params *p, int64_t item,
                           const char *kind, gr_range wanted, float *whole, graft_error *err) {
    char name[256];
    int64_t done = 0;
    graft_status st = GRAFT_OK;
    snprintf(name, sizeof name, "/%s/%s", kind, p->items[item].name);
    for (int64_t i = 0; i < ranks; i++) {
        const int64_t *range = ranges + 2 * (i * p->n_items + item), n = range[1];
        if (n == 0) continue;
        if (range[0] != done || n < 0 || n > p->items[item].n - done) break;
        if (done < wanted.end && done + n > wanted.begin) GR_TRY(gr_h5_get(files[i], name, GR_H5_F32, whole + done, n, err));
        done += n;
    }
    if (done != p->items[item].n)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: the parts of the ranks do not make a whole", p->items[item].name);
done:
    return st;
}

static graft_status read_all(struct gr_h5 *const *files, const int64_t *ranges, int64_t ranks, gr_params *p, bool states,
                             float *whole, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < p->n_items; i++)
        for (int k = 0; k < (states ? GR_LEN(kinds) : 1); k++) {
            gr_range wanted = {0, p->items[i].n};
            if (k > 0) gr_params_mine(p, i, &wanted.begin, &wanted.end), wanted.end += wanted.begin;
            GR_TRY(gather(files, ranges, ranks, p, i, kinds[k].name, wanted, whole, err));
            gr_params_write(p, kinds[k].buffer, i, whole);
        }
done:
    return st;
}

graft_status gr_parts_read(struct gr_h5 *const *files, const char *folder, int64_t ranks, gr_params *p, bool states,
                           graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t *ranges = gr_calloc(2 * p->n_items * ranks, sizeof *ranges), shape[2];
    float *whole = gr_calloc(gr_params_largest(p), sizeof *whole);
    if (!ranges || !whole) GR_TRY(gr_fail_memory(err, "checkpoint"));
    if (states && p->form.optimizer != GR_OPTIMIZER_ADAMW)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s is of train.optimizer adamw", folder));
    for (int64_t i = 0; i < ranks; i++) {
        GR_TRY(gr_h5_shape(files[i], "/first", GR_H5_I64, 2, shape, err));
        if (shape[0] != p->n_items || shape[1] != 2)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: a rank's file is of another number of tensors", folder));
        GR_TRY(gr_h5_get(files[i], "/first", GR_H5_I64, ranges + 2 * i * p->n_items, 2 * p->n_items, err));
    }
    GR_TRY(read_all(files, ranges, ranks, p, states, whole, err));
done:
    if (st == GRAFT_BAD_INPUT) st = gr_fail_context(err, st, "%s", folder);
    free(ranges);
    free(whole);
    return st;
}
