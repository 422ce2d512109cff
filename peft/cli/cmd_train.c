/* graft train, graft plan, graft validate */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "peft/cli/commands.h"
#include "peft/interrupt.h"

/* Of several ranks one tells, and of the first signal the run itself does: mpirun sends it also when a rank is lost. */
static volatile sig_atomic_t several, mute;

/* To stderr, with what a signal handler may call. */
static void say(const char *text) {
    size_t n = mute ? 0 : strlen(text);
    while (n > 0) {
        ssize_t done = write(STDERR_FILENO, text, n);
        if (done <= 0) return;
        text += done;
        n -= (size_t)done;
    }
}

/* The first signal lets the step be finished and saved, a second one ends the program at once. */
static void on_signal(int signal_number) {
    static const char *const doing[] = {[GR_PHASE_IDLE] = "leaving",
                                        [GR_PHASE_SETUP] = "leaving before the first step",
                                        [GR_PHASE_STEPS] = "the step is being finished and saved",
                                        [GR_PHASE_RESULT] = "the result is being written"};
    static volatile sig_atomic_t seen;
    int saved_errno = errno;
    const char *checkpoint = gr_last_checkpoint();
    (void)signal_number;
    if (seen) {
        say("\ngraft: interrupted: left at once; ");
        say(checkpoint ? "the last checkpoint is " : "no checkpoint was saved");
        say(checkpoint ? checkpoint : "");
        say(checkpoint ? ": continue with --resume\n" : "\n");
        _exit(130);
    }
    seen = 1;
    if (!several) {
        say("\ngraft: ");
        say(doing[gr_phase_get()]);
        say(" (a second time: leave at once)\n");
    }
    gr_interrupt();
    errno = saved_errno;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL); /* mpirun passes it on, and batch systems send it before the time is up */
    sigaction(SIGUSR2, &action, NULL);
    sigaction(SIGXCPU, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* whoever read the progress is gone: the run goes on */
    struct sigaction hangup;  /* a connection that is gone; of nohup it is ignored */
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, NULL);
}

static void set_number(json_t *object, const char *key, double v) {
    json_object_set_new(object, key, isfinite(v) ? json_real(v) : json_null());
}

static void put_facts(json_t *out, const gr_plan_facts *f) {
    const gr_memory *m = &f->memory;
    json_t *memory =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "program", (json_int_t)m->program, "data", (json_int_t)m->data,
                  "base", (json_int_t)m->base, "made", (json_int_t)m->made, "trained", (json_int_t)m->trained, "exchange",
                  (json_int_t)m->exchange, "threads", (json_int_t)m->threads, "scratch", (json_int_t)m->scratch, "evaluation",
                  (json_int_t)m->evaluation, "result", (json_int_t)m->result, "total", (json_int_t)m->total);
    json_t *disk =
        json_pack("{s:I,s:I,s:I,s:I,s:I}", "checkpoint", (json_int_t)f->checkpoint_bytes, "result", (json_int_t)f->result_bytes,
                  "cache", (json_int_t)f->cache_bytes, "total", (json_int_t)f->disk_bytes, "free", (json_int_t)f->disk_free);
    json_object_set_new(out, "memory", memory);
    if (f->memory.host > 0) json_object_set_new(out, "memory_host", json_integer(f->memory.host));
    if (f->share_of_peak > 0) json_object_set_new(out, "assumed_share_of_peak", json_real(f->share_of_peak));
    json_object_set_new(out, "memory_limit", json_integer(f->limit));
    json_object_set_new(out, "memory_available", json_integer(f->available));
    json_object_set_new(out, "fits", json_boolean(f->fits));
    json_object_set_new(out, "tokens_per_step", json_integer(f->tokens_per_step));
    set_number(out, "seconds_per_step", f->step_seconds);
    set_number(out, "seconds_per_evaluation", f->evaluation_seconds);
    set_number(out, "seconds", f->run_seconds);
    set_number(out, "seconds_per_epoch", f->epoch_seconds);
    json_object_set_new(out, "ranks", json_integer(f->ranks));
    json_object_set_new(out, "sharding", json_string(f->sharding));
    json_object_set_new(out, "bytes_sent_per_step", json_integer(f->sent_bytes));
    json_object_set_new(out, "disk", disk);
}

