/* A tokenizer from SentencePiece's tokenizer.model: a ModelProto (sentencepiece_model.proto) in protobuf's
 * wire format. Only the fields that matter here are read; every length is checked against what is left. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/encode.h"
#include "core/text/read.h"

typedef struct wire { /* a message being read */
    const uint8_t *at, *end;
} wire;

typedef struct field {
    uint32_t number;
    int type;       /* 0 varint, 1 64 bits, 2 bytes, 5 32 bits */
    uint64_t value; /* varint and fixed */
    wire bytes;
} field;

static bool read_varint(wire *w, uint64_t *out) {
    *out = 0;
    for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t b = *w->at++;
        *out |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80)) return true;
    }
    return false;
}

/* The next field; false at the end, *bad is set when the message is damaged. */
static bool next_field(wire *w, field *f, bool *bad) {
    uint64_t tag, n;
    if (w->at == w->end) return false;
    *bad = true;
    if (!read_varint(w, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX) return false;
    *f = (field){.number = (uint32_t)(tag >> 3), .type = (int)(tag & 7)};
    size_t left = (size_t)(w->end - w->at), fixed = f->type == 1 ? 8 : 4;
    switch (f->type) {
    case 0:
        if (!read_varint(w, &f->value)) return false;
        break;
    case 1:
    case 5:
        if (left < fixed) return false;
        memcpy(&f->value, w->at, fixed);
        w->at += fixed;
        break;
    case 2:
        if (!read_varint(w, &n) || n > (uint64_t)(w->end - w->at)) return false;
        f->bytes = (wire){w->at, w->at + n};
        w->at += n;
        break;
    default: return false;
    }
    *bad = false;
    return true;
}

typedef struct model_fields {
    int64_t n_pieces;
    int64_t model_type, unk, bos, eos, pad; /* trainer_spec */
    bool byte_fallback, suffix;
    bool dummy_prefix, squeeze, escape; /* normalizer_spec */
    wire charsmap;
    bool bad;
} model_fields;

static bool is_number(const field *f, uint32_t number) { return f->number == number && f->type == 0; }

static void read_trainer(model_fields *m, wire w) {
    field f;
    while (next_field(&w, &f, &m->bad)) {
        if (is_number(&f, 3)) m->model_type = (int64_t)f.value;
        if (is_number(&f, 24)) m->suffix = f.value != 0;
        if (is_number(&f, 35)) m->byte_fallback = f.value != 0;
        if (is_number(&f, 40)) m->unk = (int32_t)f.value;
        if (is_number(&f, 41)) m->bos = (int32_t)f.value;
        if (is_number(&f, 42)) m->eos = (int32_t)f.value;
        if (is_number(&f, 43)) m->pad = (int32_t)f.value;
    }
}

static void read_normalizer(model_fields *m, wire w) {
    field f;
    while (next_field(&w, &f, &m->bad)) {
        if (f.number == 2 && f.type == 2) m->charsmap = f.bytes;
        if (is_number(&f, 3)) m->dummy_prefix = f.value != 0;
        if (is_number(&f, 4)) m->squeeze = f.value != 0;
        if (is_number(&f, 5)) m->escape = f.value != 0;
    }
}

static model_fields read_fields(wire w) {
    model_fields m = {
        .model_type = 1, .unk = 0, .bos = 1, .eos = 2, .pad = -1, .dummy_prefix = true, .squeeze = true, .escape = true};
    field f;
    while (!m.bad && next_field(&w, &f, &m.bad)) {
        if (f.type != 2) continue;
        if (f.number == 1) m.n_pieces++;
        if (f.number == 2) read_trainer(&m, f.bytes);
        if (f.number == 3) read_normalizer(&m, f.bytes);
    }
    return m;
}

static graft_status read_piece(gr_tokenizer *t, int64_t id, wire w, const char *path, graft_error *err) {
    field f;
    wire text = {0};
    float score = 0;
    uint64_t type = GR_PIECE_NORMAL;
    bool bad = false;
    while (next_field(&w, &f, &bad)) {
        if (f.number == 1 && f.type == 2) text = f.bytes;
        if (f.number == 2 && f.type == 5) memcpy(&score, &f.value, sizeof score);
        if (is_number(&f, 3)) type = f.value;
    }
    if (bad || type < GR_PIECE_NORMAL || type > GR_PIECE_BYTE || score != score || text.at == text.end)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: piece %lld is damaged", path, (long long)id);
    if (type == GR_PIECE_BYTE && text.end - text.at != 6)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: byte piece %lld is not of the form <0x41>", path, (long long)id);
    if (!gr_piece_set(t, id, (const char *)text.at, text.end - text.at, (double)score, (gr_piece_type)type))
        return gr_fail_memory(err, "vocabulary");
    return GRAFT_OK;
}

static graft_status read_pieces(gr_tokenizer *t, wire w, const char *path, graft_error *err) {
    field f;
    bool bad = false;
    int64_t id = 0;
    t->added = gr_text_alloc(t, t->info.n_vocab, sizeof *t->added);
    if (!t->added) return gr_fail_memory(err, "added tokens");
    while (next_field(&w, &f, &bad)) {
        if (f.number != 1 || f.type != 2) continue;
        graft_status st = read_piece(t, id, f.bytes, path, err);
        if (st != GRAFT_OK) return st;
        const gr_piece *p = &t->pieces[id];
        bool special = p->type == GR_PIECE_CONTROL || p->type == GR_PIECE_UNKNOWN;
        if (special || p->type == GR_PIECE_USER)
            t->added[t->n_added++] =
                (gr_added){.text = p->text, .len = p->len, .id = (int32_t)id, .special = special, .normalized = !special};
        id++;
    }
    return GRAFT_OK;
}

/* SentencePiece's normaliser as steps. */
static graft_status set_steps(gr_tokenizer *t, const model_fields *m, const char *path, graft_error *err) {
    graft_status st = gr_charsmap_set(t, (const char *)m->charsmap.at, m->charsmap.end - m->charsmap.at, path, err);
    if (st != GRAFT_OK) return st;
    if (t->charsmap_trie) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_CHARSMAP_SPM};
    if (m->squeeze) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_SPM_SPACES};
    if (m->dummy_prefix) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_PREPEND, .to = " "};
    if (m->escape) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_REPLACE, .from = " ", .to = GR_META_SPACE};
    t->info.add_space_prefix = m->dummy_prefix;
    t->lead = m->dummy_prefix || m->squeeze ? GR_LEAD_DROP_ONE : GR_LEAD_KEEP;
    return GRAFT_OK;
}

