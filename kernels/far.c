/* far.c - the device for tests (GRAFT_DEVICE=far): the CPU's operations on memory that the host cannot reach. It shows on any
 * machine what a device with memory and queues of its own would: all memory lies in one region that is protected but for the time
 * of an operation; new memory holds NaNs; an upload waits until an operation, a copy or a download needs it; pointers that an
 * operation is given must lie in living memory of the region; trained members of a group that was placed may change only where a
 * renew follows; what was uploaded beside the work arrives when the work waits for it; work that comes again has the arguments of
 * before where its key is that of before, and nothing but work in it. Who breaks a rule dies, by a fault or with a message. Calls
 * come from one thread of the host. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/backend.h"

static const int64_t REGION = 256LL << 30; /* of addresses; pages come when touched */

typedef struct block {
    int64_t at, bytes;
    bool used;
} block;

typedef struct upload {
    struct upload *next;
    gr_mark number;
    void *to;
    int64_t bytes;
    char data[];
} upload;

/* A group that was placed, and what its trained members were then or at the last renew. */
typedef struct placed {
    struct placed *next;
    const gr_group *group;
    uint64_t values;
} placed;

/* Work that came, and a hash of the arguments of its operations. */
typedef struct repeated {
    struct repeated *next;
    gr_repeat key;
    uint64_t arguments;
} repeated;

typedef struct far {
    gr_device device; /* the CPU's, but for what is replaced */
    gr_device *cpu;
    char level[32];
    char *region;
    block *blocks; /* all of the region, in order */
    int64_t n_blocks, room;
    int64_t top;    /* no memory was given out from there on */
    gr_mark number; /* of the newest work */
    upload *waiting, **last;
    upload *beside, **last_beside; /* those that the work has yet to wait for */
    placed *placed;
    repeated *works;
    bool repeating; /* such work is being given: */
    gr_repeat key;
    uint64_t arguments;
} far;

static _Noreturn void refuse(const char *who, const char *argument, const void *p, const char *why) {
    fprintf(stderr, "graft: far device: %s: %s (%p) %s\n", who, argument, p, why);
    abort();
}

/* ---- work that comes again ---- */

static void note(far *f, const void *x, size_t size) {
    for (size_t i = 0; f->repeating && i < size; i++) f->arguments = (f->arguments ^ ((const uint8_t *)x)[i]) * 0x100000001B3u;
}
#define NOTE(x) note(f, &(x), sizeof(x))

/* Not a part of such work. */
static void outside(const far *f, const char *who) {
    if (f->repeating) refuse(who, "work that comes again", NULL, "has it within it");
}

static void forget_works(far *f) {
    for (repeated *r; (r = f->works); free(r)) f->works = r->next;
}

static bool far_repeat(gr_device *d, const gr_repeat *key) {
    far *f = (far *)d;
    f->repeating = !f->repeating;
    if (f->repeating) {
        f->key = *key, f->arguments = 0xCBF29CE484222325u;
        return true;
    }
    repeated *r = f->works;
    while (r && memcmp(&r->key, &f->key, sizeof f->key) != 0) r = r->next;
    if (r && r->arguments != f->arguments) refuse("repeat", "work of the same key", r, "has other arguments");
    if (r || !(r = malloc(sizeof *r))) return false;
    *r = (repeated){.next = f->works, .key = f->key, .arguments = f->arguments};
    f->works = r;
    return false;
}

/* ---- what lies in the region ---- */

static bool in_region(const far *f, const void *p) { return (uintptr_t)p - (uintptr_t)f->region < (uintptr_t)REGION; }

/* The block that holds an address of the region. */
static block *block_of(const far *f, const void *p) {
    int64_t at = (const char *)p - f->region, low = 0, high = f->n_blocks;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (f->blocks[middle].at <= at) low = middle;
        else high = middle;
    }
    return &f->blocks[low];
}

