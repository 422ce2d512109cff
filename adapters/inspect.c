/* What is this path, and what is in it? Every kind of file becomes the same description (a JSON object: path,
 * kind, facts, tensors), which is printed as it is or as a table. */
#include "adapters/inspect.h"
#include "adapters/impl.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/output.h"
#include "core/base/sniff.h"
#include "core/io/h5.h"

enum { JSON_MAX_BYTES = 16 << 20 };

typedef struct description {
    const char *kind;
    json_t *facts;   /* object, in the order of reading */
    json_t *tensors; /* array of {name, dtype, shape, bytes} */
    int64_t n_elements, n_bytes;
} description;

static void add_text(description *d, const char *key, const char *text, int64_t len) {
    json_t *value = json_stringn(text, (size_t)len);
    json_object_set_new(d->facts, key, value ? value : json_string("(not UTF-8)"));
}

static void add_int(description *d, const char *key, int64_t value) { json_object_set_new(d->facts, key, json_integer(value)); }

static void add_tensor(description *d, const char *name, const char *dtype, int n_dims, const int64_t *shape, int64_t n_elements,
                       int64_t n_bytes) {
    json_t *dims = json_array();
    for (int i = 0; i < n_dims; i++) json_array_append_new(dims, json_integer(shape[i]));
    json_array_append_new(
        d->tensors, json_pack("{s:s, s:s, s:o, s:I}", "name", name, "dtype", dtype, "shape", dims, "bytes", (json_int_t)n_bytes));
    d->n_elements += n_elements;
    d->n_bytes += n_bytes;
}

static void add_file_tensor(description *d, const gr_tensor *t) {
    add_tensor(d, t->name, gr_dtype_get(t->dtype)->name, t->n_dims, t->shape, t->n_elements, t->n_bytes);
}

/* ---- the kinds ---- */

static graft_status describe_safetensors(description *d, const char *path, graft_error *err) {
    gr_safetensors *files;
    graft_status st = gr_safetensors_open(&files, path, err);
    if (st != GRAFT_OK) return st;
    if (!d->kind) d->kind = "safetensors";
    for (int64_t i = 0; i < gr_safetensors_count(files); i++) add_file_tensor(d, gr_safetensors_get(files, i));
    const char *type;
    for (int64_t i = 0; gr_safetensors_odd(files, i, &type); i++) { /* of types that graft does not compute with */
        const gr_tensor *t = gr_safetensors_odd(files, i, &type);
        int64_t n = t->n_dims < 0 ? 0 : 1;
        for (int k = 0; k < t->n_dims; k++)
            if (t->shape[k] < 0 || !gr_mul_ok(&n, n, t->shape[k])) n = 0;
        add_tensor(d, t->name, type, GR_MAX(t->n_dims, 0), t->shape, n, t->n_bytes);
    }
    gr_safetensors_close(files);
    return GRAFT_OK;
}

/* The keys of a JSON file that say something: neither null nor empty. */
static graft_status add_json_file(description *d, const char *path, graft_error *err) {
    graft_status st;
    char *text = NULL;
    int64_t len;
    json_t *root = NULL, *value;
    const char *key;
    json_error_t why;
    GR_TRY(gr_file_read_json(&text, &len, path, JSON_MAX_BYTES, err));
    root = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(root)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: %s", path, root ? "expected a JSON object" : why.text));
    json_object_foreach(root, key, value) {
        bool empty = json_is_null(value) || (json_is_object(value) && json_object_size(value) == 0) ||
                     (json_is_array(value) && json_array_size(value) == 0);
        if (!empty && strcmp(key, "log_history") != 0) json_object_set(d->facts, key, value);
    }
done:
    json_decref(root);
    free(text);
    return st;
}

