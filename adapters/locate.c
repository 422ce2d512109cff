/* Where is the adapter that a path names? Folders as PEFT, mlx-lm and graft leave them, GGUF files, and what
 * people give instead, with what to do. */
#include "adapters/impl.h"

#include <dirent.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/sniff.h"

static bool has_file(const char *folder, const char *name) {
    char *path = gr_path_join(folder, name);
    bool found = path && gr_exists(path);
    free(path);
    return found;
}

/* The first bytes of a file, how many; 0 for what is none. */
static int64_t read_head(const char *path, char head[GR_SNIFF_BYTES]) {
    FILE *f = gr_is_dir(path) ? NULL : fopen(path, "re");
    int64_t n = f ? (int64_t)fread(head, 1, GR_SNIFF_BYTES, f) : 0;
    if (f) fclose(f);
    return n;
}

static bool is_gguf(const char *path) {
    char head[GR_SNIFF_BYTES];
    int64_t n = read_head(path, head);
    return gr_sniff(head, n, NULL) == GR_KIND_GGUF;
}

/* The sub-folders that hold an adapter: how many, the first by name in *name (owned), all of them in list. */
static int find_inside(const char *folder, char **name, gr_str *list) {
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char *inside = e->d_name[0] == '.' ? NULL : gr_path_join(folder, e->d_name);
        if (inside && has_file(inside, GR_ADAPTER_CONFIG)) {
            gr_str_printf(list, "%s%s", n++ ? ", " : "", e->d_name);
            if (!*name || strcmp(e->d_name, *name) < 0) {
                free(*name);
                *name = gr_strdup(e->d_name);
            }
        }
        free(inside);
    }
    if (d) closedir(d);
    return n;
}

static graft_status not_found(const char *path, graft_error *err) {
    static const char *const pickles[] = {"adapter_model.bin", "adapter_model.pt", "adapter.pt", "pytorch_model.bin"};
    for (int i = 0; i < GR_LEN(pickles); i++)
        if (has_file(path, pickles[i]))
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: no %s in it, and %s is a pickle, which graft does not read: load it with PEFT and save it with "
                           "safe_serialization=True",
                           path, GR_ADAPTER_CONFIG, pickles[i]);
    if (has_file(path, GR_ADAPTER_TENSORS) || has_file(path, GR_MLX_TENSORS))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: %s is missing beside the matrices: it tells their scale; copy it from where they were trained", path,
                       GR_ADAPTER_CONFIG);
    if (has_file(path, "state.h5"))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s is a checkpoint without an adapter, of a run of method full or of an older graft: what such a run gives "
                       "is in its own folder",
                       path);
    if (has_file(path, "config.json"))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: no %s in it: this is a model, not an adapter", path, GR_ADAPTER_CONFIG);
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: no %s in it: expected a PEFT adapter folder, or a run of graft or one of its checkpoints", path,
                   GR_ADAPTER_CONFIG);
}

static graft_status in_folder(char **place, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *name = NULL;
    gr_str list = {0};
    *place = NULL;
    if (has_file(path, GR_ADAPTER_CONFIG)) {
        *place = gr_strdup(path);
    } else if (has_file(path, "adapter/" GR_ADAPTER_CONFIG)) {
        *place = gr_path_join(path, "adapter");
    } else {
        int n = find_inside(path, &name, &list);
        if (n == 0) GR_TRY(not_found(path, err));
        if (n > 1)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s holds %d adapters in sub-folders: name one of %s", path, n,
                           list.data ? list.data : "them"));
        *place = name ? gr_path_join(path, name) : NULL;
        if (*place) gr_note("%s: the adapter in it is %s/", path, name);
    }
    if (!*place) st = gr_fail_memory(err, path);
done:
    free(name);
    gr_str_release(&list);
    return st;
}

/* A file that is named itself: a GGUF, or the matrices of a folder. */
static graft_status named_file(char **place, const char *path, graft_error *err) {
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt"};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char head[GR_SNIFF_BYTES];
    if (is_gguf(path)) {
        *place = gr_strdup(path);
        return *place ? GRAFT_OK : gr_fail_memory(err, path);
    }
    for (int i = 0; i < GR_LEN(pickles); i++)
        if (gr_ends_with(path, pickles[i]))
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s is a pickle of PyTorch, which graft does not read: load it with PEFT and save it with "
                           "safe_serialization=True",
                           path);
    if (gr_ends_with(path, ".gguf")) return gr_expect_kind(head, read_head(path, head), GR_KIND_GGUF, "a GGUF LoRA", path, err);
    if (strcmp(name, GR_ADAPTER_TENSORS) != 0 && strcmp(name, GR_MLX_TENSORS) != 0 && strcmp(name, GR_ADAPTER_CONFIG) != 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: expected the folder of an adapter (with %s), or a GGUF LoRA", path,
                       GR_ADAPTER_CONFIG);
    char *folder = slash ? gr_strndup(path, slash - path + (slash == path)) : gr_strdup(".");
    graft_status st = folder ? in_folder(place, folder, err) : gr_fail_memory(err, path);
    free(folder);
    return st;
}

graft_status gr_adapter_locate(char **place, const char *path, graft_error *err) {
    *place = NULL;
    if (gr_is_dir(path)) return in_folder(place, path, err);
    if (gr_exists(path)) return named_file(place, path, err);
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: no such adapter: expected the folder of one, a graft run, or a GGUF LoRA", path);
}

bool gr_adapter_is(const char *path) {
    const char *type = "";
    gr_gguf *g = NULL;
    char *name = NULL;
    gr_str list = {0};
    bool yes = false;
    if (gr_is_dir(path)) {
        yes = !has_file(path, "config.json") && (has_file(path, GR_ADAPTER_CONFIG) || has_file(path, "adapter") ||
                                                 (!has_file(path, "recipe.yaml") && find_inside(path, &name, &list) == 1));
    } else if (is_gguf(path) && gr_gguf_open(&g, path, NULL) == GRAFT_OK) {
        yes = gr_gguf_has(g, "general.type") && gr_gguf_get_string(g, "general.type", &type, NULL, NULL) == GRAFT_OK &&
              strcmp(type, "adapter") == 0;
    }
    gr_gguf_close(g);
    free(name);
    gr_str_release(&list);
    return yes;
}