static void check_bytes(const far *f, const char *who, const char *argument, const void *p, int64_t bytes) {
    if (!p) return;
    if (!in_region(f, p)) refuse(who, argument, p, "is not the device's memory");
    const block *b = block_of(f, p);
    if (!b->used) refuse(who, argument, p, "was freed");
    if (bytes > b->at + b->bytes - ((const char *)p - f->region)) refuse(who, argument, p, "has fewer bytes than asked for");
}

static void check_host(const far *f, const char *who, const void *p) {
    if (p && in_region(f, p)) refuse(who, "host", p, "is the device's memory");
}

/* ---- protection, and uploads that wait ---- */

static void protect(const far *f, const void *p, int64_t bytes, int access) {
    int64_t begin = ((const char *)p - f->region) / 4096 * 4096, end = (const char *)p - f->region + bytes;
    if (mprotect(f->region + begin, (size_t)(end - begin), access) != 0) refuse("memory", "mprotect", p, "failed");
}

static void reach(const far *f, const void *p, int64_t bytes) { protect(f, p, bytes, PROT_READ | PROT_WRITE); }
static void leave(const far *f, const void *p, int64_t bytes) { protect(f, p, bytes, PROT_NONE); }

/* Uploads up to a mark arrive, in order. */
static void deliver_of(far *f, upload **first, upload ***last, gr_mark until) {
    for (upload *u; (u = *first) && u->number <= until;) {
        reach(f, u->to, u->bytes);
        memcpy(u->to, u->data, (size_t)u->bytes);
        leave(f, u->to, u->bytes);
        *first = u->next;
        free(u);
    }
    if (!*first) *last = first;
}

static void deliver(far *f, gr_mark until) { deliver_of(f, &f->waiting, &f->last, until); }
static void deliver_beside(far *f, gr_mark until) { deliver_of(f, &f->beside, &f->last_beside, until); }

static void begin_work(far *f) {
    deliver(f, f->number++);
    reach(f, f->region, f->top);
}

static void end_work(far *f) { leave(f, f->region, f->top); }

/* ---- memory: the first free block that is large enough ---- */

static void *far_alloc(gr_device *d, int64_t bytes) {
    far *f = (far *)d;
    outside(f, "alloc");
    if (bytes < 0 || bytes > REGION) return NULL;
    bytes = bytes > 0 ? (bytes + 63) / 64 * 64 : 64;
    if (f->n_blocks == f->room) {
        block *more = realloc(f->blocks, (size_t)(2 * f->room) * sizeof *more);
        if (!more) return NULL;
        f->blocks = more, f->room *= 2;
    }
    block *b = f->blocks;
    while (b < f->blocks + f->n_blocks && (b->used || b->bytes < bytes)) b++;
    if (b == f->blocks + f->n_blocks) return NULL;
    if (b->bytes > bytes) {
        memmove(b + 1, b, (size_t)(f->blocks + f->n_blocks++ - b) * sizeof *b);
        b[1].at += bytes, b[1].bytes -= bytes;
        b->bytes = bytes;
    }
    b->used = true;
    if (f->top < b->at + bytes) f->top = b->at + bytes;
    char *p = f->region + b->at;
    reach(f, p, bytes);
    memset(p, 0xFF, (size_t)bytes);
    leave(f, p, bytes);
    return p;
}

/* b takes in the block after it. */
static void join(far *f, block *b) {
    b->bytes += b[1].bytes;
    memmove(b + 1, b + 2, (size_t)(f->blocks + f->n_blocks-- - (b + 2)) * sizeof *b);
}

static void far_free(gr_device *d, void *p) {
    far *f = (far *)d;
    if (!p) return;
    outside(f, "free");
    forget_works(f);
    check_bytes(f, "free", "p", p, 0);
    block *b = block_of(f, p);
    if (f->region + b->at != p) refuse("free", "p", p, "is not what alloc gave");
    deliver(f, f->number), deliver_beside(f, f->number);
    b->used = false;
    if (b + 1 < f->blocks + f->n_blocks && !b[1].used) join(f, b);
    if (b > f->blocks && !b[-1].used) join(f, b - 1);
}

