#include "peft/recipe_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/tokens.h"

/* Keys of axolotl, LLaMA-Factory, torchtune, transformers, TRL and MLX, and what to write instead. */
static const struct peer {
    const char *key, *hint;
} peers[] = {
    {"lora_r", "use adapter.rank"},
    {"lora_rank", "use adapter.rank"},
    {"r", "use adapter.rank"},
    {"lora_alpha", "use adapter.alpha"},
    {"lora_dropout", "use adapter.dropout"},
    {"lora_target_modules", "use adapter.target_modules"},
    {"lora_target", "use adapter.target_modules"},
    {"lora_modules", "use adapter.target_modules"},
    {"lora_target_linear", "use adapter.target_modules: all-linear"},
    {"finetuning_type", "use adapter.method"},
    {"stage", "use train.objective"},
    {"per_device_train_batch_size", "use train.batch_size: samples per optimizer step"},
    {"micro_batch_size", "use train.batch_size: samples per optimizer step; memory is train.micro_batch_tokens"},
    {"gradient_accumulation_steps", "leave it out: train.batch_size is per optimizer step, memory is train.micro_batch_tokens"},
    {"per_device_eval_batch_size", "use eval.batch_tokens"},
    {"eval_batch_size", "use eval.batch_tokens"},
    {"cutoff_len", "use data.max_length"},
    {"sequence_len", "use data.max_length"},
    {"max_seq_length", "use data.max_length"},
    {"max_seq_len", "use data.max_length"},
    {"model_max_length", "use data.max_length"},
    {"lr", "use train.learning_rate"},
    {"lr_scheduler_type", "use train.lr_scheduler"},
    {"base_model", "use model.base"},
    {"model_name_or_path", "use model.base"},
    {"datasets", "use data.train"},
    {"dataset", "use data.train"},
    {"train_file", "use data.train"},
    {"val_set_size", "use data.eval: a share such as 0.02"},
    {"val_size", "use data.eval: a share such as 0.02"},
    {"eval_dataset", "use data.eval"},
    {"chat_template", "use data.template"},
    {"chat_template_kwargs", "use data.template_args"},
    {"enable_thinking", "use data.template_args: {enable_thinking: false}"},
    {"train_on_inputs", "use data.loss_on: all"},
    {"train_on_prompt", "use data.loss_on: all"},
    {"assistant_only_loss", "use data.loss_on: completion"},
    {"completion_only_loss", "use data.loss_on: completion"},
    {"num_epochs", "use train.num_train_epochs"},
    {"epochs", "use train.num_train_epochs"},
    {"iters", "use train.max_steps"},
    {"logging_steps", "use log.every"},
    {"log_every_n_steps", "use log.every"},
    {"save_steps", "use save.every"},
    {"saves_per_epoch", "use save.every (steps)"},
    {"eval_steps", "use eval.every"},
    {"evals_per_epoch", "use eval.every (steps)"},
    {"clip_grad_norm", "use train.max_grad_norm"},
    {"beta1", "use train.adam_beta1"},
    {"beta2", "use train.adam_beta2"},
    {"adam_eps", "use train.adam_epsilon"},
    {"bf16", "use model.dtype: bf16"},
    {"fp16", "use model.dtype: fp16"},
    {"load_in_8bit", "use model.quantize"},
    {"load_in_4bit", "use model.quantize"},
    {"quantization_bit", "use model.quantize"},
    {"enable_activation_checkpointing", "use train.gradient_checkpointing"},
    {"resume_from_checkpoint", "leave it out: `graft train RECIPE --resume`"},
    {"overwrite_output_dir", "leave it out: `graft train RECIPE --overwrite`"},
    {"report_to", "use log.tensorboard"},
    {"plot_loss", "use log.plot"},
    {"sample_packing", "leave it out: batches are never padded here"},
    {"packing", "leave it out: batches are never padded here"},
    {"group_by_length", "leave it out: batches are never padded here"},
    {"trainable_token_indices", "use adapter.trainable_tokens, or adapter.method: embeddings"},
    {"modules_to_save", "use adapter.trainable_tokens, or adapter.method: embeddings"},
    {"lora_modules_to_save", "use adapter.trainable_tokens, or adapter.method: embeddings"},
    {"additional_target", "use adapter.trainable_tokens, or adapter.method: embeddings"},
};