static graft_status describe_config(description *d, const char *path, graft_error *err) {
    gr_model_config c;
    graft_status st = gr_config_read_json(&c, path, err);
    if (st != GRAFT_OK) return st;
    if (!d->kind) d->kind = "model configuration (shapes only)";
    const struct {
        const char *key;
        int64_t value;
    } sizes[] = {{"layers", c.n_layers},    {"hidden", c.hidden}, {"heads", c.n_heads}, {"key_value_heads", c.n_kv_heads},
                 {"head_size", c.head_dim}, {"ffn", c.ffn},       {"vocab", c.vocab},   {"context", c.max_positions}};
    json_object_set_new(d->facts, "architecture", json_string(c.arch->hf_type));
    for (int i = 0; i < GR_LEN(sizes); i++) add_int(d, sizes[i].key, sizes[i].value);
    if (c.base_vocab > 0) add_int(d, "extended_from", c.base_vocab);
    json_object_set_new(d->facts, "tied_head", json_boolean(c.tied));
    gr_weight_entry *entries = NULL;
    int64_t n = 0, parameters = 0;
    st = gr_weights_list(&entries, &n, &c, err);
    for (int64_t i = 0; i < n; i++) parameters += entries[i].view.rows * entries[i].view.cols;
    free(entries);
    if (st == GRAFT_OK) add_int(d, "parameters", parameters);
    return st;
}

static graft_status add_gguf_key(description *d, const gr_gguf *g, const char *key, gr_gguf_type type, graft_error *err) {
    static const char *const type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                             "bool", "string", "array", "u64", "i64", "f64"};
    graft_status st;
    int64_t integer, len;
    double real;
    bool flag;
    const char *text;
    char summary[64];
    gr_gguf_type element;
    switch (type) {
    case GR_GGUF_STRING:
        GR_TRY(gr_gguf_get_string(g, key, &text, &len, err));
        add_text(d, key, text, len);
        break;
    case GR_GGUF_ARRAY:
        GR_TRY(gr_gguf_get_array(g, key, &element, &len, err));
        snprintf(summary, sizeof summary, "[%lld %s]", (long long)len,
                 (int)element < GR_LEN(type_names) ? type_names[element] : "?");
        add_text(d, key, summary, (int64_t)strlen(summary));
        break;
    case GR_GGUF_BOOL:
        GR_TRY(gr_gguf_get_bool(g, key, &flag, err));
        json_object_set_new(d->facts, key, json_boolean(flag));
        break;
    case GR_GGUF_F32:
    case GR_GGUF_F64:
        GR_TRY(gr_gguf_get_float(g, key, &real, err));
        json_object_set_new(d->facts, key, json_real(real));
        break;
    default: GR_TRY(gr_gguf_get_int(g, key, &integer, err)); add_int(d, key, integer);
    }
done:
    return st;
}

/* What the file leaves out of its tokenizer, and what is taken. */
static void add_silences(description *d, const gr_gguf *g) {
    const char *model = "";
    if (!gr_gguf_has(g, "tokenizer.ggml.model") || gr_gguf_get_string(g, "tokenizer.ggml.model", &model, NULL, NULL) != GRAFT_OK)
        return;
    if (strcmp(model, "gpt2") == 0 && !gr_gguf_has(g, "tokenizer.ggml.pre"))
        json_object_set_new(d->facts, "tokenizer.ggml.pre", json_string("(missing: llama.cpp's default)"));
    if (!gr_gguf_has(g, "tokenizer.ggml.add_bos_token"))
        json_object_set_new(d->facts, "tokenizer.ggml.add_bos_token", json_string("(missing: as llama.cpp decides)"));
}

static graft_status describe_gguf(description *d, const char *path, graft_error *err) {
    gr_gguf *g;
    const char *type = "";
    graft_status st = gr_gguf_open(&g, path, err);
    if (st != GRAFT_OK) return st;
    if (gr_gguf_has(g, "general.type")) GR_TRY(gr_gguf_get_string(g, "general.type", &type, NULL, err));
    d->kind = strcmp(type, "adapter") == 0 ? "GGUF LoRA" : "GGUF model";
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
        gr_gguf_type value;
        const char *key = gr_gguf_key(g, i, &value);
        GR_TRY(add_gguf_key(d, g, key, value, err));
    }
    add_silences(d, g);
    for (int64_t i = 0; i < gr_gguf_n_tensors(g); i++) add_file_tensor(d, gr_gguf_tensor(g, i));
done:
    gr_gguf_close(g);
    return st;
}