static void print_json(const gr_recipe *r, const gr_train_options *o, const gr_train_result *result) {
    json_t *out = json_pack("{s:b,s:I,s:I,s:s?}", "dry_run", (int)o->dry_run, "steps", (json_int_t)result->steps,
                            "trainable_parameters", (json_int_t)result->n_trainable, "output_dir", r->_output_dir);
    if (o->dry_run) {
        json_object_set_new(out, "state_bytes", json_integer(result->state_bytes));
        json_object_set_new(out, "scratch_bytes", json_integer(result->scratch_bytes));
        json_object_set_new(out, "base_bytes", json_integer(result->base_bytes));
        put_facts(out, o->facts);
    } else {
        set_number(out, "loss", result->final_loss);
        set_number(out, "eval_loss", result->final_eval_loss);
        set_number(out, "best_eval_loss", result->best_eval_loss);
        set_number(out, "seconds", result->seconds);
        set_number(out, "tokens_per_second", result->tokens_per_second);
    }
    json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(out);
}

static void print_result(const gr_recipe *r, const gr_train_result *result) {
    char text[32];
    printf("trainable parameters  %s\n", gr_thousands(result->n_trainable, text));
    printf("steps                 %s\n", gr_thousands(result->steps, text));
    printf("final loss            %.4f\n", result->final_loss);
    if (isfinite(result->final_eval_loss))
        printf("eval loss             %.4f (best %.4f)\n", result->final_eval_loss, result->best_eval_loss);
    printf("time                  %.1f s, %.0f tokens/s\n", result->seconds, result->tokens_per_second);
    printf("output                %s\n", r->_output_dir);
}

/* MPI's own start waits without end for a rank that does not come. */
static void on_late(int signal_number) {
    (void)signal_number;
    say("graft: error: the ranks have not come together by the deadline (GRAFT_RANK_DEADLINE): one of them is not there, or stands "
        "still\n");
    _exit(1);
}

/* Joins the ranks that this process is one of; what is wrong with a setting, one of them tells. */
static graft_status join_ranks(gr_comm **comm, graft_error *err) {
    double deadline;
    graft_error wrong = {0};
    graft_status set = gr_comm_deadline(&deadline, &wrong);
    signal(SIGALRM, on_late);
    alarm((unsigned)GR_MIN(deadline + 1, 1e9));
    graft_status st = gr_comm_open(comm, deadline, err);
    alarm(0);
    if (st != GRAFT_OK) return st;
    several = *comm != NULL;
    mute = gr_comm_rank(*comm) > 0;
    gr_log_to_tee(mute);
    if (set != GRAFT_OK) *err = wrong;
    return gr_comm_agree(*comm, "the settings", set, NULL, err);
}

static graft_status load_recipe(const gr_args *a, bool dry_run, gr_recipe **r, graft_error *err) {
    graft_status st = gr_args_recipe(a, a->arguments[0], 1, r, err);
    return st == GRAFT_OK ? gr_recipe_require(*r, dry_run, err) : st;
}

static graft_status run(const gr_args *a, gr_train_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    gr_str report = {0}; /* the plan of a dry run */
    gr_train_result result;
    gr_plan_facts facts = {0};
    o->report = &report;
    o->facts = &facts;
    if (o->dry_run) { /* of all ranks, by the first */
        int rank;
        const int ranks = gr_comm_started(&rank);
        if (rank > 0) return GRAFT_OK;
        if (o->ranks == 0) o->ranks = ranks;
    } else GR_TRY(join_ranks(&o->comm, err));
    GR_TRY(gr_comm_agree(o->comm, "the recipe", load_recipe(a, o->dry_run, &r, err), NULL, err));
    catch_signals();
    st = gr_train(r, o, &result, err);
    if (st == GRAFT_OK) { /* one that is lost now is still named */
        st = gr_comm_agree(o->comm, "the end", st, NULL, err);
        gr_comm_leave(o->comm, st, err);
    }
    if (st != GRAFT_OK && !report.data) goto done; /* a plan is told also where it is refused */
    if (gr_comm_rank(o->comm) > 0) goto done;
    if (gr_args_has(a, "json")) print_json(r, o, &result);
    else if (o->dry_run && report.data) fputs(report.data, stdout);
    else if (!o->dry_run) print_result(r, &result);
done:
    if (st != GRAFT_OK && !gr_comm_speaks(o->comm)) {
        err->msg[0] = '\0';
        signal(SIGTERM, SIG_DFL);
    }
    gr_comm_close(o->comm);
    gr_str_release(&report);
    gr_recipe_free(r);
    return st;
}

