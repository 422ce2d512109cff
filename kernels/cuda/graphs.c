/* graphs.c - work that comes again is recorded as a CUDA graph and launched as one: where kernels are small the host's launches are
 * the limit (about 3 us each; a node of a graph that waits for the one before takes 1 to 1.5 us).
 *
 * A key that comes for the first time is done plainly: kernels are loaded, scratch grows, cuBLASLt is asked. For the second time it
 * is recorded, from then on launched. A record holds addresses: all are given up where memory is freed or a group placed or
 * released, which no step does. What cannot be recorded is done plainly, each time. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

enum { KEYS = 64, RECORDS = 16 }; /* that are remembered, and of those with a record; the ones used last stay */

typedef struct record {
    gr_repeat key;
    int64_t used; /* when; 0: free */
    cudaGraphExec_t graph;
    bool plain; /* recording it failed */
} record;

struct gr_cuda_graphs {
    record record[KEYS];
    int64_t now;
    enum { NOTHING, GIVEN, RECORDED } work; /* is under way */
    bool spoilt;
    record *of; /* the work's, where it is recorded */
};

bool gr_cuda_graphs_open(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    c->graphs = calloc(1, sizeof *c->graphs);
    if (!c->graphs) gr_cuda_refuse(d, "out of memory");
    return c->graphs != NULL;
}

/* A graph that runs is freed by CUDA when it is done. */
static void drop(record *r) {
    if (r->graph) (void)cudaGraphExecDestroy(r->graph);
    r->graph = NULL;
}

void gr_cuda_graphs_forget(gr_device *d) {
    gr_cuda_graphs *g = gr_cuda_of(d)->graphs;
    if (!g) return;
    for (int i = 0; i < KEYS; i++) {
        drop(&g->record[i]);
        if (g->work != RECORDED || g->of != &g->record[i]) g->record[i] = (record){.used = 0};
    }
    g->spoilt = true;
}

void gr_cuda_graphs_close(gr_device *d) {
    gr_cuda_graphs_forget(d);
    free(gr_cuda_of(d)->graphs);
    gr_cuda_of(d)->graphs = NULL;
}

bool gr_cuda_graphs_spoil(gr_device *d) {
    gr_cuda_graphs *g = gr_cuda_of(d)->graphs;
    if (!g || g->work != RECORDED) return false;
    g->spoilt = true;
    return true;
}

static record *find(gr_cuda_graphs *g, const gr_repeat *key) {
    for (int i = 0; i < KEYS; i++)
        if (g->record[i].used && memcmp(&g->record[i].key, key, sizeof *key) == 0) return &g->record[i];
    return NULL;
}

/* The one of those with a graph, or of all, that was not used for the longest time. */
static record *oldest(gr_cuda_graphs *g, bool with_graph) {
    record *found = NULL;
    for (int i = 0; i < KEYS; i++)
        if ((!with_graph || g->record[i].graph) && (!found || g->record[i].used < found->used)) found = &g->record[i];
    return found;
}

static void remember(gr_cuda_graphs *g, const gr_repeat *key) {
    record *r = oldest(g, false);
    drop(r);
    *r = (record){.key = *key, .used = ++g->now};
}

/* What was recorded becomes a graph, in place of the oldest where there are enough. */
static void keep(gr_cuda_graphs *g, cudaGraph_t recorded) {
    int n = 0;
    for (int i = 0; i < KEYS; i++) n += g->record[i].graph != NULL;
    if (n == RECORDS) drop(oldest(g, true));
    if (cudaGraphInstantiate(&g->of->graph, recorded, 0) == cudaSuccess) return;
    (void)cudaGetLastError();
    g->of->graph = NULL;
}

/* The record of the work ends; whether there is a graph of it now. */
static bool end_record(gr_device *d) {
    gr_cuda_graphs *g = gr_cuda_of(d)->graphs;
    cudaGraph_t recorded = NULL;
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const bool ended = cudaStreamEndCapture(gr_cuda_stream(d), &recorded) == cudaSuccess;
    if (!ended) (void)cudaGetLastError();
    if (!ended && (cudaStreamIsCapturing(gr_cuda_stream(d), &status) != cudaSuccess || status != cudaStreamCaptureStatusNone))
        gr_cuda_refuse(d, "cudaStreamEndCapture: the record of a step does not end");
    if (ended && !g->spoilt && !gr_cuda_failed(d)) keep(g, recorded);
    if (recorded) (void)cudaGraphDestroy(recorded);
    g->of->plain = !g->of->graph && !g->spoilt;
    return g->of->graph != NULL;
}

static bool launch(gr_device *d, record *r) {
    r->used = ++gr_cuda_of(d)->graphs->now;
    return gr_cuda_check(d, cudaGraphLaunch(r->graph, gr_cuda_stream(d)), "a graph");
}

bool gr_cuda_repeat(gr_device *d, const gr_repeat *key) {
    gr_cuda_graphs *g = gr_cuda_of(d)->graphs;
    if (g->work == RECORDED) {
        const bool made = end_record(d);
        g->work = NOTHING;
        if (made) (void)launch(d, g->of);
        if (made || gr_cuda_failed(d)) return false;
        g->work = GIVEN; /* again, to be done */
        return true;
    }
    if (g->work == GIVEN) {
        g->work = NOTHING;
        return false;
    }
    record *r = gr_cuda_idle(d) ? NULL : find(g, key);
    if (r && r->graph) {
        (void)launch(d, r);
        return false;
    }
    g->work = GIVEN;
    if (!r && !gr_cuda_idle(d)) remember(g, key);
    if (!r || r->plain) return true;
    r->used = ++g->now, g->spoilt = false;
    if (cudaStreamBeginCapture(gr_cuda_stream(d), cudaStreamCaptureModeThreadLocal) == cudaSuccess) g->work = RECORDED, g->of = r;
    else r->plain = true, (void)cudaGetLastError();
    return true;
}
