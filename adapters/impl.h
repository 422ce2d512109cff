/* impl.h - what the files of adapters/ share. */
#ifndef GR_ADAPTERS_IMPL_H
#define GR_ADAPTERS_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "adapters/adapter.h"
#include "adapters/export.h"
#include "adapters/merge.h"

/* ---- patterns.c ---- */

/* prefix pattern suffix, anchored at the start; BAD_USAGE naming pattern. Free with pcre2_code_free. */
graft_status gr_regex_compile(pcre2_code **out, const char *prefix, const char *pattern, const char *suffix, graft_error *err);
graft_status gr_regex_match(bool *yes, const pcre2_code *regex, const char *pattern, const char *name, graft_error *err);
/* "q_proj" is the suffix of "model.layers.0.self_attn.q_proj" in whole components. */
bool gr_has_suffix(const char *name, const char *suffix);

/* ---- lora.c ---- */

/* An adapter of the model's modules i with wanted[i]. Ranks and alphas follow config's patterns; config is copied but
 * for its targets, which are recorded from wanted. params as in gr_adapter_plan. */
graft_status gr_adapter_build(gr_adapter **out, const gr_adapter_config *config, gr_model *m, const bool *wanted, gr_params *params,
                              graft_error *err);
/* ---- rows.c ---- */

const char *gr_rows_module(int which); /* "model.embed_tokens", "lm_head" */
/* The rows that c names into a's configuration and parameters. BAD_USAGE for tokens that the model does not have, and a module that
 * has both rows and a LoRA. */
graft_status gr_adapter_add_rows(gr_adapter *a, const gr_adapter_config *c, gr_model *m, graft_error *err);
graft_status gr_adapter_copy_rows(gr_adapter *a, const gr_adapter *from, graft_error *err);
/* May a be attached to m as it is now? Then its rows. */
graft_status gr_adapter_check_rows(const gr_adapter *a, const gr_model *m, double user_scale, graft_error *err);
graft_status gr_adapter_attach_rows(gr_adapter *a, gr_model *m, graft_error *err);
/* The rows of the weight of that name that a has: GR_ROWS_EMBED or HEAD, or -1; tied: the base's head is its embedding. */
int gr_adapter_rows_of(const gr_adapter *a, const char *weight, bool tied);
/* Of rows[n,K], tokens first.., those that a has become a's. */
void gr_adapter_place_rows(const gr_adapter *a, int which, int64_t first, int64_t n, int64_t K, float *rows);

/* True when module's two matrices are those of an embedding (A stored transposed). */
static inline bool gr_adapter_is_embedding(const gr_adapter_module *module) { return module->index == 0; }

