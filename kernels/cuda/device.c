/* device.c - the CUDA device: opening, errors, memory, queues. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/open.h"

/* ---- errors ---- */

void gr_cuda_refuse(gr_device *d, const char *format, ...) {
    gr_cuda *c = gr_cuda_of(d);
    va_list args;
    if (gr_cuda_failed(d)) return;
    va_start(args, format);
    vsnprintf(c->wrong, sizeof c->wrong, format, args);
    va_end(args);
}

bool gr_cuda_check(gr_device *d, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return !gr_cuda_failed(d);
    (void)cudaGetLastError(); /* one that does not stick */
    if (e == cudaErrorMemoryAllocation) gr_cuda_refuse(d, "out of memory: %s", what);
    else gr_cuda_refuse(d, "%s: %s", what, cudaGetErrorString(e));
    return false;
}

bool gr_cuda_check_blas(gr_device *d, cublasStatus_t e, const char *what) {
    if (e == CUBLAS_STATUS_SUCCESS) return !gr_cuda_failed(d);
    gr_cuda_refuse(d, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(e));
    return false;
}

/* ---- memory ---- */

static void *cuda_alloc(gr_device *d, int64_t bytes) {
    void *p = NULL;
    (void)cudaSetDevice(gr_cuda_of(d)->index);
    if (bytes < 0 || cudaMalloc(&p, bytes > 0 ? (size_t)bytes : 1) == cudaSuccess) return p;
    (void)cudaGetLastError();
    return NULL;
}

static const char *cuda_sync(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    for (int i = 0; i < GR_CUDA_QUEUES && !gr_cuda_failed(d); i++)
        (void)gr_cuda_await(d, c->stream[i], NULL, "a kernel"); /* no download is under way when one returns */
    return gr_cuda_failed(d) ? c->wrong : NULL;
}

/* Work that uses the memory may be under way: cudaFree waits for it, but with no eye on other ranks. */
static void cuda_free(gr_device *d, void *p) {
    if (!p) return;
    gr_cuda_graphs_forget(d);
    if (d->joined) (void)cuda_sync(d);
    gr_cuda_check(d, cudaFree(p), "cudaFree");
}

static void cuda_zero(gr_device *d, void *p, int64_t bytes) {
    if (bytes > 0 && !gr_cuda_idle(d)) gr_cuda_check(d, cudaMemsetAsync(p, 0, (size_t)bytes, gr_cuda_stream(d)), "zero");
}

static void cuda_copy(gr_device *d, void *to, const void *from, int64_t bytes) {
    if (bytes <= 0 || gr_cuda_idle(d)) return;
    gr_cuda_check(d, cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, gr_cuda_stream(d)), "copy");
}

/* ---- uploads ---- */

static bool is_read(const gr_cuda *c, int64_t begin, int64_t end) {
    bool found = c->uploads - c->oldest == GR_CUDA_UPLOADS;
    for (int64_t i = c->oldest; i < c->uploads; i++) {
        const gr_cuda_upload *u = &c->upload[i % GR_CUDA_UPLOADS];
        found |= u->begin < end && begin < u->end;
    }
    return found;
}

/* n bytes of pinned memory for an upload. Its beginning is used again and again where uploads are small and few: those are never
 * waited for. NULL: the device has failed. */
static gr_cuda_upload *pinned(gr_device *d, int64_t n) {
    gr_cuda *c = gr_cuda_of(d);
    while (c->oldest < c->uploads && cudaEventQuery(c->upload[c->oldest % GR_CUDA_UPLOADS].done) == cudaSuccess) c->oldest++;
    (void)cudaGetLastError(); /* not ready is no error */
    if (c->oldest == c->uploads || c->ring_at + n > GR_CUDA_RING) c->ring_at = 0;
    for (; is_read(c, c->ring_at, c->ring_at + n); c->oldest++)
        if (!gr_cuda_await(d, NULL, c->upload[c->oldest % GR_CUDA_UPLOADS].done, "upload")) return NULL;
    gr_cuda_upload *u = &c->upload[c->uploads++ % GR_CUDA_UPLOADS];
    u->begin = c->ring_at, u->end = c->ring_at += n;
    return u;
}

/* Through pinned memory, in pieces: the host goes on as soon as its bytes are there, the copy comes where it is in the queue. */
static void upload_in(gr_device *d, gr_queue queue, void *to, const void *host, int64_t bytes) {
    gr_cuda *c = gr_cuda_of(d);
    const cudaStream_t stream = c->stream[queue];
    for (int64_t at = 0, n; at < bytes && !gr_cuda_idle(d); at += n) {
        n = bytes - at < GR_CUDA_PIECE ? bytes - at : GR_CUDA_PIECE;
        const gr_cuda_upload *u = pinned(d, n);
        if (!u) return;
        memcpy(c->ring + u->begin, (const char *)host + at, (size_t)n);
        gr_cuda_check(d, cudaMemcpyAsync((char *)to + at, c->ring + u->begin, (size_t)n, cudaMemcpyHostToDevice, stream), "upload");
        gr_cuda_check(d, cudaEventRecord(u->done, stream), "upload");
    }
}