static graft_status add_h5_item(void *context, gr_h5 *h, const char *name, bool is_attribute, graft_error *err) {
    static const struct {
        gr_h5_type type;
        const char *name;
        int64_t bytes;
    } types[] = {{GR_H5_F32, "f32", 4}, {GR_H5_F64, "f64", 8}, {GR_H5_I32, "i32", 4}, {GR_H5_I64, "i64", 8}, {GR_H5_U8, "u8", 1}};
    description *d = context;
    int64_t integer, shape[2] = {1, 1};
    double real;
    char *text;
    if (is_attribute && gr_h5_get_int(h, name, &integer, NULL) == GRAFT_OK) {
        add_int(d, name, integer);
    } else if (is_attribute && gr_h5_get_double(h, name, &real, NULL) == GRAFT_OK) {
        json_t *value = json_real(real); /* NULL for the NaN of "not measured" */
        json_object_set_new(d->facts, name, value ? value : json_null());
    } else if (is_attribute && gr_h5_get_text(h, name, &text, NULL) == GRAFT_OK) {
        add_text(d, name, text, (int64_t)strlen(text));
        free(text);
    }
    for (int i = 0; !is_attribute && i < GR_LEN(types); i++)
        for (int n_dims = 1; n_dims <= 2; n_dims++)
            if (gr_h5_shape(h, name, types[i].type, n_dims, shape, NULL) == GRAFT_OK) {
                int64_t n = n_dims == 1 ? shape[0] : shape[0] * shape[1];
                add_tensor(d, name, types[i].name, n_dims, shape, n, n * types[i].bytes);
            }
    (void)err;
    return GRAFT_OK;
}

static graft_status describe_h5(description *d, const char *path, graft_error *err) {
    gr_h5 *h;
    graft_status st = gr_h5_open(&h, path, err);
    if (st != GRAFT_OK) return st;
    d->kind = gr_h5_has(h, "/ids") ? "token cache" : gr_h5_has(h, "/shards") ? "index of a token cache" : "checkpoint";
    st = gr_h5_visit(h, add_h5_item, d, err);
    gr_h5_close(h);
    return st;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* A run's log is locked while it runs. */
static bool is_running(const char *folder) {
    char *path = gr_path_join(folder, "run.log");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    bool running = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0;
    if (fd >= 0) close(fd);
    free(path);
    return running;
}

/* What the mark of a run tells, line by line: status, base, data, best step ... */
static void add_mark(description *d, const char *folder, const char *mark) {
    for (const char *line = strchr(mark, '\n'), *end; line && line[1]; line = end) {
        const char *colon = strstr(++line, ": ");
        end = strchr(line, '\n');
        if (!colon || (end && colon > end)) continue;
        char *key = gr_strndup(line, colon - line);
        const char *text = colon + 2;
        int64_t len = end ? end - text : (int64_t)strlen(text);
        json_t *before = key ? json_object_get(d->facts, key) : NULL;
        if (key && strcmp(key, "status") == 0 && len == 7 && strncmp(text, "running", 7) == 0 && !is_running(folder)) {
            add_text(d, key, "killed", 6); /* it could not say how it ended */
        } else if (before) {               /* a list: data */
            char *both = gr_format("%s, %.*s", json_string_value(before), (int)len, text);
            if (both) add_text(d, key, both, (int64_t)strlen(both));
            free(both);
        } else if (key) {
            add_text(d, key, text, len);
        }
        free(key);
    }
}

/* What a run's folder holds, and how far it came. */
static graft_status describe_run(description *d, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    char **names = NULL, *state = gr_path_join(path, "trainer_state.json");
    int64_t n = 0, capacity = 0;
    json_t *contents = json_array();
    DIR *dir = opendir(path);
    char *mark = gr_mark_read(path), *base = NULL;
    d->kind = "run";
    if (mark) add_mark(d, path, mark);
    else if (gr_adapter_base(&base, path, NULL) == GRAFT_OK) add_text(d, "base", base, (int64_t)strlen(base));
    if (!dir) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path));
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        if (!gr_grow(&names, &capacity, n + 1, sizeof *names) || !(names[n] = gr_strdup(e->d_name)))
            GR_TRY(gr_fail_memory(err, path));
        n++;
    }
    if (n > 0) qsort(names, (size_t)n, sizeof *names, by_name);
    for (int64_t i = 0; i < n; i++) json_array_append_new(contents, json_string(names[i]));
    json_object_set(d->facts, "contents", contents);
    if (!state) GR_TRY(gr_fail_memory(err, path));
    if (gr_exists(state)) GR_TRY(add_json_file(d, state, err));