const char *gr_recipe_peer_hint(const char *key) {
    for (int i = 0; i < GR_LEN(peers); i++)
        if (strcmp(peers[i].key, key) == 0) return peers[i].hint;
    return NULL;
}

/* Choices of later versions: refused by name, never proposed. */
static const struct later {
    const char *section, *name, *choice, *why;
} later[] = {
    {"model", "compute", "fp8-full", "is not offered: a forward in fp8 costs 1.2 % of loss; fp8 makes gradients of it alone"},
    {"train", "objective", "dpo", "is not in this version; sft and pretrain are"},
    {"train", "objective", "kto", "is not in this version; sft and pretrain are"},
};

const char *gr_recipe_later(const gr_key *k, const char *choice) {
    for (int i = 0; i < GR_LEN(later); i++) {
        const struct later *l = &later[i];
        if (strcmp(k->section, l->section) == 0 && strcmp(k->name, l->name) == 0 && strcmp(choice, l->choice) == 0) return l->why;
    }
    return NULL;
}

/* ---- problems ---- */

static graft_status note(gr_problems *p, struct gr_problem problem, char *text) {
    if (!text || !gr_grow(&p->items, &p->capacity, p->n + 1, sizeof *p->items) ||
        !(problem.text = gr_arena_strdup(&p->arena, text)))
        p->failed = true;
    else p->items[p->n++] = problem;
    free(text);
    return GRAFT_OK;
}

graft_status gr_problem_at(gr_problems *p, const gr_yaml *n, gr_problem_place place, const char *format, ...) {
    char what[800];
    struct gr_problem problem = {.missing = place == GR_AT_FILE};
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (!n->from_file) return note(p, problem, gr_format("%s: %s", n->file, what));
    problem.line = place == GR_AT_KEY ? n->key_line : n->line;
    problem.column = place == GR_AT_KEY ? n->key_column : n->column;
    return note(p, problem, gr_format("%s:%d:%d: %s", n->file, problem.line, problem.column, what));
}

void gr_problems_release(gr_problems *p) {
    free(p->items);
    gr_arena_release(&p->arena);
    *p = (gr_problems){0};
}

/* ---- rules ---- */

/* At the place where the key of the row stands. */
static graft_status refuse(const gr_recipe *r, const gr_yaml *const *nodes, int row, const char *why, gr_problems *p) {
    const char *section = gr_recipe_keys[row].section, *name = gr_recipe_keys[row].name, *dot = *section ? "." : "";
    if (nodes[row]) return gr_problem_at(p, nodes[row], GR_AT_VALUE, "%s%s%s: %s", section, dot, name, why);
    return note(p, (struct gr_problem){0}, gr_format("%s%s%s%s%s: %s", r->path, *r->path ? ": " : "", section, dot, name, why));
}

bool gr_recipe_has_metric(const gr_recipe *r, const char *name) {
    for (int i = 0; i < r->eval_metrics.n; i++)
        if (strcmp(r->eval_metrics.items[i], name) == 0) return true;
    return false;
}

static const char *unknown_metric(const gr_recipe *r) {
    for (int i = 0; i < r->eval_metrics.n; i++)
        if (strcmp(r->eval_metrics.items[i], "loss") != 0 && strcmp(r->eval_metrics.items[i], "exact_match") != 0)
            return r->eval_metrics.items[i];
    return NULL;
}

static bool whole_ranks(const gr_recipe *r) {
    for (int i = 0; i < r->adapter_rank_pattern.n; i++)
        if (r->adapter_rank_pattern.items[i].value != floor(r->adapter_rank_pattern.items[i].value)) return false;
    return true;
}

static bool names_word(const gr_list *list, const char *word) {
    for (int i = 0; i < list->n; i++)
        if (strcmp(list->items[i], word) == 0) return true;
    return false;
}

