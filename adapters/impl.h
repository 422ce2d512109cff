/* impl.h - what the files of adapters/ share. */
#ifndef GR_ADAPTERS_IMPL_H
#define GR_ADAPTERS_IMPL_H

#include "adapters/adapter.h"

/* An adapter of the wanted modules: wanted[0] is the embedding, wanted[1 + i] linear i. Ranks and alphas follow config's patterns;
 * config is copied. Nothing is allocated in params yet. */
graft_status gr_adapter_build(gr_adapter **out, const gr_adapter_config *config, gr_model *m, const bool *wanted, graft_error *err);

/* True when module's two matrices are those of an embedding (A stored transposed). */
static inline bool gr_adapter_is_embedding(const gr_adapter_module *module) { return module->linear < 0; }


#endif