done:
    free(mark);
    free(base);
    for (int64_t i = 0; i < n; i++) free(names[i]);
    free(names);
    free(state);
    json_decref(contents);
    if (dir) closedir(dir);
    return st;
}

/* The path of name in folder when it is there (owned), else NULL. */
static char *present(const char *folder, const char *name) {
    char *path = gr_path_join(folder, name);
    if (path && gr_exists(path)) return path;
    free(path);
    return NULL;
}

/* PEFT's or mlx-lm's: the configuration, and the matrices where they are. */
static graft_status describe_adapter(description *d, const char *folder, const char *config, graft_error *err) {
    graft_status st;
    char *tensors = present(folder, GR_ADAPTER_TENSORS), *mlx = tensors ? NULL : present(folder, GR_MLX_TENSORS);
    d->kind = mlx ? "mlx-lm adapter" : "PEFT adapter";
    GR_TRY(add_json_file(d, config, err));
    if (!mlx && !tensors) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s/%s is missing", folder, GR_ADAPTER_TENSORS));
    GR_TRY(describe_safetensors(d, mlx ? mlx : tensors, err));
done:
    free(tensors);
    free(mlx);
    return st;
}

/* Nothing of graft's or of others' lies in the folder itself: an adapter in a sub-folder may. */
static graft_status describe_inside(description *d, const char *path, graft_error *err) {
    char *place = NULL, *config = NULL;
    graft_status st;
    if (!gr_adapter_is(path))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: a folder without adapter_config.json, config.json, recipe.yaml or state.h5: nothing graft knows", path);
    GR_TRY(gr_adapter_locate(&place, path, err));
    config = gr_path_join(place, GR_ADAPTER_CONFIG);
    if (!config) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(describe_adapter(d, place, config, err));
done:
    free(place);
    free(config);
    return st;
}

static graft_status describe_folder(description *d, const char *path, graft_error *err) {
    graft_status st;
    char *adapter = present(path, "adapter_config.json"), *state = present(path, "state.h5"),
         *recipe = present(path, "recipe.yaml");
    char *config = present(path, "config.json"), *weights = present(path, "model.safetensors");
    if (!weights) weights = present(path, "model.safetensors.index.json");
    if (state) {
        GR_TRY(describe_h5(d, state, err));
        json_object_set_new(d->facts, "adapter", json_boolean(adapter != NULL)); /* is it one as well? */
    } else if (adapter) {
        GR_TRY(describe_adapter(d, path, adapter, err));
    } else if (recipe || gr_is_marked(path, "run")) {
        GR_TRY(describe_run(d, path, err));
    } else if (config) {
        if (weights) d->kind = "Hugging Face model";
        GR_TRY(describe_config(d, config, err));
        if (weights) GR_TRY(describe_safetensors(d, path, err));
    } else {
        st = describe_inside(d, path, err);
    }
done:
    free(adapter);
    free(state);
    free(recipe);
    free(config);
    free(weights);
    return st;
}

static graft_status describe_file(description *d, const char *path, graft_error *err) {
    char head[GR_SNIFF_BYTES];
    FILE *f = fopen(path, "re");
    if (!f) return gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    int64_t n = (int64_t)fread(head, 1, sizeof head, f);
    fclose(f);
    gr_kind kind = gr_sniff(head, n, NULL);
    if (kind == GR_KIND_GGUF) return describe_gguf(d, path, err);
    if (kind == GR_KIND_HDF5) return describe_h5(d, path, err);
    if (kind == GR_KIND_SAFETENSORS || gr_ends_with(path, ".safetensors") || gr_ends_with(path, ".safetensors.index.json"))
        return describe_safetensors(d, path, err);
    if (gr_ends_with(path, "config.json")) return describe_config(d, path, err);
    graft_status st = gr_expect_kind(head, n, GR_KIND_UNKNOWN, NULL, path, err);
    if (st != GRAFT_OK) return st;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: neither GGUF, safetensors, config.json, nor a checkpoint or cache of graft", path);
}

/* ---- printing ---- */

