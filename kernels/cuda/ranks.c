/* ranks.c - bytes between the cards of several ranks by NCCL's sends and receives, beside the compute queue. NCCL is loaded when a
 * run has several ranks, never linked: a card alone does without. Its reductions are not used: they promise no order. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/cuda.h"

static const gr_watch *watch_of(gr_device *d);
static bool is_broken(gr_device *d);

/* ---- waiting ---- */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One look of a loop that waits, and a nap after it. false: the ranks are lost, and so is the device. */
static bool goes_on(gr_device *d, double began, bool in_vain, long *nap) {
    const gr_watch *watch = watch_of(d);
    const char *why = "";
    if (watch && !watch->goes_on(watch->context, in_vain ? INFINITY : seconds() - began, &why)) {
        gr_cuda_ranks_leave(d);
        gr_cuda_refuse(d, "%s", why);
        return false;
    }
    nanosleep(&(struct timespec){.tv_nsec = *nap}, NULL);
    if (*nap < 200000) *nap += *nap / 2;
    return true;
}

bool gr_cuda_await(gr_device *d, cudaStream_t stream, cudaEvent_t event, const char *what) {
    const double began = seconds();
    long nap = 5000; /* ns */
    cudaError_t e;
    if (gr_cuda_failed(d)) return false;
    if (!d->joined) return gr_cuda_check(d, event ? cudaEventSynchronize(event) : cudaStreamSynchronize(stream), what);
    while ((e = event ? cudaEventQuery(event) : cudaStreamQuery(stream)) == cudaErrorNotReady)
        if (!goes_on(d, began, is_broken(d), &nap)) return false;
    return gr_cuda_check(d, e, what);
}

#ifdef GRAFT_NCCL
#include <nccl.h>

struct gr_cuda_ranks {
    ncclComm_t comm; /* NULL: given up */
    int rank, size;
    gr_watch watch;
};

#define CALLS(X)                                                                                                                   \
    X(GetVersion)                                                                                                                  \
    X(GetErrorString)                                                                                                              \
    X(GetUniqueId)                                                                                                                 \
    X(CommInitRankConfig)                                                                                                          \
    X(CommGetAsyncError)                                                                                                           \
    X(CommAbort)                                                                                                                   \
    X(CommDestroy)                                                                                                                 \
    X(GroupStart)                                                                                                                  \
    X(GroupEnd)                                                                                                                    \
    X(Send)                                                                                                                        \
    X(Recv)

static struct {
    void *library;
    char about[96];
#define X(name) __typeof__(&nccl##name) name;
    CALLS(X)
#undef X
} nccl; /* of the process, as NCCL is */

static bool load(void) {
    const char *missing = NULL;
    int version = 0;
    if (nccl.library) return true;
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        snprintf(nccl.about, sizeof nccl.about, "no NCCL: %.80s", why ? why : "libnccl.so.2");
        return false;
    }