static void far_zero(gr_device *d, void *p, int64_t bytes) {
    far *f = (far *)d;
    check_bytes(f, "zero", "p", p, bytes);
    NOTE(p), NOTE(bytes);
    begin_work(f);
    f->cpu->zero(f->cpu, p, bytes);
    end_work(f);
}

static void far_copy(gr_device *d, void *to, const void *from, int64_t bytes) {
    far *f = (far *)d;
    check_bytes(f, "copy", "to", to, bytes), check_bytes(f, "copy", "from", from, bytes);
    NOTE(to), NOTE(from), NOTE(bytes);
    begin_work(f);
    f->cpu->copy(f->cpu, to, from, bytes);
    end_work(f);
}

static void upload_later(far *f, upload ***last, void *to, const void *host, int64_t bytes) {
    outside(f, "upload");
    check_bytes(f, "upload", "to", to, bytes), check_host(f, "upload", host);
    if (bytes <= 0) return;
    upload *u = malloc(sizeof *u + (size_t)bytes);
    if (!u) refuse("upload", "host", host, "finds no memory to wait in");
    *u = (upload){.number = ++f->number, .to = to, .bytes = bytes};
    memcpy(u->data, host, (size_t)bytes);
    **last = u, *last = &u->next;
}

static void far_upload(gr_device *d, void *to, const void *host, int64_t bytes) {
    upload_later((far *)d, &((far *)d)->last, to, host, bytes);
}

static gr_mark far_upload_beside(gr_device *d, void *to, const void *host, int64_t bytes, gr_mark after) {
    far *f = (far *)d;
    if (after < 0 || after > f->number) refuse("upload_beside", "after", to, "waits for a mark that does not exist");
    upload_later(f, &f->last_beside, to, host, bytes);
    return f->number;
}

/* What was uploaded after the mark does not arrive for it. */
static void far_download(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after) {
    far *f = (far *)d;
    outside(f, "download");
    check_bytes(f, "download", "from", from, bytes), check_host(f, "download", host);
    if (after < 0 || after > f->number) refuse("download", "after", from, "waits for a mark that does not exist");
    deliver(f, after ? after : f->number);
    if (bytes <= 0) return;
    reach(f, from, bytes);
    memcpy(host, from, (size_t)bytes);
    leave(f, from, bytes);
}

static const void *far_map(gr_device *d, const void *host, int64_t bytes) {
    far *f = (far *)d;
    check_host(f, "map", host);
    char *p = far_alloc(d, bytes);
    if (!p || bytes <= 0) return p;
    reach(f, p, bytes);
    memcpy(p, host, (size_t)bytes);
    leave(f, p, bytes);
    return p;
}

static void far_unmap(gr_device *d, const void *p) { far_free(d, (void *)(uintptr_t)p); }

static gr_mark far_mark(gr_device *d, gr_queue queue) {
    (void)queue;
    outside((far *)d, "mark");
    return ((far *)d)->number;
}

static void far_wait(gr_device *d, gr_queue queue, gr_mark mark) {
    far *f = (far *)d;
    outside(f, "wait");
    if (mark < 0 || mark > f->number) refuse("wait", "mark", NULL, "does not exist");
    if (queue == GR_QUEUE_COMPUTE) deliver_beside(f, mark);
}

static const char *far_sync(gr_device *d) {
    far *f = (far *)d;
    deliver(f, f->number), deliver_beside(f, f->number);
    return NULL;
}

/* ---- operations ---- */

static void check_memory(far *f, const char *who, const char *argument, const void *p) {
    NOTE(p);
    check_bytes(f, who, argument, p, 0);
}

static void check_rows(far *f, const char *who, const char *argument, gr_rows x) {
    NOTE(x.ld), NOTE(x.type);
    check_memory(f, who, argument, x.data);
}

static void check_weight(far *f, const char *who, const char *argument, const gr_weight *w) {
    NOTE(w->data), NOTE(w->rows), NOTE(w->cols), NOTE(w->dtype);
    check_bytes(f, who, argument, w->data, gr_dtype_bytes(w->dtype, w->rows * w->cols));
}