/* At most width bytes of text in one line, whatever is in it. */
static void print_text(FILE *out, const char *text, size_t width) {
    size_t n = strlen(text), shown = n > width ? width : n;
    while (shown < n && shown > 0 && ((unsigned char)text[shown] & 0xC0) == 0x80) shown--; /* whole characters */
    for (size_t i = 0; i < shown; i++) fputc((unsigned char)text[i] < 0x20 || text[i] == 0x7F ? ' ' : text[i], out);
    if (shown < n) fprintf(out, "... (%zu bytes)", n);
}

/* A tensor's line in the table but for its count; with grouped, numbers between dots are a star: all layers in one line. */
static void tensor_line(const json_t *tensor, bool grouped, gr_str *line) {
    const json_t *item;
    size_t j;
    gr_str shape = {0};
    json_array_foreach(json_object_get(tensor, "shape"), j, item)
        gr_str_printf(&shape, "%s%lld", j ? " x " : "", (long long)json_integer_value(item));
    gr_str_printf(line, "%-5s %-16s ", json_string_value(json_object_get(tensor, "dtype")), shape.data ? shape.data : "");
    for (const char *c = json_string_value(json_object_get(tensor, "name")), *start = c; *c; c++) {
        size_t digits = grouped && c > start && c[-1] == '.' ? strspn(c, "0123456789") : 0;
        if (digits > 0 && c[digits] == '.') {
            gr_str_putc(line, '*');
            c += digits - 1;
        } else {
            gr_str_putc(line, *c);
        }
    }
    gr_str_release(&shape);
}

/* Line by line; those of a checkpoint by kind, which has each of its matrices three times. */
static void print_tensors(const description *d, FILE *out) {
    bool grouped = strcmp(d->kind, "checkpoint") == 0;
    json_t *groups = json_object(), *tensor, *count; /* line -> how many */
    const char *text;
    size_t i;
    json_array_foreach(d->tensors, i, tensor) {
        gr_str line = {0};
        tensor_line(tensor, grouped, &line);
        if (!grouped && line.data) fputs("  ", out), print_text(out, line.data, 192), fputc('\n', out);
        else if (line.data)
            json_object_set_new(groups, line.data, json_integer(1 + json_integer_value(json_object_get(groups, line.data))));
        gr_str_release(&line);
    }
    json_object_foreach(groups, text, count) {
        fprintf(out, "  %4lld x ", (long long)json_integer_value(count));
        print_text(out, text, 192);
        fputc('\n', out);
    }
    json_decref(groups);
}

static void print_table(const description *d, const char *path, FILE *out) {
    enum { TEXT_WIDTH = 80, KEY_WIDTH = 28 };
    const char *key;
    json_t *value;
    fprintf(out, "%s: %s\n", path, d->kind);
    json_object_foreach(d->facts, key, value) {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        fprintf(out, "  %-*s ", KEY_WIDTH, key);
        print_text(out, text ? text : json_is_string(value) ? json_string_value(value) : "", TEXT_WIDTH);
        fputc('\n', out);
        free(text);
    }
    print_tensors(d, out);
    if (json_array_size(d->tensors) > 0)
        fprintf(out, "%zu tensors, %lld elements, %.1f MB\n", json_array_size(d->tensors), (long long)d->n_elements,
                (double)d->n_bytes / 1e6);
}

static graft_status print_json(const description *d, const char *path, FILE *out, graft_error *err) {
    json_t *root = json_pack("{s:s, s:s, s:O, s:O, s:I, s:I}", "path", path, "kind", d->kind, "facts", d->facts, "tensors",
                             d->tensors, "elements", (json_int_t)d->n_elements, "bytes", (json_int_t)d->n_bytes);
    if (!root) return gr_fail(err, GRAFT_BAD_INPUT, "%s: the path is not UTF-8, or out of memory", path);
    json_dumpf(root, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(root);
    return GRAFT_OK;
}

graft_status gr_inspect(const char *path, bool json, FILE *out, graft_error *err) {
    graft_status st;
    description d = {.facts = json_object(), .tensors = json_array()};
    if (!d.facts || !d.tensors) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_is_dir(path) ? describe_folder(&d, path, err) : describe_file(&d, path, err));
    if (json) GR_TRY(print_json(&d, path, out, err));
    else print_table(&d, path, out);
done:
    json_decref(d.facts);
    json_decref(d.tensors);
    return st;
}
