/* maker_shapes.h - the word problems of the school-math maker, as tables. */
#ifndef GR_MAKER_SHAPES_H
#define GR_MAKER_SHAPES_H

/* text: {N} {M} two names, {o} {p} two kinds of things, {a}..{d} numbers. plan: the steps of the solution, three
 * characters each and a space between, over the same letters, x = the first step's result and y = the second's. */
typedef struct gr_shape {
    const char *text, *plan;
} gr_shape;

typedef struct gr_shapes {
    const gr_shape *of_steps[3]; /* problems of one, two and three steps */
    int n_of_steps[3];
    const char *const *names, *const *objects;
    int n_names, n_objects;
} gr_shapes;

extern const gr_shapes gr_shapes_en, gr_shapes_zh;

#endif