/* Was the key written where the method was chosen, or on top of that? What lies beneath comes with a recipe that is extended. */
static bool written(const gr_yaml *n) { return n && !n->beneath && !gr_yaml_is_null(n); }

/* Keys of a LoRA that say something: false, 0 and {} are true of every method. */
static void refuse_lora_keys(const gr_recipe *r, const gr_yaml *const *nodes, const bool *wrong, gr_problems *p) {
    const struct {
        int row;
        bool says;
    } keys[] = {
        {GR_ROW_adapter_rank, true},
        {GR_ROW_adapter_alpha, true},
        {GR_ROW_adapter_dropout, r->adapter_dropout > 0},
        {GR_ROW_adapter_target_modules, true},
        {GR_ROW_adapter_use_rslora, r->adapter_use_rslora},
        {GR_ROW_adapter_rank_pattern, r->adapter_rank_pattern.n > 0},
        {GR_ROW_adapter_alpha_pattern, r->adapter_alpha_pattern.n > 0},
    };
    char why[120];
    snprintf(why, sizeof why, "is of method lora and says nothing of method %s: leave it out, or use adapter.method: lora",
             gr_key_choice(&gr_recipe_keys[GR_ROW_adapter_method], r->adapter_method));
    for (int i = 0; i < GR_LEN(keys); i++)
        if (keys[i].says && written(nodes[keys[i].row]) && !wrong[keys[i].row]) refuse(r, nodes, keys[i].row, why, p);
}

/* "new" and "all" are no tokens among others. */
static bool mixes_words(const gr_list *list) { return list->n > 1 && (names_word(list, "new") || names_word(list, "all")); }