static void check_norm(far *f, const char *who, const char *argument, const gr_norm *p) {
    NOTE(p->eps), NOTE(p->parts), NOTE(p->width);
    check_memory(f, who, argument, p->w);
    check_memory(f, who, argument, p->dw);
}

static void check_dropout(far *f, const char *who, const char *argument, const gr_dropout *p) {
    if (!p) return;
    NOTE(p->p), NOTE(p->seed), NOTE(p->site);
    check_memory(f, who, argument, p->row_key);
}

static void check_kv(far *f, const char *who, const char *argument, const gr_kv *kv) {
    if (kv) check_rows(f, who, argument, kv->rows);
}

static void check_group(far *f, const char *who, const char *argument, const gr_group *g) {
    (void)argument;
    for (int i = 0; i < g->n; i++) {
        const gr_linear *l = g->member[i];
        check_weight(f, who, "a weight", &l->w);
        check_memory(f, who, "a bias", l->bias), check_memory(f, who, "a bias's gradient", l->dbias);
        check_memory(f, who, "a weight's gradient", l->dw);
        for (int j = 0; j < l->n_lora; j++) {
            NOTE(l->lora[j].rank), NOTE(l->lora[j].scale);
            check_memory(f, who, "an A", l->lora[j].A), check_memory(f, who, "a B", l->lora[j].B);
            check_memory(f, who, "an A's gradient", l->lora[j].dA), check_memory(f, who, "a B's gradient", l->lora[j].dB);
        }
    }
}

static uint64_t mix(uint64_t hash, const float *x, int64_t n, const float *gradient) {
    for (int64_t i = 0; gradient && i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        hash = (hash ^ bits) * 0x100000001B3u;
    }
    return hash;
}

static uint64_t trained_values(const gr_group *g) {
    uint64_t hash = 0;
    for (int i = 0; i < g->n; i++) {
        const gr_linear *l = g->member[i];
        hash = mix(hash, l->w.data, gr_dtype_bytes(l->w.dtype, l->w.rows * l->w.cols) / (int64_t)sizeof(float), l->dw);
        hash = mix(hash, l->bias, l->w.rows, l->dbias);
        for (int j = 0; j < l->n_lora; j++) {
            const gr_lora *lora = &l->lora[j];
            hash = mix(hash, lora->A, lora->rank * l->w.cols, lora->dA);
            hash = mix(hash, lora->B, lora->rank * l->w.rows, lora->dB);
        }
    }
    return hash;
}

static placed **placed_of(far *f, const gr_group *g) {
    placed **at = &f->placed;
    while (*at && (*at)->group != g) at = &(*at)->next;
    return at;
}

/* On a device whose forms hold them, products would be of the old values. */
static void check_renewed(far *f, const char *who, const gr_group *g) {
    const placed *p = *placed_of(f, g);
    if (!p) return;
    begin_work(f);
    if (p->values != trained_values(g)) refuse(who, "group", g, "has trained members that changed since it was placed or renewed");
    end_work(f);
}

static void check_product(far *f, const char *who, const char *argument, const gr_product *p) {
    check_group(f, who, argument, p->group);
    check_renewed(f, who, p->group);
    check_rows(f, who, "x", p->x), check_rows(f, who, "y", p->y);
    check_rows(f, who, "xd", p->xd), check_rows(f, who, "dxd", p->dxd);
    check_memory(f, who, "h", p->h), check_memory(f, who, "dh", p->dh);
    check_dropout(f, who, "row_key", p->dropout);
}

static void check_attention(far *f, const char *who, const char *argument, const gr_attention *a) {
    (void)argument;
    NOTE(a->n_seqs), NOTE(a->single), NOTE(a->H), NOTE(a->K), NOTE(a->D), NOTE(a->scale), NOTE(a->window), NOTE(a->softcap);
    check_rows(f, who, "q", a->q), check_rows(f, who, "k", a->k), check_rows(f, who, "v", a->v), check_rows(f, who, "out", a->out);
    check_rows(f, who, "dq", a->dq), check_rows(f, who, "dk", a->dk), check_rows(f, who, "dv", a->dv);
    check_rows(f, who, "dout", a->dout);
    check_memory(f, who, "lse", a->lse), check_memory(f, who, "delta", a->delta), check_memory(f, who, "seqs", a->seqs);
    check_memory(f, who, "pos", a->pos), check_memory(f, who, "turns", a->turns);
    check_kv(f, who, "kv", a->kv);
}

