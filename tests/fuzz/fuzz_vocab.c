/* Any bytes as a vocabulary that extends two tokenizers, one of each kind: text without a new piece keeps its ids, whatever is in
 * it, and other text comes back. */
#include <stdlib.h>

#include "core/text/extend.h"
#include "core/text/read.h"

#include "tests/fuzz/fuzz_file.h"

static gr_tokenizer *bases[2];

static void open_bases(void) {
    static const char *const kinds[] = {"smollm2", "sp-gemma"};
    graft_error err;
    for (int i = 0; i < 2 && !bases[i]; i++) {
        const char *source = getenv("SOURCE");
        char *path = gr_format("%s/tests/golden/tokenizers/%s", source ? source : ".", kinds[i]);
        GR_ASSERT(gr_tokenizer_open(&bases[i], path, &err) == GRAFT_OK);
        free(path);
    }
}

static void extend(const gr_tokenizer *base, const gr_tokenizer *v, const char *text, int64_t len) {
    gr_tokenizer *x = NULL;
    gr_vocab_report r;
    graft_error err;
    int64_t fates = 0;
    if (gr_vocab_extend(&x, base, v, len % 3 ? 0 : 50, &r, &err) != GRAFT_OK) {
        GR_ASSERT(err.msg[0]);
        return;
    }
    for (int f = 0; f < GR_VOCAB_N_FATES; f++) fates += r.fates[f];
    GR_ASSERT(fates == r.n_pieces && r.n_new > 0 && r.n_unproved <= r.n_new);
    GR_ASSERT(gr_vocab_check_text(x, text, len, NULL, &err) == GRAFT_OK);
    for (int64_t id = r.first_new; id < r.first_new + r.n_new; id++) {
        int64_t n;
        const char *piece = gr_tokenizer_piece(x, (int32_t)id, &n, NULL, NULL);
        GR_ASSERT(gr_vocab_check_text(x, piece, n, NULL, &err) == GRAFT_OK);
    }
    gr_tokenizer_free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gr_tokenizer *v = NULL;
    graft_error err;
    bool json = size > 0 && data[0] == '{';
    open_bases();
    graft_status st = json ? gr_tokenizer_parse_json(&v, (const char *)data, (int64_t)size, "fuzz", &err)
                           : gr_tokenizer_parse_spm(&v, data, (int64_t)size, "fuzz", &err);
    for (int i = 0; i < 2 && st == GRAFT_OK; i++) extend(bases[i], v, (const char *)data, (int64_t)size);
    gr_tokenizer_free(v);
    return 0;
}