#define X(name)                                                                                                                    \
    nccl.name = (__typeof__(nccl.name))(uintptr_t)dlsym(library, "nccl" #name);                                                    \
    if (!nccl.name && !missing) missing = "nccl" #name;
    CALLS(X)
#undef X
    if (missing) {
        snprintf(nccl.about, sizeof nccl.about, "NCCL 2.14 or later is needed: libnccl.so.2 has no %s", missing);
        dlclose(library);
        return false;
    }
    (void)nccl.GetVersion(&version);
    snprintf(nccl.about, sizeof nccl.about, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    nccl.library = library;
    return true;
}

static const gr_watch *watch_of(gr_device *d) {
    gr_cuda_ranks *r = gr_cuda_of(d)->ranks;
    return r ? &r->watch : NULL;
}

static bool is_broken(gr_device *d) {
    gr_cuda_ranks *r = gr_cuda_of(d)->ranks;
    ncclResult_t e = ncclSuccess;
    return r && r->comm && (nccl.CommGetAsyncError(r->comm, &e) != ncclSuccess || (e != ncclSuccess && e != ncclInProgress));
}

static bool check(gr_device *d, ncclResult_t e, const char *what) {
    if (e == ncclSuccess || e == ncclInProgress) return !gr_cuda_failed(d);
    gr_cuda_refuse(d, "%s: %s", what, nccl.GetErrorString(e));
    return false;
}

/* NCCL's calls return before they are done: whoever connects is waited for as any other. */
static bool settle(gr_device *d, const char *what) {
    gr_cuda_ranks *r = gr_cuda_of(d)->ranks;
    const double began = seconds();
    long nap = 5000;
    ncclResult_t e = ncclInProgress;
    while (!gr_cuda_failed(d) && check(d, nccl.CommGetAsyncError(r->comm, &e), what) && e == ncclInProgress)
        if (!goes_on(d, began, false, &nap)) return false;
    return check(d, e, what);
}

bool gr_cuda_ranks_name(gr_device *d, char *name, const char **about) {
    ncclUniqueId id;
    _Static_assert(sizeof id == GR_RANKS_NAME, "a name is NCCL's");
    const bool loaded = load();
    *about = nccl.about;
    if (!loaded || !name) return loaded;
    (void)cudaSetDevice(gr_cuda_of(d)->index);
    const ncclResult_t e = nccl.GetUniqueId(&id);
    if (e != ncclSuccess) *about = nccl.GetErrorString(e);
    else memcpy(name, &id, sizeof id);
    return e == ncclSuccess;
}

void gr_cuda_exchange(gr_device *d, const gr_piece *out, const gr_piece *in) {
    gr_cuda *c = gr_cuda_of(d);
    const gr_cuda_ranks *r = c->ranks;
    const cudaStream_t stream = c->stream[GR_QUEUE_COMM];
    if (gr_cuda_idle(d) || !r->comm) return;
    const gr_piece from = out[r->rank], to = in[r->rank];
    if (from.bytes > 0 && from.data != to.data)
        gr_cuda_check(d, cudaMemcpyAsync(to.data, from.data, (size_t)from.bytes, cudaMemcpyDeviceToDevice, stream), "exchange");
    check(d, nccl.GroupStart(), "ncclGroupStart");
    for (int k = 1; k < r->size && !gr_cuda_failed(d); k++) { /* everyone begins with the rank behind itself */
        const int next = (r->rank + k) % r->size, last = (r->rank + r->size - k) % r->size;
        if (out[next].bytes > 0)
            check(d, nccl.Send(out[next].data, (size_t)out[next].bytes, ncclUint8, next, r->comm, stream), "ncclSend");
        if (in[last].bytes > 0)
            check(d, nccl.Recv(in[last].data, (size_t)in[last].bytes, ncclUint8, last, r->comm, stream), "ncclRecv");
    }
    check(d, nccl.GroupEnd(), "ncclGroupEnd");
    (void)settle(d, "NCCL");
}

/* Every rank's number goes to every other: all are connected then, and NCCL has what memory it takes. */
static void try_all(gr_device *d) {
    const gr_cuda_ranks *r = gr_cuda_of(d)->ranks;
    const size_t bytes = 2 * (size_t)r->size * sizeof(int32_t);
    int32_t *host = calloc(1, bytes), *there = d->alloc(d, (int64_t)bytes);
    gr_piece out[r->size], in[r->size];
    if (!host || !there) gr_cuda_refuse(d, "out of memory: joining the other ranks");
    for (int i = 0; i < r->size && host; i++) {
        host[i] = r->rank, host[r->size + i] = -1;
        out[i] = (gr_piece){there + i, sizeof *there};
        in[i] = (gr_piece){there + r->size + i, sizeof *there};
    }
    if (!gr_cuda_failed(d)) {
        d->upload(d, there, host, (int64_t)bytes);
        d->wait(d, GR_QUEUE_COMM, d->mark(d, GR_QUEUE_COMPUTE));
        d->exchange(d, out, in);
        d->download(d, host, there, (int64_t)bytes, d->mark(d, GR_QUEUE_COMM));
    }
    for (int i = 0; i < r->size && !gr_cuda_failed(d); i++)
        if (host[r->size + i] != i) gr_cuda_refuse(d, "NCCL: what rank %d sent did not arrive", i);
    d->free(d, there);
    free(host);
}

bool gr_cuda_ranks_join(gr_device *d, const char *name, int rank, int size, const gr_watch *watch) {
    gr_cuda *c = gr_cuda_of(d);
    ncclConfig_t how = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    memcpy(&id, name, sizeof id);
    how.blocking = 0;
    if (!(c->ranks = calloc(1, sizeof *c->ranks))) {
        gr_cuda_refuse(d, "out of memory: joining the other ranks");
        return false;
    }
    *c->ranks = (gr_cuda_ranks){.rank = rank, .size = size, .watch = *watch};
    if (!gr_cuda_check(d, cudaSetDevice(c->index), "cudaSetDevice")) return false;
    d->joined = check(d, nccl.CommInitRankConfig(&c->ranks->comm, size, id, rank, &how), "joining the other ranks by NCCL") &&
                settle(d, "joining the other ranks by NCCL");
    if (d->joined) try_all(d);
    return !gr_cuda_failed(d);
}

void gr_cuda_ranks_leave(gr_device *d) {
    gr_cuda_ranks *r = gr_cuda_of(d)->ranks;
    if (r && r->comm) (void)nccl.CommAbort(r->comm);
    if (r) r->comm = NULL;
    d->joined = false;
}

void gr_cuda_ranks_close(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    if (c->ranks && c->ranks->comm) {
        if (gr_cuda_failed(d)) gr_cuda_ranks_leave(d);
        else (void)nccl.CommDestroy(c->ranks->comm);
    }
    d->joined = false;
    free(c->ranks);
    c->ranks = NULL;
}

#else /* nothing of it was there when this was built */

static const gr_watch *watch_of(gr_device *d) {
    (void)d;
    return NULL;
}
static bool is_broken(gr_device *d) {
    (void)d;
    return false;
}
bool gr_cuda_ranks_name(gr_device *d, char *name, const char **about) {
    (void)d, (void)name;
    *about = "libgraft_cuda.so was built without NCCL's header (nccl.h)";
    return false;
}
bool gr_cuda_ranks_join(gr_device *d, const char *name, int rank, int size, const gr_watch *watch) {
    (void)name, (void)rank, (void)size, (void)watch;
    gr_cuda_refuse(d, "libgraft_cuda.so was built without NCCL's header (nccl.h)");
    return false;
}
void gr_cuda_exchange(gr_device *d, const gr_piece *out, const gr_piece *in) { (void)d, (void)out, (void)in; }
void gr_cuda_ranks_leave(gr_device *d) { (void)d; }
void gr_cuda_ranks_close(gr_device *d) { (void)d; }

#endif
