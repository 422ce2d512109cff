/* dynamic8.h - the 8-bit map of optimizer states (arXiv 2110.02861, 1.3; bitsandbytes' create_dynamic_map): 0, 1 and, for each
 * decade from 1e-6 to 1, the middles of twice as many equal parts of [0.1, 1) as for the one below, with both signs or with none.
 * Plain C: every level compiles it for itself, CUDA for the card. */
#ifndef GR_DYNAMIC8_H
#define GR_DYNAMIC8_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/philox.h" /* GR_HOST_DEVICE */

/* Places by the upper half of a float's bits: from 2^-22, below which all is 0, to 1. Between two neighbours lies at most one
 * middle of two values. */
enum { GR_DYNAMIC8_FROM = 0x3480, GR_DYNAMIC8_PLACES = 0x3f80 - GR_DYNAMIC8_FROM + 1 };

typedef struct gr_dynamic8 {
    float value[256];                  /* rising */
    float middle[256];                 /* between value c and the next; of the last: infinity */
    int32_t first[GR_DYNAMIC8_PLACES]; /* code of the smallest number of a place */
    int32_t negative;                  /* code 254 - c is minus that of c, for c from zero to 254 */
} gr_dynamic8;

static inline void gr_dynamic8_make(gr_dynamic8 *map, bool negative) {
    enum { DECADES = 7 };
    int at = negative ? 127 : 0, zero = at;
    map->negative = negative;
    map->value[at++] = 0;
    for (int d = 0; d < DECADES; d++) {
        int parts = negative ? 1 << d : 2 << d;
        for (int i = 0; i < parts; i++) map->value[at++] = (float)(pow(10, d - (DECADES - 1)) * (0.1 + 0.9 * (i + 0.5) / parts));
    }
    map->value[255] = 1;
    for (int c = 0; c < zero; c++) map->value[c] = -map->value[254 - c];
    for (int c = 0; c < 255; c++) map->middle[c] = 0.5f * (map->value[c] + map->value[c + 1]);
    map->middle[255] = INFINITY;
    for (int p = 0, c = zero; p < GR_DYNAMIC8_PLACES; p++) {
        uint32_t bits = (uint32_t)(GR_DYNAMIC8_FROM + p) << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        while (x > map->middle[c]) c++;
        map->first[p] = c;
    }
}

/* The code of the value nearest to x, whose magnitude is 1 or, by rounding, a little more; without a sign x >= 0. No branch: loops
 * over it are vectors with gathers where a level has them. */
GR_HOST_DEVICE static inline int32_t gr_dynamic8_code(const gr_dynamic8 *map, float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffff;
    float size;
    memcpy(&size, &bits, sizeof size);
    int32_t place = (bits >> 16) - GR_DYNAMIC8_FROM;
    size = place < 0 ? 0 : size;
    place = place < 0 ? 0 : place;
    place = place < GR_DYNAMIC8_PLACES ? place : GR_DYNAMIC8_PLACES - 1;
    int32_t c = map->first[place];
    c += size > map->middle[c];
    int32_t mirrored = 254 - (c < 254 ? c : 254);
    return map->negative && x < 0 ? mirrored : c;
}

#endif