/* "q_proj" of "model.layers.0.self_attn.q_proj". */
static inline const char *gr_last_component(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* ---- locate.c ---- */

#define GR_ADAPTER_CONFIG   "adapter_config.json"
#define GR_ADAPTER_TEMPLATE "chat_template.jinja"
#define GR_ADAPTER_TENSORS  "adapter_model.safetensors"
#define GR_MLX_TENSORS      "adapters.safetensors"

/* Where the adapter that path names lies: a folder with an adapter_config.json (path itself, adapter/ of a run, the only
 * sub-folder that is one), or a GGUF file. *place is owned. */
graft_status gr_adapter_locate(char **place, const char *path, graft_error *err);

/* ---- peft_config.c, mlx_config.c, peft_targets.c: adapter_config.json ---- */

struct json_t;
typedef struct gr_peft_config {
    gr_adapter_config config;        /* without targets: the tensors say what is adapted */
    uint64_t tokenizer_hash;         /* of our own key "graft"; 0 when absent */
    int64_t vocab;                   /* likewise */
    gr_ids_list rows[GR_ROWS_COUNT]; /* tokens whose rows are in the file, in its order; config has them ascending */
    const char *base_path;           /* likewise: the way from the folder to the base, NULL when absent */
    bool mlx;                        /* mlx-lm's form: other names, matrices transposed, a scale */
    struct json_t *root;             /* the file */
    gr_arena arena;                  /* owns config's strings and lists */
} gr_peft_config;

/* path: the adapter_config.json. BAD_INPUT naming file and key for what graft cannot honour (DoRA, modules_to_save ...). */
graft_status gr_peft_config_read(gr_peft_config *c, const char *path, graft_error *err);
void gr_peft_config_release(gr_peft_config *c);
/* The values of mlx-lm's form into c. */
graft_status gr_mlx_config_read(gr_peft_config *c, const char *path, graft_error *err);
/* Are the modules with matrices those that the configuration targets? found: by module index of m. */
graft_status gr_peft_check_targets(const gr_peft_config *c, gr_model *m, const bool *found, const char *path, graft_error *err);
graft_status gr_mlx_check_targets(const gr_peft_config *c, gr_model *m, const bool *found, const char *path, graft_error *err);
graft_status gr_peft_read_number(const struct json_t *root, const char *path, const char *key, double *out, graft_error *err);
graft_status gr_peft_config_write(const gr_adapter *a, const char *path, graft_error *err);
/* README.md: what the adapter is and how to load it. */
graft_status gr_model_card_write(const gr_adapter *a, const char *path, graft_error *err);

/* ---- peft_rows.c: rows of tokens in PEFT's files ---- */

/* Of c->root into c's lists. */
graft_status gr_peft_rows_read(gr_peft_config *c, const char *path, graft_error *err);
/* What a's configuration has under trainable_token_indices, or token_indices and target_modules where rows are alone. */
struct json_t *gr_peft_rows_json(const gr_adapter *a);
struct json_t *gr_peft_rows_targets_json(const gr_adapter *a);
/* GR_ROWS_EMBED or HEAD when the name (without PEFT's prefix) is that of rows, and the adapter's own name in it ("": none); -1. */
int gr_peft_rows_of_name(const char *name, const char **adapter);
/* Do c's lists, the tensors found (by GR_ROWS_*, NULL: none) and the base agree? Rows of a tied head leave c. */
graft_status gr_peft_rows_fit(gr_peft_config *c, const gr_model *m, const gr_tensor *const *found, const char *path,
                              graft_error *err);
graft_status gr_peft_rows_load(gr_adapter *a, const gr_peft_config *c, const gr_tensor *const *found, graft_error *err);

/* ---- load.c ---- */

/* A matrix of a file, [rows,cols] there, into dst, float32, as it is or transposed. BAD_INPUT for another shape (expected:
 * by what) and for values that are not finite. */
graft_status gr_adapter_load_matrix(const gr_tensor *t, float *dst, int64_t rows, int64_t cols, bool transposed,
                                    const char *expected, graft_error *err);

/* ---- gguf_lora.c ---- */

graft_status gr_gguf_lora_load(gr_adapter **out, const char *path, gr_model *m, bool training, graft_error *err);
/* The base that the file names, owned; NULL when it names none. */
graft_status gr_gguf_lora_base(char **base, const char *path, graft_error *err);

/* ---- merge.c: what every model made of a base has to do ---- */

/* BAD_USAGE unless m has the weights of its file. doing: "merging". */
graft_status gr_needs_weights(const gr_model *m, const char *doing, graft_error *err);
/* The type of the matrices that are written: o's, else the base's own, bf16 for a quantised base, which is then said (why: "merged
 * weights are written as bf16, ..."). BAD_USAGE for one that the format does not hold. */
graft_status gr_choose_written(gr_dtype *out, const gr_model *m, const gr_merge_options *o, const char *why, graft_error *err);
/* x as a folder or a file under another name, probed against m, then in its place. */
graft_status gr_write_model(const gr_export *x, gr_model *m, const gr_merge_options *o, const char *out_path,
                            gr_merge_report *report, graft_error *err);

/* ---- export.c ---- */

/* rows[n, cols] = rows first.. of a weight as float32. */
void gr_weight_rows(const gr_weight *w, int64_t first, int64_t n, float *rows);

/* The tensors of x as its file lists them (name, dtype, shape), owned by the caller; names are borrowed from the source. dtype_of
 * says the type of an entry. */
typedef gr_dtype gr_dtype_rule(const gr_export *x, const gr_weight_entry *e);
graft_status gr_export_tensors(gr_tensor **out, const gr_export *x, gr_dtype_rule *dtype_of, bool gguf, graft_error *err);
/* Entry i rounded to dtype, into dst; gguf: rows in GGUF's order. */
graft_status gr_export_entry(const gr_export *x, int64_t i, gr_dtype dtype, bool gguf, void *dst, graft_error *err);

#endif