graft_status gr_cmd_train(const gr_args *a, graft_error *err) {
    gr_train_options o = {
        .resume = gr_args_has(a, "resume"), .overwrite = gr_args_has(a, "overwrite"), .dry_run = gr_args_has(a, "dry-run")};
    if (o.resume && o.overwrite) return gr_fail(err, GRAFT_BAD_USAGE, "--resume and --overwrite exclude each other");
    return run(a, &o, err);
}

enum { MOST_RANKS = 4096 };

graft_status gr_cmd_plan(const gr_args *a, graft_error *err) {
    gr_train_options o = {.dry_run = true, .calibrate = true};
    graft_status st = gr_args_int(a, "ranks", 1, 0, &o.ranks, err);
    if (st == GRAFT_OK) st = gr_args_int(a, "samples", 1, 0, &o.samples, err);
    if (st == GRAFT_OK) st = gr_args_int(a, "mean-tokens", 1, 0, &o.mean_tokens, err);
    if (st != GRAFT_OK) return st;
    o.device = gr_args_text(a, "device", NULL);
    if (o.device && !gr_device_is_name(o.device) && !gr_planned_is_name(o.device))
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "--device %.40s: expected cpu, cuda, cuda:N, or a card to plan for: a100-40gb, a100-80gb, h100, h200",
                       o.device);
    if (o.mean_tokens > 0 && o.samples == 0) return gr_fail(err, GRAFT_BAD_USAGE, "--mean-tokens goes with --samples N");
    if (o.ranks > MOST_RANKS) return gr_fail(err, GRAFT_BAD_USAGE, "--ranks %lld: at most %d", (long long)o.ranks, MOST_RANKS);
    return run(a, &o, err);
}

static void print_problems_json(const char *recipe, const gr_problems *p) {
    json_t *out = json_pack("{s:b,s:s,s:[],s:[]}", "valid", 0, "recipe", recipe, "errors", "missing");
    for (int64_t i = 0; i < p->n; i++) {
        const struct gr_problem *one = &p->items[i];
        json_t *entry = json_pack("{s:s}", "message", one->text);
        if (one->line > 0) {
            json_object_set_new(entry, "line", json_integer(one->line));
            json_object_set_new(entry, "column", json_integer(one->column));
        }
        json_array_append_new(json_object_get(out, one->missing ? "missing" : "errors"), entry);
    }
    json_dumpf(out, stdout, 0);
    putchar('\n');
    json_decref(out);
}

/* A single problem is the error; several are listed before it, what is wrong first, then what is not there. */
static graft_status tell_problems(const gr_args *a, const gr_problems *p, graft_error *err) {
    int64_t missing = 0;
    char counts[64] = "";
    for (int64_t i = 0; i < p->n; i++) missing += p->items[i].missing;
    int64_t wrong = p->n - missing;
    graft_status status = wrong > 0 ? GRAFT_BAD_USAGE : GRAFT_BAD_INPUT;
    const char *hint = missing > 0 ? "; --no-files does not look for files" : "";
    if (gr_args_has(a, "json")) print_problems_json(a->arguments[0], p);
    if (p->n == 1) return gr_fail(err, status, "%s%s", p->items[0].text, hint);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < p->n; i++)
            if (p->items[i].missing == (pass == 1)) fprintf(stderr, "%s\n", p->items[i].text);
    if (wrong > 0) snprintf(counts, sizeof counts, "%lld wrong%s", (long long)wrong, missing > 0 ? ", " : "");
    size_t at = strlen(counts);
    if (missing > 0) snprintf(counts + at, sizeof counts - at, "%lld not there", (long long)missing);
    return gr_fail(err, status, "%s: %s (see above)%s", a->arguments[0], counts, hint);
}

graft_status gr_cmd_validate(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    gr_problems problems = {0};
    gr_str text = {0};
    gr_examine_options o = {.files = !gr_args_has(a, "no-files"), .complete = true};
    GR_TRY(gr_args_examine(a, a->arguments[0], 1, &o, &r, &problems, err));
    if (problems.n > 0) GR_TRY(tell_problems(a, &problems, err));
    if (gr_args_has(a, "print")) {
        GR_TRY(gr_recipe_print(r, &text, err));
        fputs(text.data, stdout);
    } else if (gr_args_has(a, "json")) {
        json_t *out =
            json_pack("{s:b,s:s,s:s,s:s}", "valid", 1, "recipe", r->path, "base", r->model_base, "output_dir", r->_output_dir);
        json_dumpf(out, stdout, 0);
        putchar('\n');
        json_decref(out);
    } else {
        printf("%s: valid\n", r->path);
    }
done:
    gr_str_release(&text);
    gr_problems_release(&problems);
    gr_recipe_free(r);
    return st;
}