static void check_trained(far *f, const char *who, const char *argument, const gr_trained *w) {
    check_memory(f, who, argument, w->f32), check_memory(f, who, argument, w->bf16), check_memory(f, who, argument, w->low);
}

static void check_moments8(far *f, const char *who, const char *argument, const gr_moments8 *m) {
    check_memory(f, who, argument, m->m), check_memory(f, who, argument, m->v);
    check_memory(f, who, argument, m->m_scale), check_memory(f, who, argument, m->v_scale);
}

static void check_factors(far *f, const char *who, const char *argument, const gr_factors *x) {
    check_memory(f, who, argument, x->row), check_memory(f, who, argument, x->col), check_memory(f, who, argument, x->all);
}

static void check_terms(far *f, const char *who, const char *argument, const gr_loss_terms *p) {
    NOTE(p->softcap), NOTE(p->z_loss);
    check_memory(f, who, argument, p->scale);
}

static void check_nothing(far *f, const char *who, const char *argument, ...) { (void)f, (void)who, (void)argument; }

#define CHECK(x)                                                                                                                   \
    _Generic((x),                                                                                                                  \
        gr_rows: check_rows,                                                                                                       \
        float *: check_memory,                                                                                                     \
        const float *: check_memory,                                                                                               \
        int32_t *: check_memory,                                                                                                   \
        const int32_t *: check_memory,                                                                                             \
        gr_step_stats *: check_memory,                                                                                             \
        const gr_step_stats *: check_memory,                                                                                       \
        gr_listing *: check_memory,                                                                                                \
        const gr_weight *: check_weight,                                                                                           \
        const gr_product *: check_product,                                                                                         \
        const gr_attention *: check_attention,                                                                                     \
        const gr_kv *: check_kv,                                                                                                   \
        const gr_norm *: check_norm,                                                                                              \
        const gr_trained *: check_trained,                                                                                         \
        const gr_moments8 *: check_moments8,                                                                                       \
        const gr_factors *: check_factors,                                                                                         \
        const gr_dropout *: check_dropout,                                                                                         \
        const gr_loss_terms *: check_terms,                                                                                        \
        default: check_nothing)(far_, who_, #x, x);
/* And numbers, which are arguments as pointers are. */
#define SCALAR_BYTES(x) _Generic((x), int64_t : 8, int : 4, unsigned : 4, bool : 1, float : 4, double : 8, default : 0)

#define LOOK(x)                                                CHECK(x) note(far_, &(x), SCALAR_BYTES(x));
#define EACH_1(x)                                              LOOK(x)
#define EACH_2(x, ...)                                         LOOK(x) EACH_1(__VA_ARGS__)
#define EACH_3(x, ...)                                         LOOK(x) EACH_2(__VA_ARGS__)
#define EACH_4(x, ...)                                         LOOK(x) EACH_3(__VA_ARGS__)
#define EACH_5(x, ...)                                         LOOK(x) EACH_4(__VA_ARGS__)
#define EACH_6(x, ...)                                         LOOK(x) EACH_5(__VA_ARGS__)
#define EACH_7(x, ...)                                         LOOK(x) EACH_6(__VA_ARGS__)
#define EACH_8(x, ...)                                         LOOK(x) EACH_7(__VA_ARGS__)
#define EACH_9(x, ...)                                         LOOK(x) EACH_8(__VA_ARGS__)
#define EACH_OF(_1, _2, _3, _4, _5, _6, _7, _8, _9, each, ...) each

#define EACH(...) EACH_OF(__VA_ARGS__, EACH_9, EACH_8, EACH_7, EACH_6, EACH_5, EACH_4, EACH_3, EACH_2, EACH_1, none)(__VA_ARGS__)

/* An operation: its arguments checked, the memory within reach, the CPU's. */
#define GR_OP(name, params, args)                                                                                                  \
    static void far_##name params {                                                                                                \
        far *far_ = (far *)d;                                                                                                      \
        const char *who_ = #name;                                                                                                  \
        EACH args;                                                                                                                 \
        begin_work(far_);                                                                                                          \
        d = far_->cpu;                                                                                                             \
        d->ops->name args;                                                                                                         \
        end_work(far_);                                                                                                            \
    }