static void cuda_upload(gr_device *d, void *to, const void *host, int64_t bytes) {
    upload_in(d, GR_QUEUE_COMPUTE, to, host, bytes);
}

/* ---- queues ---- */

static gr_mark cuda_mark(gr_device *d, gr_queue queue) {
    gr_cuda *c = gr_cuda_of(d);
    if (gr_cuda_failed(d)) return 0;
    const int64_t number = ++c->marks[queue];
    gr_cuda_check(d, cudaEventRecord(c->event[queue][number % GR_CUDA_MARKS], c->stream[queue]), "mark");
    return number * GR_CUDA_QUEUES + queue;
}

static cudaEvent_t event_of(const gr_cuda *c, gr_mark mark) {
    return c->event[mark % GR_CUDA_QUEUES][mark / GR_CUDA_QUEUES % GR_CUDA_MARKS];
}

static void cuda_wait(gr_device *d, gr_queue queue, gr_mark mark) {
    gr_cuda *c = gr_cuda_of(d);
    if (mark > 0 && !gr_cuda_failed(d)) gr_cuda_check(d, cudaStreamWaitEvent(c->stream[queue], event_of(c, mark), 0), "wait");
}

static gr_mark cuda_upload_beside(gr_device *d, void *to, const void *host, int64_t bytes, gr_mark after) {
    cuda_wait(d, GR_QUEUE_COPY, after);
    upload_in(d, GR_QUEUE_COPY, to, host, bytes);
    return cuda_mark(d, GR_QUEUE_COPY);
}

/* Beside the work that was given out after the mark. What a failed device holds is not told: zeros are. */
static void cuda_download(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after) {
    gr_cuda *c = gr_cuda_of(d);
    const gr_mark mark = after > 0 ? after : cuda_mark(d, GR_QUEUE_COMPUTE);
    if (mark > 0 && !gr_cuda_failed(d)) gr_cuda_check(d, cudaStreamWaitEvent(c->down_stream, event_of(c, mark), 0), "wait");
    for (int64_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < GR_CUDA_PIECE ? bytes - at : GR_CUDA_PIECE;
        bool good =
            !gr_cuda_failed(d) &&
            gr_cuda_check(d, cudaMemcpyAsync(c->down, (const char *)from + at, (size_t)n, cudaMemcpyDeviceToHost, c->down_stream),
                          "download") &&
            gr_cuda_await(d, c->down_stream, NULL, "download");
        if (good) memcpy((char *)host + at, c->down, (size_t)n);
        else memset((char *)host + at, 0, (size_t)n);
    }
}

static const void *cuda_map(gr_device *d, const void *host, int64_t bytes) {
    void *p = cuda_alloc(d, bytes);
    if (p) cuda_upload(d, p, host, bytes);
    return p;
}

static void cuda_unmap(gr_device *d, const void *p) { cuda_free(d, (void *)(uintptr_t)p); }

static bool cuda_memory(gr_device *d, int64_t *total, int64_t *available) {
    gr_cuda *c = gr_cuda_of(d);
    size_t of_all = 0, is_free = 0;
    const cudaError_t set = cudaSetDevice(c->index), told = set == cudaSuccess ? cudaMemGetInfo(&is_free, &of_all) : set;
    if (told == cudaSuccess) c->memory = (int64_t)of_all;
    else gr_cuda_check(d, told, "cudaMemGetInfo"); /* it is a card still, and what is planned on it comes to nothing */
    *total = c->memory, *available = (int64_t)is_free;
    return true;
}

static int64_t cuda_footprint(gr_device *d, int64_t bytes) {
    (void)d;
    return gr_cuda_pages(bytes);
}

void *gr_cuda_scratch(gr_device *d, gr_cuda_use use, int64_t bytes) {
    gr_cuda *c = gr_cuda_of(d);
    if (gr_cuda_failed(d)) return NULL;
    if (c->rehearsing) {
        if (bytes > c->wanted[use]) c->wanted[use] = bytes;
        return (void *)(uintptr_t)256; /* any aligned address: nobody looks */
    }
    if (bytes <= c->scratch_bytes[use]) return c->scratch[use];
    if (gr_cuda_graphs_spoil(d)) return (void *)(uintptr_t)256;
    cuda_free(d, c->scratch[use]);
    c->scratch[use] = cuda_alloc(d, bytes);
    c->scratch_bytes[use] = c->scratch[use] ? bytes : 0;
    if (!c->scratch[use]) gr_cuda_refuse(d, "out of memory: %.1f MiB for scratch of products", (double)bytes / (1 << 20));
    return c->scratch[use];
}

