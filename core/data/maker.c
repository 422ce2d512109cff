#include "core/data/maker.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/data/maker_shapes.h"
#include "kernels/philox.h"

enum { MAX_TRIES = 1000 }; /* draws for one new problem before a repeated one is accepted */

/* A stream of random numbers for one problem. */
typedef struct draws {
    uint64_t seed, problem, next;
} draws;

static uint32_t draw(draws *r, uint32_t n) { return gr_random_u32(r->seed, GR_PURPOSE_MAKER, r->problem, r->next++) % n; }

typedef struct problem {
    int values[4];                    /* of the letters a..d */
    int left[3], right[3], result[3]; /* of each step */
    char op[3];
    int n_steps;
    const char *name, *other_name, *object, *other_object;
} problem;

/* The value of an operand: a letter a..d, or x, y: the results of steps 1 and 2. */
static int operand(const problem *p, char letter) { return letter >= 'x' ? p->result[letter - 'x'] : p->values[letter - 'a']; }

/* Draw each number from a range that suits the operation it is first used in: tables up to 9, sums below 100. */
static void draw_values(problem *p, const char *plan, draws *r) {
    memset(p->values, 0, sizeof p->values);
    for (const char *s = plan; *s; s++) {
        if (*s < 'a' || *s > 'd' || p->values[*s - 'a']) continue;
        bool on_left = s == plan || s[-1] == ' ';
        char op = on_left ? s[1] : s[-1];
        int low = 2, high = 9;
        if (op == '+' || op == '-') low = 3, high = 50;
        if (op == '/' && on_left) high = 90;
        p->values[*s - 'a'] = low + (int)draw(r, (uint32_t)(high - low + 1));
    }
}

/* Do the steps of plan ("a*b x-c"); false when a number is not exact, not positive or too large to be learned. */
static bool solve(problem *p, const char *plan) {
    p->n_steps = ((int)strlen(plan) + 1) / 4;
    for (int k = 0; k < p->n_steps; k++) {
        int left = operand(p, plan[4 * k]), right = operand(p, plan[4 * k + 2]), result;
        char op = plan[4 * k + 1];
        if (op == '/' && (right < 2 || right > 9 || left % right || left / right > 30)) return false;
        if (op == '*' && (GR_MIN(left, right) > 9 || GR_MAX(left, right) > 30)) return false;
        result = op == '+' ? left + right : op == '-' ? left - right : op == '*' ? left * right : left / right;
        if (result < 2 || result > 150) return false;
        p->left[k] = left, p->right[k] = right, p->result[k] = result, p->op[k] = op;
    }
    return true;
}

static void write_question(gr_str *out, const problem *p, const char *text) {
    for (const char *s = text; *s; s++) {
        if (*s != '{') {
            gr_str_putc(out, *s);
            continue;
        }
        switch (s[1]) {
        case 'N': gr_str_puts(out, p->name); break;
        case 'M': gr_str_puts(out, p->other_name); break;
        case 'o': gr_str_puts(out, p->object); break;
        case 'p': gr_str_puts(out, p->other_object); break;
        default: gr_str_printf(out, "%d", p->values[s[1] - 'a']);
        }
        s += 2;
    }
}

static void draw_problem(gr_str *question, problem *p, const gr_shapes *shapes, int n_steps, draws *r) {
    const gr_shape *shape = &shapes->of_steps[n_steps - 1][draw(r, (uint32_t)shapes->n_of_steps[n_steps - 1])];
    uint32_t name = draw(r, (uint32_t)shapes->n_names), object = draw(r, (uint32_t)shapes->n_objects);
    uint32_t other = (name + 1 + draw(r, (uint32_t)shapes->n_names - 1)) % (uint32_t)shapes->n_names;
    uint32_t other_object = (object + 1 + draw(r, (uint32_t)shapes->n_objects - 1)) % (uint32_t)shapes->n_objects;
    p->name = shapes->names[name], p->other_name = shapes->names[other];
    p->object = shapes->objects[object], p->other_object = shapes->objects[other_object];
    do draw_values(p, shape->plan, r);
    while (!solve(p, shape->plan));
    gr_str_clear(question);
    write_question(question, p, shape->text);
}

/* A set of 64-bit hashes, open addressing; slots is a power of two above twice the number of problems. */
typedef struct hash_set {
    uint64_t *slot;
    int64_t n_slots;
} hash_set;

static bool insert(hash_set *set, uint64_t hash) {
    hash |= 1; /* 0 marks a free slot */
    int64_t i = (int64_t)(hash >> 1) & (set->n_slots - 1);
    for (; set->slot[i]; i = (i + 1) & (set->n_slots - 1))
        if (set->slot[i] == hash) return false;
    set->slot[i] = hash;
    return true;
}

static graft_status check_options(const gr_school_math_options *o, graft_error *err) {
    if (o->n < 1 || o->n > 100 * 1000 * 1000)
        return gr_fail(err, GRAFT_BAD_USAGE, "school-math: n is %lld, expected 1 to 100000000", (long long)o->n);
    if (o->min_steps < 1 || o->max_steps > 3 || o->min_steps > o->max_steps)
        return gr_fail(err, GRAFT_BAD_USAGE, "school-math: steps are %d-%d, expected a range within 1-3", o->min_steps,
                       o->max_steps);
    if (!o->language || (strcmp(o->language, "en") && strcmp(o->language, "zh") && strcmp(o->language, "both")))
        return gr_fail(err, GRAFT_BAD_USAGE, "school-math: language is \"%s\", expected en, zh or both",
                       o->language ? o->language : "");
    return GRAFT_OK;
}

graft_status gr_make_school_math(const gr_school_math_options *o, FILE *out, graft_error *err) {
    graft_status st = check_options(o, err);
    if (st != GRAFT_OK) return st;
    gr_str question = {0};
    hash_set seen = {.n_slots = 16};
    while (seen.n_slots < 2 * o->n) seen.n_slots *= 2;
    seen.slot = gr_calloc(seen.n_slots, sizeof *seen.slot);
    if (!seen.slot) return gr_fail_memory(err, "made problems");
    for (int64_t i = 0; i < o->n; i++) {
        bool english = !strcmp(o->language, "en") || (!strcmp(o->language, "both") && i % 2 == 0);
        draws r = {.seed = o->seed, .problem = (uint64_t)i};
        int n_steps = o->min_steps + (int)draw(&r, (uint32_t)(o->max_steps - o->min_steps + 1));
        problem p;
        for (int try = 0; try < MAX_TRIES; try++) {
            draw_problem(&question, &p, english ? &gr_shapes_en : &gr_shapes_zh, n_steps, &r);
            if (question.failed) break;
            if (insert(&seen, XXH3_64bits(question.data, (size_t)question.len))) break;
        }
        if (question.failed) {
            st = gr_fail_memory(err, "made problem");
            break;
        }
        /* No text of the tables needs escaping in JSON. */
        fprintf(out, "{\"instruction\": \"%s\", \"input\": \"\", \"output\": \"", question.data);
        for (int k = 0; k < p.n_steps; k++) fprintf(out, "%d %c %d = %d\\n", p.left[k], p.op[k], p.right[k], p.result[k]);
        fprintf(out, "#### %d\"}\n", p.result[p.n_steps - 1]);
        if (ferror(out)) {
            st = gr_fail_errno(err, GRAFT_FAILED, "school-math: cannot write problem %lld", (long long)i + 1);
            break;
        }
    }
    gr_str_release(&question);
    free(seen.slot);
    return st;
}