#include "kernels/ops.def"
#undef GR_OP

#define GR_OP(name, params, args) .name = far_##name,
static const gr_ops far_ops = {
#include "kernels/ops.def"
};
#undef GR_OP

static bool far_place(gr_device *d, gr_group *g) {
    far *f = (far *)d;
    outside(f, "place");
    forget_works(f);
    check_group(f, "place", "g", g);
    placed *p = malloc(sizeof *p);
    if (!p) return false;
    begin_work(f);
    bool made = f->cpu->place(f->cpu, g);
    *p = (placed){.next = f->placed, .group = g, .values = trained_values(g)};
    end_work(f);
    if (made) f->placed = p;
    else free(p);
    return made;
}

static void far_renew(gr_device *d, gr_group *g) {
    far *f = (far *)d;
    outside(f, "renew");
    check_group(f, "renew", "g", g);
    begin_work(f);
    f->cpu->renew(f->cpu, g);
    placed *p = *placed_of(f, g);
    if (p) p->values = trained_values(g);
    end_work(f);
}

static void far_release(gr_device *d, gr_group *g) {
    placed **at = placed_of((far *)d, g), *p = *at;
    outside((far *)d, "release");
    forget_works((far *)d);
    if (p) *at = p->next;
    free(p);
    ((far *)d)->cpu->release(((far *)d)->cpu, g);
}

/* ---- opening ---- */

static void far_close(gr_device *d) {
    far *f = (far *)d;
    if (f->region) deliver(f, f->number), deliver_beside(f, f->number), munmap(f->region, (size_t)REGION);
    if (f->cpu) f->cpu->close(f->cpu);
    for (placed *p; (p = f->placed); free(p)) f->placed = p->next;
    forget_works(f);
    free(f->blocks);
    free(f);
}

/* Rows stand apart, so that nobody relies on their being one piece. */
static int64_t far_row_stride(gr_device *d, int64_t width, gr_dtype type) {
    (void)d, (void)type;
    return width + 16;
}

gr_device *gr_far_device_new(gr_threads *threads, const char **why) {
    far *f = calloc(1, sizeof *f);
    *why = "out of memory for the far device";
    if (!f) return NULL;
    f->last = &f->waiting, f->last_beside = &f->beside, f->room = 64, f->n_blocks = 1;
    f->blocks = malloc((size_t)f->room * sizeof *f->blocks);
    void *region = mmap(NULL, (size_t)REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region != MAP_FAILED) f->region = region;
    if (!f->blocks || !f->region || !(f->cpu = gr_cpu_device_new(threads, why))) {
        far_close(&f->device);
        return NULL;
    }
    f->blocks[0] = (block){.at = 0, .bytes = REGION};
    snprintf(f->level, sizeof f->level, "far-%s", f->cpu->level + strlen("cpu-"));
    f->device = *f->cpu; /* its forms of groups and of KV caches stay where the CPU has them, but for a cache's rows */
    f->device.ops = &far_ops, f->device.level = f->level, f->device.queues = true, f->device.in_host = false;
    f->device.row_stride = far_row_stride;
    f->device.alloc = far_alloc, f->device.free = far_free, f->device.zero = far_zero, f->device.copy = far_copy;
    f->device.upload = far_upload, f->device.upload_beside = far_upload_beside, f->device.download = far_download;
    f->device.map = far_map, f->device.unmap = far_unmap;
    f->device.repeat = far_repeat, f->device.mark = far_mark, f->device.wait = far_wait, f->device.sync = far_sync;
    f->device.place = far_place, f->device.renew = far_renew, f->device.release = far_release, f->device.close = far_close;
    return &f->device;
}