static int32_t id_or_none(int64_t id, int64_t n_vocab) { return id >= 0 && id < n_vocab ? (int32_t)id : -1; }

graft_status gr_tokenizer_parse_spm(gr_tokenizer **out, const void *bytes, int64_t n, const char *path, graft_error *err) {
    wire whole = {bytes, (const uint8_t *)bytes + n};
    model_fields m = read_fields(whole);
    gr_tokenizer *t = NULL;
    graft_status st;
    if (m.bad || m.n_pieces == 0) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: no SentencePiece model, or a damaged one", path));
    if (m.model_type != 1 && m.model_type != 2)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: SentencePiece model type %lld; graft knows 1 (unigram) and 2 (BPE)", path,
                       (long long)m.model_type));
    if (m.suffix) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: treat_whitespace_as_suffix is not known", path));
    t = gr_tokenizer_new(m.n_pieces);
    if (!t) GR_TRY(gr_fail_memory(err, "tokenizer"));
    t->info.kind = m.model_type == 1 ? GR_TOKENIZER_SPM_UNIGRAM : GR_TOKENIZER_SPM_BPE;
    t->byte_fallback = m.byte_fallback;
    t->fuse_unk = true;
    GR_TRY(set_steps(t, &m, path, err));
    GR_TRY(read_pieces(t, whole, path, err));
    t->info.unk = t->model_unk = id_or_none(m.unk, m.n_pieces);
    t->info.bos = id_or_none(m.bos, m.n_pieces);
    t->info.eos = id_or_none(m.eos, m.n_pieces);
    t->info.pad = id_or_none(m.pad, m.n_pieces);
    t->info.add_bos = t->info.bos >= 0 && t->info.kind == GR_TOKENIZER_SPM_BPE; /* as the classes made for such models do */
    GR_TRY(gr_tokenizer_finish(t, path, err));
    *out = t;
    t = NULL;
done:
    gr_tokenizer_free(t);
    return st;
}

graft_status gr_tokenizer_from_spm(gr_tokenizer **out, const char *folder, graft_error *err) {
    char *path = gr_path_join(folder, "tokenizer.model"), *bytes = NULL;
    int64_t n;
    gr_tokenizer *t = NULL;
    graft_status st;
    if (!path) GR_TRY(gr_fail_memory(err, "path"));
    GR_TRY(gr_file_read(&bytes, &n, path, GR_SPM_MAX, err));
    GR_TRY(gr_tokenizer_parse_spm(&t, bytes, n, path, err));
    GR_TRY(gr_tokenizer_read_config(t, folder, false, err));
    *out = t;
    t = NULL;
done:
    gr_tokenizer_free(t);
    free(bytes);
    free(path);
    return st;
}
