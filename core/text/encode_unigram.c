/* Unigram model: the segmentation with the greatest sum of scores (Viterbi), as HF tokenizers and
 * SentencePiece find it. Kudo, Subword Regularization, arXiv 1804.10959. */
#include "core/text/encode.h"

typedef struct gr_lattice_node { /* best way to the place before byte i */
    double score;
    int64_t start; /* of its last piece; -1: not reached */
    int32_t id;    /* -1: unknown */
} gr_lattice_node;

static const double UNKNOWN_PENALTY = 10.0;

static void relax(gr_lattice_node *node, double score, int64_t start, int32_t id) {
    if (node->start < 0 || score > node->score) *node = (gr_lattice_node){score, start, id};
}

bool gr_unigram_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids) {
    if (!gr_grow(&s->nodes, &s->nodes_capacity, len + 1, sizeof *s->nodes)) return false;
    gr_lattice_node *nodes = s->nodes;
    for (int64_t i = 0; i <= len; i++) nodes[i] = (gr_lattice_node){.start = -1};
    for (int64_t i = 0, size; i < len; i += size) {
        int char_size;
        gr_utf8_decode(word + i, len - i, &char_size, NULL);
        size = char_size;
        bool single = false;
        gr_prefix_walk walk = {0};
        int32_t id;
        for (int64_t j = i; j < len && gr_prefix_step(&t->prefixes, &walk, (uint8_t)word[j], &id); j++) {
            if (id < 0) continue;
            relax(&nodes[j + 1], nodes[i].score + t->pieces[id].score, i, id);
            single |= j + 1 == i + size;
        }
        if (!single) relax(&nodes[i + size], nodes[i].score + t->min_score - UNKNOWN_PENALTY, i, -1);
    }
    /* The path is found backwards: turn its links round, then read it forwards. */
    for (int64_t end = len, next = -1; end >= 0;) {
        int64_t start = nodes[end].start;
        nodes[end].start = next; /* now: the end of the piece after this one */
        next = end;
        end = start;
    }
    bool unknown = false;
    for (int64_t at = 0, end; (end = nodes[at].start) >= 0; at = end) {
        int32_t id = nodes[end].id;
        bool ok = id >= 0 ? gr_ids_push(ids, id) : gr_push_unknown(t, word + at, end - at, unknown, ids);
        if (!ok) return false;
        unknown = id < 0;
    }
    return true;
}
