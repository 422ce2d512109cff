/* tables.h - what a vocabulary is looked up in: bytes to an id, sorted prefixes, pairs of ids to their merge, and which characters
 * some piece joins. */
#ifndef GR_TEXT_TABLES_H
#define GR_TEXT_TABLES_H

#include "core/base/base.h"

/* Bytes to id; keys are borrowed. */
typedef struct gr_table {
    struct gr_table_slot *slots;
    uint64_t mask;
} gr_table;
typedef struct gr_table_slot {
    const char *key;
    int32_t len, id; /* len -1: empty */
} gr_table_slot;
bool gr_table_init(gr_table *t, int64_t n_keys);
void gr_table_add(gr_table *t, const char *key, int32_t len, int32_t id); /* the first of equal keys stays */
int32_t gr_table_find(const gr_table *t, const char *key, int64_t len);   /* -1 when absent */

/* A sorted set of byte strings, walked byte by byte from a place in a text. */
typedef struct gr_prefix_key {
    const char *text;
    int32_t len, value;
} gr_prefix_key;
typedef struct gr_prefix_set {
    gr_prefix_key *keys;
    int32_t n, first[257]; /* keys[first[b] .. first[b+1]) start with byte b */
    int only;              /* the byte that all keys start with; -1 when they differ */
} gr_prefix_set;
typedef struct gr_prefix_walk {
    int32_t low, high, depth;
} gr_prefix_walk;
void gr_prefix_sort(gr_prefix_set *s); /* after keys and n were filled; no empty keys */
/* Start with a zeroed walk. False when no key goes on with byte; *value is that of the key ending here, -1 when none does. */
bool gr_prefix_step(const gr_prefix_set *s, gr_prefix_walk *w, uint8_t byte, int32_t *value);

/* Pair of adjacent ids to the rank of its merge and the merged id. */
enum { GR_NO_RANK = INT32_MAX };
typedef struct gr_pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    int32_t rank, id;
} gr_pair;
typedef struct gr_pair_table {
    gr_pair *slots;
    uint64_t mask;
} gr_pair_table;
bool gr_pairs_init(gr_pair_table *t, int64_t n_pairs);
void gr_pairs_add(gr_pair_table *t, int32_t left, int32_t right, int32_t rank, int32_t id); /* the later of equal pairs wins */
/* An empty slot, of GR_NO_RANK and id -1, where a pair (or an id of -1) is unknown. Whether it is known no
 * branch can foresee, so this has none for it. */
static inline const gr_pair *gr_pairs_find(const gr_pair_table *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, h = key * 0x9E3779B97F4A7C15u;
    uint64_t i = (h ^ h >> 32) & t->mask;
    while ((t->slots[i].key != UINT64_MAX) & (t->slots[i].key != key)) i = (i + 1) & t->mask;
    return &t->slots[i];
}

/* What stands side by side in some piece: two characters, or a part of one and the next, or two parts. Between others no merge ever
 * joins anything. Bits of hashes: where two pairs share one, something seems joined that is not, which changes no id. */
enum { GR_PART = 0x110000 }; /* + a byte, in a character's place: the byte of a part at the border */
typedef struct gr_joints {
    uint64_t *pairs;
    int shift;            /* a hash's high bits are the place */
    uint64_t parts[1024]; /* [last byte << 8 | first byte] at the border: there are pairs with a part here */
} gr_joints;
static inline uint64_t gr_joint_place(const gr_joints *j, int32_t left, int32_t right) {
    return ((uint64_t)left << 21 | (uint64_t)right) * 0x9E3779B97F4A7C15u >> j->shift;
}
static inline bool gr_has_joint(const gr_joints *j, int32_t left, int32_t right) {
    uint64_t place = gr_joint_place(j, left, right);
    return j->pairs[place / 64] >> place % 64 & 1;
}
/* Has a piece a part of one of these characters (-1: invalid) and something of the other? last and first: the
 * bytes at the border. */
static inline bool gr_parts_joined(const gr_joints *j, int32_t left, int32_t right, uint8_t last, uint8_t first) {
    if ((left | right) < 0) return true;
    if (!(j->parts[last * 4 + first / 64] >> first % 64 & 1)) return false;
    return gr_has_joint(j, left, GR_PART + first) || gr_has_joint(j, GR_PART + last, right) ||
           gr_has_joint(j, GR_PART + last, GR_PART + first);
}
static inline bool gr_joined(const gr_joints *j, int32_t left, int32_t right, uint8_t last, uint8_t first) {
    return gr_parts_joined(j, left, right, last, first) || gr_has_joint(j, left, right);
}

#endif