graft_status gr_recipe_check(const gr_recipe *r, const gr_yaml *const *nodes, const bool *wrong, gr_problems *p) {
    bool has_eval = r->data_eval.n > 0 || r->data_eval.share > 0, lora = r->adapter_method == GR_METHOD_LORA;
    bool full = r->adapter_method == GR_METHOD_FULL, embeddings = r->adapter_method == GR_METHOD_EMBEDDINGS,
         adafactor = r->train_optimizer == GR_OPTIMIZER_ADAFACTOR;
    const char *const no_adam = "adafactor has no such number: it is adamw's";
    const char *metric = unknown_metric(r);
    char metric_why[120] = "", device_why[120];
    snprintf(device_why, sizeof device_why, "expected auto, cpu, cuda or cuda:N, found \"%.40s\"",
             r->_device ? r->_device : "null");
    if (metric) snprintf(metric_why, sizeof metric_why, "expected loss and exact_match, found \"%.60s\"", metric);
    int n_shares = 0;
    bool pretrain = r->train_objective == GR_OBJECTIVE_PRETRAIN;
    for (int i = 0; i < r->data_train.n; i++) n_shares += r->data_train.items[i].share > 0;
    const struct rule {
        bool bad;
        int row;
        const char *why;
    } rules[] = {
        {r->model_quantize != GR_QUANTIZE_NONE && full, GR_ROW_model_quantize,
         "method full trains the base's own weights, which must not be quantised; use adapter.method: lora or "
         "model.quantize: none"},
        {r->model_compute == GR_COMPUTE_INT8 && full, GR_ROW_model_compute,
         "int8 is for a frozen base; method full trains the weights, use exact"},
        {r->model_compute == GR_COMPUTE_FP8 && full, GR_ROW_model_compute,
         "fp8 is for a frozen base; method full trains the weights, use exact"},
        {r->model_compute == GR_COMPUTE_FP8 && r->model_dtype == GR_DT_FP32, GR_ROW_model_compute,
         "fp8 goes with bf16 or fp16, not with model.dtype: fp32; use exact"},
        {lora && r->adapter_target_modules.n == 0, GR_ROW_adapter_target_modules,
         "it names no module; use all-linear or a list of names"},
        {!whole_ranks(r), GR_ROW_adapter_rank_pattern, "a rank is a whole number"},
        {full && r->adapter_init_from, GR_ROW_adapter_init_from,
         "method full does not start from an adapter: merge it, and train that"},
        {embeddings && (r->adapter_rows.n == 0 || mixes_words(&r->adapter_rows)), GR_ROW_adapter_rows,
         "expected new, all, or a list of tokens by text or id"},
        {!embeddings && written(nodes[GR_ROW_adapter_rows]), GR_ROW_adapter_rows,
         "it is of method embeddings; with lora, rows are trained by adapter.trainable_tokens"},
        {!lora && r->adapter_trainable_tokens.n > 0, GR_ROW_adapter_trainable_tokens,
         "it is of method lora; method embeddings has adapter.rows, and full trains all of them"},
        {lora && (mixes_words(&r->adapter_trainable_tokens) || names_word(&r->adapter_trainable_tokens, "all")),
         GR_ROW_adapter_trainable_tokens, "expected new, or a list of tokens by text or id"},
        {!r->adapter_head_rows && !gr_recipe_trains_rows(r), GR_ROW_adapter_head_rows,
         "is of trained rows: adapter.method: embeddings, or adapter.trainable_tokens"},
        {n_shares > 0 && !pretrain, GR_ROW_data_train, "share is for objective pretrain; use weight"},
        {n_shares > 0 && n_shares < r->data_train.n, GR_ROW_data_train, "all sources have a share, or none"},
        {r->data_attention != GR_ATTENTION_ACROSS && !pretrain, GR_ROW_data_attention,
         "is for objective pretrain: samples of sft never see each other"},
        {pretrain && r->data_truncation != GR_TRUNCATE_KEEP_ANSWER, GR_ROW_data_truncation,
         "is for objective sft: pretrain joins texts and cuts them into blocks, none of them is too long"},
        {pretrain && r->data_loss_on == GR_LOSS_LAST, GR_ROW_data_loss_on,
         "last is for objective sft: pretrain learns every token"},
        {pretrain && gr_recipe_has_metric(r, "exact_match"), GR_ROW_eval_metrics,
         "exact_match needs answers, which pretrain does not have"},
        {metric, GR_ROW_eval_metrics, metric_why},
        {r->eval_early_stopping_patience > 0 && !has_eval, GR_ROW_eval_early_stopping_patience, "needs data.eval"},
        {r->train_num_train_epochs <= 0 && r->train_max_steps < 0, GR_ROW_train_num_train_epochs, "0 epochs train nothing"},
        {r->train_adam_beta1 >= 1, GR_ROW_train_adam_beta1, "must be below 1"},
        {r->train_adam_beta2 >= 1, GR_ROW_train_adam_beta2, "must be below 1"},
        {r->train_warmup_steps > 0 && r->train_warmup_ratio > 0, GR_ROW_train_warmup_ratio,
         "give warmup_steps or warmup_ratio, not both"},
        {!full && r->train_weights != GR_TRAINED_FP32, GR_ROW_train_weights,
         "only method full has weights to hold so; what an adapter trains is fp32"},
        {!full && (r->train_sharding == GR_SHARDING_ZERO1 || r->train_sharding == GR_SHARDING_ZERO2), GR_ROW_train_sharding,
         "zero1 and zero2 are of adapter.method full; an adapter's states are small, zero3 shares out the base"},
        {!full && r->train_sharding == GR_SHARDING_ZERO3 && r->model_compute == GR_COMPUTE_INT8, GR_ROW_train_sharding,
         "zero3 does not go with model.compute int8, whose forms are of whole weights"},
        {full && r->train_sharding > GR_SHARDING_NONE && r->train_optimizer != GR_OPTIMIZER_ADAMW, GR_ROW_train_sharding,
         "is of train.optimizer adamw: adamw_8bit and adafactor need a tensor as a whole"},
        {!full && r->train_gradient_release, GR_ROW_train_gradient_release,
         "only method full has gradients worth it; an adapter's are small"},
        {full && r->train_gradient_release && r->train_max_grad_norm > 0, GR_ROW_train_gradient_release,
         "needs train.max_grad_norm: 0: layers are updated before the norm of all gradients is known"},
        {full && r->train_gradient_release && r->train_on_nonfinite == GR_NONFINITE_SKIP, GR_ROW_train_on_nonfinite,
         "skip cannot be had with train.gradient_release: layers are updated before all gradients are known"},
        {adafactor && r->train_adam_beta1 != 0.9, GR_ROW_train_adam_beta1, no_adam},
        {adafactor && r->train_adam_beta2 != 0.999, GR_ROW_train_adam_beta2, no_adam},
        {adafactor && r->train_adam_epsilon != 1e-8, GR_ROW_train_adam_epsilon, no_adam},
        {!gr_device_is_name(r->_device), GR_ROW__device, device_why},
        {r->model_compute == GR_COMPUTE_INT8 && gr_starts_with(r->_device ? r->_device : "", "cuda"), GR_ROW_model_compute,
         "int8 is of the CPU; a card multiplies bf16 faster than it could be rounded: use exact"},
        {r->model_compute == GR_COMPUTE_FP8 && r->_device && strcmp(r->_device, "cpu") == 0, GR_ROW_model_compute,
         "fp8 is of cards (compute capability 9.0: H100, H200), not of the CPU: use exact or int8"},
        {r->_output_dir && !*r->_output_dir, GR_ROW__output_dir, "expected the path of a folder, found nothing"},
    };
    for (int i = 0; i < GR_LEN(rules); i++)
        if (rules[i].bad && !wrong[rules[i].row]) refuse(r, nodes, rules[i].row, rules[i].why, p);
    if (!lora) refuse_lora_keys(r, nodes, wrong, p);
    return GRAFT_OK;
}

