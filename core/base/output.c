#include "core/base/output.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"

enum { MAX_MARK_BYTES = 1 << 20 };

/* ---- paths ---- */

/* path without links and dots, owned; what does not exist is appended to the part that does. */
static char *real_path(const char *path) {
    char *real = realpath(path, NULL), *parent, *above;
    if (real) return real;
    int64_t n = (int64_t)strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    int64_t name = n;
    while (name > 0 && path[name - 1] != '/') name--;
    if (name == n) return gr_strdup(path);
    parent = name == 0 ? gr_strdup(".") : gr_strndup(path, name);
    above = parent ? real_path(parent) : NULL;
    if (above) real = gr_format("%s%s%.*s", above, gr_ends_with(above, "/") ? "" : "/", (int)(n - name), path + name);
    free(parent);
    free(above);
    return real;
}

/* Both real. */
static bool within(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/' || strcmp(folder, "/") == 0);
}

bool gr_path_within(const char *path, const char *folder) {
    char *a = real_path(path), *b = real_path(folder);
    bool answer = a && b && within(a, b);
    free(a);
    free(b);
    return answer;
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- the check ---- */

static bool is_there(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0 && !gr_is_empty_dir(path);
}

static graft_status refuse_input(const gr_output *o, const char *how, const char *input, graft_error *err) {
    bool itself = strcmp(o->path, input) == 0;
    return gr_fail(err, GRAFT_BAD_USAGE, "%s %s%s%san input of this command, and an input is never replaced: write elsewhere",
                   o->path, itself ? "is " : how, itself ? "" : input, itself ? "" : ", ");
}

/* out: o->path without links; what a folder holds may be links to other places. */
static graft_status check_input(const gr_output *o, const char *out, const char *input, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *real = realpath(input, NULL), *entry = NULL, *target = NULL;
    DIR *dir = real ? opendir(real) : NULL;
    if (!real) goto done;
    if (strcmp(real, out) == 0 || same_file(input, o->path)) GR_TRY(refuse_input(o, "is ", input, err));
    if (within(real, out)) GR_TRY(refuse_input(o, "contains ", input, err));
    if (within(out, real) && is_there(o->path)) GR_TRY(refuse_input(o, "lies in ", input, err));
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        free(entry);
        free(target);
        entry = gr_path_join(input, e->d_name);
        target = entry ? realpath(entry, NULL) : NULL;
        if (target && (strcmp(target, out) == 0 || same_file(target, o->path))) GR_TRY(refuse_input(o, "is ", entry, err));
        if (target && within(target, out)) GR_TRY(refuse_input(o, "contains ", entry, err));
    }
done:
    if (dir) closedir(dir);
    free(entry);
    free(target);
    free(real);
    return st;
}

/* An adapter of a graft that wrote no marks yet. */
static bool is_old_adapter(const char *folder) {
    char *path = gr_path_join(folder, "adapter_config.json"), *text = NULL;
    int64_t len;
    bool ours = path && gr_file_read(&text, &len, path, MAX_MARK_BYTES, NULL) == GRAFT_OK && strstr(text, "\"graft\": {");
    free(path);
    free(text);
    return ours;
}

static graft_status check_existing(const gr_output *o, graft_error *err) {
    if (!is_there(o->path)) return GRAFT_OK;
    bool folder = gr_is_dir(o->path);
    if (folder && !o->folder)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s is a folder, and a file is to be written: add a file's name", o->path);
    if (!folder && o->folder)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s is a file, and a folder is to be written: write elsewhere, or remove it first",
                       o->path);
    if (folder && !gr_is_marked(o->path, "folder") && !is_old_adapter(o->path))
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "%s exists already and is no model or adapter that graft wrote: it is never replaced; write "
                       "elsewhere, or remove it first",
                       o->path);
    if (!o->overwrite) return gr_fail(err, GRAFT_BAD_USAGE, "%s exists already; --overwrite replaces it", o->path);
    return GRAFT_OK;
}

graft_status gr_output_check(const gr_output *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (gr_is_device(o->path)) return o->folder ? gr_refuse_device(o->path, err) : GRAFT_OK;
    if (!*o->path) return gr_fail(err, GRAFT_BAD_USAGE, "the output has an empty name");
    char *out = real_path(o->path);
    if (!out) return gr_fail_memory(err, o->path);
    for (int i = 0; i < o->n_inputs && st == GRAFT_OK; i++)
        if (o->inputs[i]) st = check_input(o, out, o->inputs[i], err);
    free(out);
    return st == GRAFT_OK ? check_existing(o, err) : st;
}

/* ---- the mark ---- */

char *gr_mark_read(const char *folder) {
    char *path = gr_path_join(folder, GR_MARK_FILE), *text = NULL;
    int64_t len;
    if (path && gr_exists(path) && gr_file_read(&text, &len, path, MAX_MARK_BYTES, NULL) != GRAFT_OK) text = NULL;
    free(path);
    return text;
}

bool gr_is_marked(const char *folder, const char *kind) {
    char *text = gr_mark_read(folder), version[64], found[32];
    bool marked = text && sscanf(text, "graft %63s %31s", version, found) == 2 && strcmp(found, kind) == 0;
    free(text);
    return marked;
}

graft_status gr_mark_folder(const char *folder, graft_error *err) {
    graft_status st;
    gr_str text = {0};
    char *path = gr_path_join(folder, GR_MARK_FILE);
    DIR *dir = opendir(folder);
    if (!dir) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "reading %s", folder));
    gr_str_printf(&text, "graft %s folder\n", GRAFT_VERSION);
    for (struct dirent *e; (e = readdir(dir));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) gr_str_printf(&text, "%s\n", e->d_name);
    if (!path || text.failed) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_file_write(path, text.data, text.len, err));
done:
    if (dir) closedir(dir);
    gr_str_release(&text);
    free(path);
    return st;
}

/* Is name among what graft wrote by the mark? NULL, of an older graft: the names that it gave. */
static bool is_ours(const char *mark, const char *name) {
    /* clang-format off */
    static const char *const old[] = {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "state.h5", "config.json", "generation_config.json",
        "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt",
    };
    /* clang-format on */
    if (strcmp(name, GR_MARK_FILE) == 0) return true;
    for (int i = 0; !mark && i < GR_LEN(old); i++)
        if (fnmatch(old[i], name, 0) == 0) return true;
    size_t n = strlen(name);
    for (const char *line = mark ? strchr(mark, '\n') : NULL; line && line[1]; line = strchr(line + 1, '\n'))
        if (strncmp(line + 1, name, n) == 0 && (line[1 + n] == '\n' || line[1 + n] == '\0')) return true;
    return false;
}

/* Each entry of folder that graft wrote is removed (to NULL), or each that it did not write is moved to `to`. */
static void sweep(const char *folder, const char *to) {
    char *mark = gr_mark_read(folder);
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || is_ours(mark, e->d_name) != !to) continue;
        char *path = gr_path_join(folder, e->d_name), *target = to ? gr_path_join(to, e->d_name) : NULL;
        if (path && !to) unlink(path);
        if (path && target && !gr_exists(target)) rename(path, target);
        free(path);
        free(target);
    }
    if (dir) closedir(dir);
    free(mark);
}

void gr_carry_strangers(const char *from, const char *to) { sweep(from, to); }

void gr_remove_piece(const char *folder) {
    sweep(folder, NULL);
    rmdir(folder);
}