static bool cuda_rehearse(gr_device *d, bool begin) {
    gr_cuda *c = gr_cuda_of(d);
    c->rehearsing = begin;
    if (begin) memset(c->wanted, 0, sizeof c->wanted);
    for (int use = 0; !begin && use < GR_CUDA_USES; use++) (void)gr_cuda_scratch(d, (gr_cuda_use)use, c->wanted[use]);
    return !gr_cuda_failed(d);
}

static gr_dtype cuda_act_type(gr_device *d, gr_dtype compute) {
    (void)d;
    return compute;
}

static int64_t cuda_scratch_bytes(gr_device *d, const gr_group *g, int64_t rows) {
    (void)d;
    return gr_cuda_scratch_of(g, rows);
}

static bool cuda_holds(gr_device *d, const gr_group *g) {
    const gr_cuda_form *form = g->form;
    (void)d;
    return form && form->matrix;
}

/* ---- opening ---- */

#define GR_OP(name, params, args) .name = gr_##name##_cuda,
static const gr_ops cuda_ops = {
#include "kernels/ops.def"
};
#undef GR_OP

static void cuda_close(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    (void)cudaSetDevice(c->index);
    if (d->joined) (void)cuda_sync(d);
    gr_cuda_ranks_close(d);
    (void)cudaDeviceSynchronize();
    gr_cuda_gemm_close(d);
    gr_cuda_graphs_close(d);
    if (c->lt) (void)cublasLtDestroy(c->lt);
    (void)cudaFree(c->workspace);
    for (int i = 0; i < GR_CUDA_USES; i++) (void)cudaFree(c->scratch[i]);
    if (c->ring) (void)cudaFreeHost(c->ring);
    if (c->down) (void)cudaFreeHost(c->down);
    for (int i = 0; i < GR_CUDA_UPLOADS; i++)
        if (c->upload[i].done) (void)cudaEventDestroy(c->upload[i].done);
    for (int q = 0; q < GR_CUDA_QUEUES; q++) {
        for (int i = 0; i < GR_CUDA_MARKS; i++)
            if (c->event[q][i]) (void)cudaEventDestroy(c->event[q][i]);
        if (c->stream[q]) (void)cudaStreamDestroy(c->stream[q]);
    }
    if (c->down_stream) (void)cudaStreamDestroy(c->down_stream);
    free(c);
}

static const gr_device cuda_device = {
    .ops = &cuda_ops,
    .fast_bf16 = true,
    .queues = true,
    .in_host = false,
    .shared_bytes = GR_CUDA_WORKSPACE,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .zero = cuda_zero,
    .copy = cuda_copy,
    .upload = cuda_upload,
    .upload_beside = cuda_upload_beside,
    .download = cuda_download,
    .map = cuda_map,
    .unmap = cuda_unmap,
    .mark = cuda_mark,
    .wait = cuda_wait,
    .sync = cuda_sync,
    .memory = cuda_memory,
    .footprint = cuda_footprint,
    .rehearse = cuda_rehearse,
    .repeat = gr_cuda_repeat,
    .act_type = cuda_act_type,
    .row_stride = gr_cuda_row_stride,
    .group_bytes = gr_cuda_group_bytes,
    .scratch_bytes = cuda_scratch_bytes,
    .place = gr_cuda_place,
    .renew = gr_cuda_renew,
    .release = gr_cuda_release,
    .holds = cuda_holds,
    .kv_bytes = gr_cuda_kv_bytes,
    .kv_open = gr_cuda_kv_open,
    .kv_close = gr_cuda_kv_close,
    .ranks_name = gr_cuda_ranks_name,
    .ranks_join = gr_cuda_ranks_join,
    .exchange = gr_cuda_exchange,
    .ranks_leave = gr_cuda_ranks_leave,
    .close = cuda_close,
};

/* The host's memory, not the card's. */
static void pin(gr_cuda *c, char **memory, int bytes) {
    cudaError_t e = cudaHostAlloc((void **)memory, (size_t)bytes, cudaHostAllocDefault);
    if (e == cudaSuccess) return;
    (void)cudaGetLastError();
    gr_cuda_refuse(&c->device, "%d MiB of the host's memory, pinned: %s", bytes >> 20, cudaGetErrorString(e));
}

