/* impl.h - what the files of adapters/ share. */
#ifndef GR_ADAPTERS_IMPL_H
#define GR_ADAPTERS_IMPL_H

#include <string.h>

#include "adapters/adapter.h"

/* ---- lora.c ---- */

/* Module i of a model, 0 <= i <= gr_model_n_linears: 0 is the embedding, 1 + j linear j. Its name and shape,
 * out x in. */
void gr_adapter_module_at(gr_model *m, int64_t i, char name[96], int64_t *out, int64_t *in);
/* An adapter of the modules i with wanted[i]. Ranks and alphas follow config's patterns; config is copied but
 * for its targets, which are recorded from wanted. Nothing is allocated in params yet. */
graft_status gr_adapter_build(gr_adapter **out, const gr_adapter_config *config, gr_model *m,
                              const bool *wanted, graft_error *err);
/* True when module's two matrices are those of an embedding (A stored transposed). */
static inline bool gr_adapter_is_embedding(const gr_adapter_module *module) {
    return module->linear < 0;
}

/* "q_proj" of "model.layers.0.self_attn.q_proj". */
static inline const char *gr_last_component(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* ---- peft_config.c: adapter_config.json ---- */

typedef struct gr_peft_config {
    gr_adapter_config config; /* without targets: the tensors say what is adapted */
    uint64_t tokenizer_hash;  /* of our own key "graft"; 0 when absent */
    int64_t vocab;            /* likewise */
    const char *base_path;    /* likewise: the way from the folder to the base, NULL when absent */
    gr_arena arena;           /* owns config's strings and lists */
} gr_peft_config;

/* path: the adapter_config.json. BAD_INPUT naming file and key for what graft cannot honour (DoRA,
 * modules_to_save ...). */
graft_status gr_peft_config_read(gr_peft_config *c, const char *path, graft_error *err);
void gr_peft_config_release(gr_peft_config *c);
graft_status gr_peft_config_write(const gr_adapter *a, const char *path, graft_error *err);
/* README.md: what the adapter is and how to load it. */
graft_status gr_model_card_write(const gr_adapter *a, const char *path, graft_error *err);

#endif
