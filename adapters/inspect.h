/* inspect.h - what a path is and what is in it. */
#ifndef GR_INSPECT_H
#define GR_INSPECT_H

#include "core/base/base.h"

/* safetensors, HF folder, adapter, GGUF model, GGUF LoRA, checkpoint, token cache, run: a table for people, or with json one JSON
 * object, to out. */
graft_status gr_inspect(const char *path, bool json, FILE *out, graft_error *err);

#endif
