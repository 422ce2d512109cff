/* graft_dump - one forward and backward over a flat batch, everything written to safetensors: for comparison with other
 * implementations (compare_grads.py).
 *   graft_dump --model M [--adapter A] --batch B.json --out D.safetensors [--method lora|full] [--dtype fp32|bf16] [--threads N]
 *              [--micro N] [--recompute 0|1|2]
 * B.json: {"sequences": [{"tokens": [ids], "targets": [0/1 per token]}]}. Writes logits [n,V], loss [1], grad.<name>. --micro N: at
 * most N tokens of whole sequences at a time. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter.h"
#include "core/base/file.h"
#include "core/model/decoder.h"

typedef struct options {
    const char *model, *adapter, *batch, *out, *method, *dtype;
    int threads;
    long micro, recompute;
} options;

typedef struct dump {
    gr_tensor *tensors;
    const float **data;
    int64_t n;
} dump;

static void add(dump *d, const char *name, int n_dims, int64_t rows, int64_t cols, const float *data) {
    gr_tensor *t = &d->tensors[d->n];
    *t = (gr_tensor){
        .name = gr_strdup(name), .dtype = GR_DTYPE_F32, .n_dims = n_dims, .n_elements = rows * cols, .n_bytes = rows * cols * 4};
    t->shape[0] = n_dims == 2 ? rows : cols;
    t->shape[1] = n_dims == 2 ? cols : 0;
    d->data[d->n++] = data;
}

static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const dump *d = context;
    (void)err;
    memcpy(dst, d->data[i], (size_t)d->tensors[i].n_bytes);
    return GRAFT_OK;
}

static graft_status read_batch(gr_batch *batches, int64_t *n_batches, int64_t micro, const char *path, int64_t *n_targets,
                               graft_error *err) {
    json_error_t e;
    size_t i, k;
    json_t *seq, *item, *root = json_load_file(path, 0, &e);
    if (!root) return gr_fail(err, GRAFT_BAD_INPUT, "%s:%d: %s", path, e.line, e.text);
    *n_batches = 1;
    json_array_foreach(json_object_get(root, "sequences"), i, seq) {
        json_t *tokens = json_object_get(seq, "tokens"), *targets = json_object_get(seq, "targets");
        int64_t n = (int64_t)json_array_size(tokens);
        int32_t *ids = gr_calloc(n, sizeof *ids);
        uint8_t *mask = gr_calloc(n, 1);
        json_array_foreach(tokens, k, item) ids[k] = (int32_t)json_integer_value(item);
        json_array_foreach(targets, k, item)
            if ((int64_t)k < n) mask[k] = json_integer_value(item) != 0;
        gr_batch *b = &batches[*n_batches - 1];
        if (micro > 0 && b->n > 0 && b->n + n > micro) b = &batches[(*n_batches)++];
        graft_status st = gr_batch_append(b, ids, mask, n, i, err);
        if (st != GRAFT_OK) return st;
        for (int64_t t = 1; t < n; t++) *n_targets += mask[t];
        free(ids);
        free(mask);
    }
    json_decref(root);
    return GRAFT_OK;
}

static graft_status run(const options *o, graft_error *err) {
    static gr_batch batches[1024];
    graft_status st;
    gr_model *m = NULL;
    gr_adapter *a = NULL;
    gr_params full = {0}, *params = NULL;
    gr_decoder *d = NULL;
    int64_t n_batches = 0, n_targets = 0, n = 0, row = 0, most = 1;
    double loss = 0;
    gr_machine machine;
    GR_TRY(gr_machine_open(&machine, "auto", o->threads, err));
    GR_TRY(gr_model_open(&m, o->model, machine, strcmp(o->dtype, "bf16") == 0 ? GR_DTYPE_BF16 : GR_DTYPE_F32, 0, err));
    if (strcmp(o->method, "full") == 0) {
        params = &full;
        GR_TRY(gr_model_add_params(m, params, err));
        GR_TRY(gr_params_allocate(params, machine.device, true, err));
        GR_TRY(gr_model_attach_params(m, params, true, err));
    } else if (o->adapter) {
        GR_TRY(gr_adapter_load(&a, o->adapter, m, true, err));
        GR_TRY(gr_adapter_attach(a, m, 1.0, err));
        params = a->params;
    }
    GR_TRY(read_batch(batches, &n_batches, o->micro, o->batch, &n_targets, err));
    for (int64_t i = 0; i < n_batches; i++) n += batches[i].n, most = GR_MAX(most, batches[i].n);
    gr_decoder_options plan = {.max_tokens = most, .training = params != NULL, .recompute = (gr_recompute)o->recompute};
    GR_TRY(gr_decoder_new(&d, m, &plan, err));
    float *logits = gr_calloc(n * m->config.vocab, sizeof *logits), *nll = gr_calloc(most, sizeof *nll);
    int32_t *rows = gr_calloc(most, sizeof *rows);
    for (int64_t i = 0; i < most; i++) rows[i] = (int32_t)i;
    for (int64_t i = 0; i < n_batches; i++) {
        GR_TRY(gr_decoder_logits(d, &batches[i], rows, batches[i].n, logits + row * m->config.vocab, err));
        row += batches[i].n;
        if (params) GR_TRY(gr_decoder_train(d, &batches[i], &(gr_loss){.scale = 1.0f / (float)n_targets, .nll = nll}, err));
        else GR_TRY(gr_decoder_eval(d, &batches[i], nll, err));
        for (int64_t r = 0; r < batches[i].n; r++) loss += (double)nll[r];
    }
    float mean = (float)(loss / (double)n_targets);
    int64_t most_tensors = 2 + (params ? params->n_items : 0);
    dump out = {.tensors = gr_calloc(most_tensors, sizeof(gr_tensor)), .data = gr_calloc(most_tensors, sizeof(float *))};
    add(&out, "logits", 2, n, m->config.vocab, logits);
    add(&out, "loss", 1, 1, 1, &mean);
    for (int64_t i = 0; params && i < params->n_items; i++) {
        char name[256];
        const gr_param *p = &params->items[i];
        snprintf(name, sizeof name, "grad.%s", p->name);
        float *grad = gr_calloc(p->n, sizeof *grad);
        gr_params_read(params, GR_PARAMS_GRAD, i, grad);
        add(&out, name, p->rows == 1 && params == &full ? 1 : 2, p->rows, p->cols, grad);
    }
    GR_TRY(gr_safetensors_write(o->out, out.tensors, out.n, produce, &out, err));
    printf("loss %.8f over %lld targets, %lld rows\n", loss / (double)n_targets, (long long)n_targets, (long long)n);
done:
    gr_decoder_free(d);
    if (m) gr_adapter_detach_all(m);
    gr_adapter_free(a);
    gr_model_free(m);
    gr_params_release(&full);
    gr_machine_close(&machine);
    return st;
}

int main(int argc, char **argv) {
    options o = {.method = "lora", .dtype = "fp32"};
    graft_error err = {0};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (strcmp(key, "--model") == 0) o.model = value;
        else if (strcmp(key, "--adapter") == 0) o.adapter = value;
        else if (strcmp(key, "--batch") == 0) o.batch = value;
        else if (strcmp(key, "--out") == 0) o.out = value;
        else if (strcmp(key, "--method") == 0) o.method = value;
        else if (strcmp(key, "--dtype") == 0) o.dtype = value;
        else if (strcmp(key, "--threads") == 0) o.threads = atoi(value);
        else if (strcmp(key, "--micro") == 0) o.micro = atol(value);
        else if (strcmp(key, "--recompute") == 0) o.recompute = atol(value);
        else return fprintf(stderr, "graft_dump: unknown option %s\n", key), 2;
    }
    if (!o.model || !o.batch || !o.out) return fprintf(stderr, "graft_dump: --model, --batch and --out are needed\n"), 2;
    graft_status st = run(&o, &err);
    if (st != GRAFT_OK) fprintf(stderr, "graft_dump: %s\n", err.msg);
    return graft_status_exit_code(st);
}
