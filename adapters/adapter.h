/* adapter.h - an adapter as an artifact: what it targets, its matrices, and its files. It is LoRA, or rows of tokens that stand in
 * place of the base's (PEFT's trainable tokens), or both.
 * Its matrices are items of a parameter set; attaching it to a model fills the LoRA slots of the targeted linears. */
#ifndef GR_ADAPTER_H
#define GR_ADAPTER_H

#include "core/model/model.h"

typedef struct gr_pattern { /* rank_pattern / alpha_pattern: first match wins */
    const char *pattern;    /* regular expression or suffix of the module's name, as in PEFT */
    double value;
} gr_pattern;

typedef struct gr_ids_list { /* tokens, ascending */
    const int32_t *ids;
    int64_t n;
} gr_ids_list;

enum { GR_ROWS_EMBED, GR_ROWS_HEAD, GR_ROWS_COUNT }; /* rows of the embedding, and a tied head's with it; of an untied head */

typedef struct gr_adapter_config {
    int64_t rank;
    double alpha;
    double dropout;
    bool use_rslora;
    /* {"all-linear"}, names, suffixes or regular expressions; lm_head and embed_tokens may be named. In a gr_adapter: what the
     * files record, suffixes where all of their modules are targeted */
    const char *const *target_modules;
    int n_target_modules;
    const gr_pattern *rank_pattern, *alpha_pattern;
    int n_rank_pattern, n_alpha_pattern;
    bool rows_alone;                 /* no LoRA: PEFT's TRAINABLE_TOKENS; the fields above say nothing */
    gr_ids_list rows[GR_ROWS_COUNT]; /* tokens whose rows are trained */
    const char *base;                /* base_model_name_or_path that the files record */
} gr_adapter_config;

typedef struct gr_adapter_module {
    char name[96]; /* "model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens" */
    int64_t index; /* of the model's modules; 0: the embedding */
    int64_t rank;
    double alpha;
    int64_t a, b;    /* indices in params; the embedding's A is stored transposed, [V,R] */
    int64_t in, out; /* K and N of the module */
} gr_adapter_module;

typedef struct gr_adapter {
    gr_adapter_config config; /* strings and lists owned by the arena */
    gr_adapter_module *modules;
    int64_t n_modules;
    int64_t rows[GR_ROWS_COUNT]; /* indices in params, [n,C], of what config.rows names */
    gr_params *params;           /* where its matrices are: borrowed, or own */
    gr_params own;
    char *folder;        /* that it was read from; NULL: none. The arena's */
    char *chat_template; /* Jinja text that it was trained with, in its files as chat_template.jinja; NULL: unknown. Owned by the
                            arena */
    uint64_t tokenizer_hash; /* of the tokenizer it was trained with, 0 unknown */
    int64_t vocab;           /* embedding rows of the base it was planned for */
    gr_arena arena;
} gr_adapter;

/* Plan an adapter for a model (shape-only models too): which modules; its matrices are added to params, which is not allocated yet,
 * may have other items and must outlive the adapter (NULL: to a set of its own). BAD_USAGE when a target names no module (the
 * nearest names are given). */
graft_status gr_adapter_plan(gr_adapter **out, const gr_adapter_config *config, gr_model *m, gr_params *params, graft_error *err);
int64_t gr_adapter_n_parameters(const gr_adapter *a);
/* Initial values, in params as it was allocated: A kaiming-uniform(a=sqrt 5), B zero, by seed. */
graft_status gr_adapter_init(gr_adapter *a, uint64_t seed, graft_error *err);
/* Rows of tokens are the base's, whose weights are loaded; does nothing where there are none. */
graft_status gr_adapter_init_rows(gr_adapter *a, const gr_model *m, graft_error *err);
/* Copy the matrices of `from` (same modules and ranks, else BAD_INPUT naming the first difference), and its rows, all of which must
 * be trained: init_from. One of rows alone, or without rows, leaves the rest of a as it is. */
graft_status gr_adapter_copy(gr_adapter *a, const gr_adapter *from, graft_error *err);
/* Fill the model's slots: scale = user_scale * alpha/rank (or /sqrt(rank)). Adapters stack in the order attached, but for rows of
 * tokens, which only one may have and which have no scale (else BAD_USAGE). The adapter must outlive the attachment. detach empties
 * every LoRA slot of the model, and its segments. */
graft_status gr_adapter_attach(gr_adapter *a, gr_model *m, double user_scale, graft_error *err);
void gr_adapter_detach_all(gr_model *m);
double gr_adapter_scale(const gr_adapter *a, const gr_adapter_module *module); /* without user_scale */
void gr_adapter_free(gr_adapter *a);

/* path: a PEFT folder (adapter_config.json, adapter_model.safetensors), a folder of mlx-lm (adapters.safetensors), a GGUF LoRA, a
 * graft run (its adapter/ is taken) or a checkpoint of one, or a folder whose only sub-folder with an adapter_config.json is meant.
 * Load checks names, shapes against the model, element types, finite values, and that the matrices are those that the configuration
 * targets; unsupported kinds (DoRA, modules_to_save ...) are refused by name. */
graft_status gr_adapter_load(gr_adapter **out, const char *path, gr_model *m, bool training, graft_error *err);
/* The files of an adapter into a folder that exists, read back. */
graft_status gr_adapter_write(const gr_adapter *a, const char *folder, graft_error *err);
/* Writes a complete folder atomically and reads it back. replace: an existing adapter folder is replaced. */
graft_status gr_adapter_save(const gr_adapter *a, const char *folder, bool replace, graft_error *err);
bool gr_adapter_has_rows(const gr_adapter *a);
/* Does path name an adapter (and no model)? */
bool gr_adapter_is(const char *path);
/* base_model_name_or_path of an adapter or run folder (owned string), so that --model may be left out. */
graft_status gr_adapter_base(char **base, const char *path, graft_error *err);
/* GGUF LoRA for llama.cpp: rsLoRA and alpha patterns folded (conventions 1.2), rows of q's and k's B in the file's order. */
graft_status gr_adapter_export_gguf(const gr_adapter *a, const gr_model *m, const char *path, graft_error *err);

#endif
