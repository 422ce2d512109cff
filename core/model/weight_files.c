#include "core/model/weight_files.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

/* ---- names ---- */

/* Parts of a name that wrappers of PyTorch put in, with the dot: torch.compile, FSDP, activation checkpointing. */
static const char *const wrappers[] = {"_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."};

/* What stands before the names of a model that was saved as a part of another, and what it stands for. */
static const struct {
    const char *from, *to;
} prefixes[] = {
    {"module.", ""},                     /* DistributedDataParallel */
    {"model.language_model.", "model."}, /* the text model of a larger one, transformers 5 and 4 */
    {"language_model.", ""},
    {"layers.", "model.layers."}, /* AutoModel: the decoder without its head */
    {"embed_tokens.", "model.embed_tokens."},
    {"norm.", "model.norm."},
};

static const char *canonical(gr_arena *arena, const char *name) {
    char *out = gr_arena_alloc(arena, (int64_t)strlen(name) + 8);
    if (!out) return NULL;
    strcpy(out, name);
    for (int i = 0; i < GR_LEN(wrappers); i++)
        for (char *at; (at = strstr(out, wrappers[i]));)
            memmove(at, at + strlen(wrappers[i]), strlen(at + strlen(wrappers[i])) + 1);
    for (int i = 0; i < GR_LEN(prefixes); i++) {
        size_t from = strlen(prefixes[i].from), to = strlen(prefixes[i].to);
        if (strncmp(out, prefixes[i].from, from) != 0) continue;
        memmove(out + to, out + from, strlen(out + from) + 1);
        memcpy(out, prefixes[i].to, to);
    }
    return out;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const gr_named_tensor *)a)->name, ((const gr_named_tensor *)b)->name);
}

/* ---- opening ---- */

graft_status gr_weight_files_open_hf(gr_weight_files *f, const char *folder, graft_error *err) {
    graft_status st;
    const gr_named_tensor *renamed = NULL;
    GR_TRY(gr_safetensors_open(&f->safetensors, folder, err));
    f->n = gr_safetensors_count(f->safetensors);
    f->items = gr_calloc(f->n, sizeof *f->items);
    if (!f->items) GR_TRY(gr_fail_memory(err, "model"));
    for (int64_t i = 0; i < f->n; i++) {
        f->items[i].tensor = gr_safetensors_get(f->safetensors, i);
        f->items[i].name = canonical(&f->names, f->items[i].tensor->name);
        if (!f->items[i].name) GR_TRY(gr_fail_memory(err, "model"));
    }
    if (f->n > 0) qsort(f->items, (size_t)f->n, sizeof *f->items, by_name);
    for (int64_t i = 0; i < f->n; i++) {
        const gr_named_tensor *a = &f->items[i];
        if (strcmp(a->name, a->tensor->name) != 0) renamed = a;
        if (i > 0 && strcmp(a[-1].name, a->name) == 0)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: tensors %s and %s would both be %s", folder, a[-1].tensor->name,
                           a->tensor->name, a->name));
    }
    if (renamed) gr_note("%s: tensor %s is taken for %s, and others likewise", folder, renamed->tensor->name, renamed->name);
done:
    return st;
}

graft_status gr_weight_files_open_gguf(gr_weight_files *f, const char *path, graft_error *err) {
    graft_status st;
    GR_TRY(gr_gguf_open(&f->gguf, path, err));
    f->n = gr_gguf_n_tensors(f->gguf);
    f->items = gr_calloc(f->n, sizeof *f->items);
    if (!f->items) GR_TRY(gr_fail_memory(err, "model"));
    for (int64_t i = 0; i < f->n; i++) {
        const gr_tensor *t = gr_gguf_tensor(f->gguf, i);
        f->items[i] = (gr_named_tensor){.name = t->name, .tensor = t};
    }
    if (f->n > 0) qsort(f->items, (size_t)f->n, sizeof *f->items, by_name);
done:
    return st;
}

void gr_weight_files_close(gr_weight_files *f) {
    gr_gguf_close(f->gguf);
    gr_safetensors_close(f->safetensors);
    free(f->items);
    gr_arena_release(&f->names);
    *f = (gr_weight_files){0};
}

/* ---- taking ---- */

const gr_tensor *gr_weight_files_take(gr_weight_files *f, const char *name) {
    gr_named_tensor key = {.name = name};
    gr_named_tensor *found = f->n ? bsearch(&key, f->items, (size_t)f->n, sizeof key, by_name) : NULL;
    if (!found) return NULL;
    found->used = true;
    return found->tensor;
}

graft_status gr_weight_files_missing(const gr_weight_files *f, const char *name, const gr_weight_entry *e, const char *path,
                                     graft_error *err) {
    const char *odd = f->safetensors ? gr_safetensors_skipped(f->safetensors, name) : NULL;
    if (odd)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s has type %s, expected F32, F16 or BF16: save the model in one of these",
                       path, name, odd);
    if (e->slot == GR_SLOT_HEAD)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: tensor lm_head.weight is missing (expected %lld x %lld): if the model's head is its "
                       "embedding, config.json should say \"tie_word_embeddings\": true",
                       path, (long long)e->view.rows, (long long)e->view.cols);
    bool others = f->n > 0 && e->slot == GR_SLOT_EMBED; /* the first one: names of another program? */
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s is missing (expected %lld x %lld)%s%s", path, name, (long long)e->view.rows,
                   (long long)e->view.cols, others ? "; the file has names such as " : "", others ? f->items[0].tensor->name : "");
}

/* Tables that programs computed from the configuration and saved. */
static bool is_harmless(const char *name) {
    static const char *const parts[] = {"rotary_emb.", "rotary_pos_emb.", "attn_rot_embd.", "position_ids", ".masked_bias"};
    for (int i = 0; i < GR_LEN(parts); i++)
        if (strstr(name, parts[i])) return true;
    return strcmp(name, "rope_freqs.weight") == 0; /* read with the configuration */
}

/* Of the pictures, in a model of which the text part alone runs. */
static bool is_of_pictures(const char *name) {
    static const char *const parts[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                        "model.multi_modal_projector."};
    for (int i = 0; i < GR_LEN(parts); i++)
        if (gr_starts_with(name, parts[i])) return true;
    return false;
}

graft_status gr_weight_files_unused(const gr_weight_files *f, const gr_model_config *c, graft_error *err) {
    const char *first = NULL, *odd, *file = NULL;
    int64_t n = 0;
    for (int64_t i = 0; i < f->n; i++) {
        if (f->items[i].used || is_harmless(f->items[i].name) || (c->text_part && is_of_pictures(f->items[i].name))) continue;
        if (n++ == 0) file = f->items[i].tensor->file, first = f->items[i].tensor->name;
    }
    for (int64_t i = 0; f->safetensors && (odd = gr_safetensors_skipped_at(f->safetensors, i)); i++)
        if (!is_harmless(odd) && n++ == 0) first = odd;
    if (n == 0) return GRAFT_OK;
    bool bias = f->safetensors && gr_ends_with(first, ".bias");
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s%stensor %s%s: a %s of %lld layers has no such weight%s, so that what runs would not be "
                   "what the file holds",
                   file ? file : "", file ? ": " : "", first, n > 1 ? " (and others)" : "", c->arch->hf_type,
                   (long long)c->n_layers, bias ? " unless attention_bias or mlp_bias of its config.json say so" : "");
}