static bool open_card(gr_cuda *c) {
    gr_device *d = &c->device;
    struct cudaDeviceProp card;
    if (!gr_cuda_check(d, cudaSetDevice(c->index), "cudaSetDevice") ||
        !gr_cuda_check(d, cudaGetDeviceProperties(&card, c->index), "cudaGetDeviceProperties"))
        return false;
    for (int i = 0; i < 16; i++) snprintf(c->id + 2 * i, 3, "%02x", (unsigned)(unsigned char)card.uuid.bytes[i]);
    d->id = c->id;
    c->cc = card.major * 10 + card.minor, c->sms = card.multiProcessorCount, c->memory = (int64_t)card.totalGlobalMem;
    d->fp8 = c->cc == 90; /* where cuBLASLt has products with a scale for each row of either factor */
    if (c->cc < 80) {
        gr_cuda_refuse(d, "%.64s has compute capability %d.%d; 8.0 or later is needed", card.name, card.major, card.minor);
        return false;
    }
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver), (void)cudaRuntimeGetVersion(&runtime);
    snprintf(c->about, sizeof c->about,
             "%.100s, compute capability %d.%d, %d multiprocessors, %.1f GiB; driver for CUDA %d.%d, runtime %d.%d, cuBLASLt %zu",
             card.name, card.major, card.minor, c->sms, (double)card.totalGlobalMem / (1 << 30), driver / 1000, driver % 1000 / 10,
             runtime / 1000, runtime % 1000 / 10, cublasLtGetVersion());
    for (int q = 0; q < GR_CUDA_QUEUES; q++) {
        gr_cuda_check(d, cudaStreamCreateWithFlags(&c->stream[q], cudaStreamNonBlocking), "cudaStreamCreate");
        for (int i = 0; i < GR_CUDA_MARKS; i++)
            gr_cuda_check(d, cudaEventCreateWithFlags(&c->event[q][i], cudaEventDisableTiming), "cudaEventCreate");
    }
    gr_cuda_check(d, cudaStreamCreateWithFlags(&c->down_stream, cudaStreamNonBlocking), "cudaStreamCreate");
    for (int i = 0; i < GR_CUDA_UPLOADS; i++)
        gr_cuda_check(d, cudaEventCreateWithFlags(&c->upload[i].done, cudaEventDisableTiming), "cudaEventCreate");
    pin(c, &c->ring, GR_CUDA_RING);
    pin(c, &c->down, GR_CUDA_PIECE);
    gr_cuda_check(d, cudaMalloc(&c->workspace, GR_CUDA_WORKSPACE), "32.0 MiB for the workspace of cuBLASLt");
    return gr_cuda_check_blas(d, cublasLtCreate(&c->lt), "cublasLtCreate") && gr_cuda_gemm_open(d) && gr_cuda_graphs_open(d);
}

/* Where this library was found. */
static const char *own_path(void) {
    Dl_info here;
    return dladdr((void *)(uintptr_t)gr_backend_open, &here) && here.dli_fname ? here.dli_fname : "libgraft_cuda.so";
}

/* No card of that number: n there are, or the runtime cannot tell. */
static void say_no_card(cudaError_t e, int n, char *why, size_t size) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int at = e != cudaSuccess
                 ? snprintf(why, size, "%s", cudaGetErrorString(e))
                 : snprintf(why, size, n == 1 ? "there is 1 card here, cuda:0" : "there are %d cards here, from cuda:0 on", n);
    if (visible && at >= 0 && (size_t)at < size)
        snprintf(why + at, size - (size_t)at, " (CUDA_VISIBLE_DEVICES is \"%.60s\")", visible);
}

gr_device *gr_backend_open(const char *abi, int index, char *why, size_t size) {
    int n = 0;
    if (strcmp(abi, GR_ABI) != 0) {
        snprintf(why, size, "%.400s is of another version of graft: install both together", own_path());
        return NULL;
    }
    cudaError_t e = cudaGetDeviceCount(&n);
    if (index < 0 && n > 0) index = (-1 - index) % n;
    if (e != cudaSuccess || n < 1 || index >= n) {
        (void)cudaGetLastError();
        say_no_card(e, n, why, size);
        return NULL;
    }
    gr_cuda *c = calloc(1, sizeof *c);
    if (!c) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    c->device = cuda_device;
    c->device.impl = c;
    c->index = index;
    snprintf(c->level, sizeof c->level, "cuda:%d", index);
    c->device.level = c->level;
    c->device.about = c->about;
    if (open_card(c)) return &c->device;
    int64_t total, available;
    n = snprintf(why, size, "%s", c->wrong);
    if (strncmp(why, "out of memory", 13) == 0 && cuda_memory(&c->device, &total, &available))
        snprintf(why + n, size - (size_t)n, "; %.1f of %.1f MiB are free there", (double)available / (1 << 20),
                 (double)total / (1 << 20));
    cuda_close(&c->device);
    return NULL;
}