/* "model.base, data.train" of what a run needs and is not there, their number. wrong (may be NULL): keys that were given, badly. */
static int missing_keys(const gr_recipe *r, bool dry_run, const bool *wrong, char names[80]) {
    const struct need {
        bool missing;
        int row;
    } needs[] = {
        {!r->model_base, GR_ROW_model_base},
        {!dry_run && r->data_train.n == 0, GR_ROW_data_train},
        {!dry_run && !r->_output_dir, GR_ROW__output_dir},
    };
    int n = 0;
    *names = '\0';
    for (int i = 0; i < GR_LEN(needs); i++) {
        const gr_key *k = &gr_recipe_keys[needs[i].row];
        if (!needs[i].missing || (wrong && wrong[needs[i].row])) continue;
        size_t at = strlen(names);
        snprintf(names + at, 80 - at, "%s%s%s%s", n++ ? ", " : "", k->section, *k->section ? "." : "", k->name);
    }
    return n;
}

static bool lacks_answers(const gr_recipe *r) {
    return gr_recipe_has_metric(r, "exact_match") && r->data_eval.n == 0 && r->data_eval.share <= 0;
}

graft_status gr_recipe_check_complete(const gr_recipe *r, const gr_yaml *const *nodes, const bool *wrong, gr_problems *p) {
    char names[80];
    int n = missing_keys(r, false, wrong, names);
    if (lacks_answers(r) && !wrong[GR_ROW_data_eval]) refuse(r, nodes, GR_ROW_eval_metrics, "exact_match needs data.eval", p);
    if (n == 0) return GRAFT_OK;
    return note(p, (struct gr_problem){0},
                gr_format("%s: %s %s missing; set %s in the recipe or as section.key=value", r->path, names, n > 1 ? "are" : "is",
                          n > 1 ? "them" : "it"));
}

graft_status gr_recipe_require(const gr_recipe *r, bool dry_run, graft_error *err) {
    char names[80];
    int n = missing_keys(r, dry_run, NULL, names);
    if (n == 0 && lacks_answers(r))
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: eval.metrics: exact_match needs data.eval", *r->path ? r->path : "recipe");
    if (n == 0) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE, "%s: %s %s missing; set %s in the recipe or as section.key=value",
                   *r->path ? r->path : "recipe", names, n > 1 ? "are" : "is", n > 1 ? "them" : "it");
}
