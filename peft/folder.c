/* The folder of a run: what is in it, whose it is, and its log. */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/output.h"
#include "core/io/h5.h"
#include "kernels/threads.h"
#include "peft/interrupt.h"
#include "peft/run.h"

/* ---- whose folder it is ---- */

/* What graft itself puts into a run's folder besides checkpoints and events: files, and folders written as one piece. run.log, the
 * lock, is emptied, never removed. */
static const char *const run_files[] = {"recipe.yaml", "metrics.jsonl", "trainer_state.json", "loss.svg"};
static const char *const run_pieces[] = {"adapter", "model"};

static bool has(const char *dir, const char *name) {
    char *path = gr_path_join(dir, name);
    bool exists = path && gr_exists(path);
    free(path);
    return exists;
}

/* A run of a graft that wrote no marks yet: a recipe as graft prints it, and the state that follows a checkpoint. */
static bool is_old_run(const char *dir) {
    char first[32] = "", *path = has(dir, "trainer_state.json") ? gr_path_join(dir, "recipe.yaml") : NULL;
    FILE *f = path ? fopen(path, "re") : NULL;
    if (f) first[fread(first, 1, sizeof first - 1, f)] = '\0';
    if (f) fclose(f);
    free(path);
    return gr_starts_with(first, "extends: null\nmodel:\n  base: ");
}

static bool is_run(const char *dir) { return gr_is_marked(dir, "run") || is_old_run(dir); }

/* True for names that a run writes, in its folder. */
static bool is_run_name(const char *name, size_t len) {
    static const char *const prefixes[] = {"checkpoint-", "events.out.tfevents."};
    for (int i = 0; i < GR_LEN(run_files); i++)
        if (strlen(run_files[i]) == len && strncmp(run_files[i], name, len) == 0) return true;
    for (int i = 0; i < GR_LEN(run_pieces); i++)
        if (strlen(run_pieces[i]) == len && strncmp(run_pieces[i], name, len) == 0) return true;
    for (int i = 0; i < GR_LEN(prefixes); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return len == 0 || strncmp(name, "run.log", len) == 0;
}

/* What the recipe reads must not be what the run writes: its folder, or one of its files. */
static graft_status check_input(const char *dir, const char *key, const char *input, graft_error *err) {
    char *real = input ? realpath(input, NULL) : NULL, *folder = realpath(dir, NULL);
    graft_status st = GRAFT_OK;
    if (real && folder && gr_path_within(real, folder)) {
        const char *name = real + strlen(folder);
        name += strspn(name, "/");
        if (is_run_name(name, strcspn(name, "/")))
            st = gr_fail(err, GRAFT_BAD_USAGE, "%s: a run in output_dir %s would replace its input %s: name another output_dir",
                         key, dir, input);
    }
    free(real);
    free(folder);
    return st;
}

static graft_status check_inputs(const gr_recipe *r, graft_error *err) {
    graft_status st;
    GR_TRY(check_input(r->_output_dir, "model.base", r->model_base, err));
    GR_TRY(check_input(r->_output_dir, "adapter.init_from", r->adapter_init_from, err));
    GR_TRY(check_input(r->_output_dir, "data.template", r->data_template, err));
    for (int i = 0; i < r->data_train.n; i++) GR_TRY(check_input(r->_output_dir, "data.train", r->data_train.items[i].path, err));
    for (int i = 0; i < r->data_eval.n; i++) GR_TRY(check_input(r->_output_dir, "data.eval", r->data_eval.items[i].path, err));
done:
    return st;
}

graft_status gr_folder_check(const gr_recipe *r, const gr_train_options *o, graft_error *err) {
    const char *dir = r->_output_dir;
    graft_status st = check_inputs(r, err);
    if (st != GRAFT_OK || !gr_exists(dir) || gr_is_empty_dir(dir)) return st;
    if (!gr_is_dir(dir)) return gr_fail(err, GRAFT_BAD_USAGE, "output_dir %s is a file: name a folder of the run's own", dir);
    if (!is_run(dir))
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "output_dir %s holds files and is no run of graft: nothing in it is touched; name a folder of "
                       "the run's own, such as %s%sruns/1",
                       dir, strcmp(dir, ".") == 0 ? "" : dir, strcmp(dir, ".") == 0 ? "" : "/");
    if (o->resume || o->overwrite) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "output_dir %s already holds a run: continue it with --resume, replace it with --overwrite, or name "
                   "another output_dir",
                   dir);
}

/* Each name of dir for which wanted answers true, to act. */
static void each_entry(const char *dir, bool (*wanted)(const char *name), void (*act)(const char *path)) {
    DIR *entries = opendir(dir);
    for (struct dirent *e; entries && (e = readdir(entries));) {
        char *path = wanted(e->d_name) ? gr_path_join(dir, e->d_name) : NULL;
        if (path) act(path);
        free(path);
    }
    if (entries) closedir(entries);
}

static bool is_events(const char *name) { return gr_starts_with(name, "events.out.tfevents."); }

/* "checkpoint-12.tmp-4711": what a killed process was writing; this one has the lock. */
static bool is_unfinished(const char *name) {
    const char *tmp = strstr(name, ".tmp-");
    return tmp && tmp[5] && strspn(tmp + 5, "0123456789") == strlen(tmp + 5) && is_run_name(name, (size_t)(tmp - name));
}

static bool is_rank_log(const char *name) { return gr_starts_with(name, "rank-"); }

static void remove_rank_logs(const char *dir) {
    char *ranks = gr_path_join(dir, "ranks");
    if (ranks) each_entry(ranks, is_rank_log, gr_remove_all);
    if (ranks) rmdir(ranks); /* where nothing else lies in it */
    free(ranks);
}

static void remove_run(const char *dir) {
    each_entry(dir, is_events, gr_remove_all);
    remove_rank_logs(dir);
    for (int i = 0; i < GR_LEN(run_files); i++) {
        char *path = gr_path_join(dir, run_files[i]);
        if (path && !gr_is_dir(path)) gr_remove_all(path);
        free(path);
    }
    for (int i = 0; i < GR_LEN(run_pieces); i++) {
        char *path = gr_path_join(dir, run_pieces[i]);
        if (path) gr_remove_piece(path);
        free(path);
    }
    gr_checkpoint_prune(dir, 0, -1);
}

/* ---- the mark and the logs ---- */

static void time_text(char out[32], int64_t t) {
    time_t when = (time_t)t;
    struct tm parts;
    if (!localtime_r(&when, &parts) || strftime(out, 32, "%Y-%m-%d %H:%M:%S %z", &parts) == 0) out[0] = '\0';
}

/* From the root on, so that it is found from everywhere. */
static void put_path(gr_str *out, const char *key, const char *path) {
    char *whole = gr_exists(path) ? gr_path_absolute(path) : NULL;
    gr_str_printf(out, "%s: %s\n", key, whole ? whole : path);
    free(whole);
}

/* The run's mark, which also tells what it is about: `graft inspect` shows it. */
static graft_status write_mark(const gr_run *run, const char *status, const char *error, graft_error *err) {
    const gr_recipe *r = run->r;
    char when[32];
    gr_str text = {0};
    char *path = gr_path_join(r->_output_dir, GR_MARK_FILE);
    gr_str_printf(&text, "graft %s run\nstatus: %s\n", GRAFT_VERSION, status);
    if (error) gr_str_printf(&text, "error: %s\n", error);
    put_path(&text, "base", r->model_base);
    for (int i = 0; i < r->data_train.n; i++) put_path(&text, "data", r->data_train.items[i].path);
    gr_str_printf(&text, "step: %lld of %lld\n", (long long)run->state.step, (long long)run->total_steps);
    if (run->state.best_step >= 0)
        gr_str_printf(&text, "best: step %lld, eval loss %.4f\n", (long long)run->state.best_step, run->state.best_eval_loss);
    time_text(when, run->started);
    gr_str_printf(&text, "started: %s\n", when);
    if (strcmp(status, "running") != 0) {
        time_text(when, (int64_t)time(NULL));
        gr_str_printf(&text, "ended: %s\n", when);
    }
    graft_status st = path && !text.failed ? gr_file_write(path, text.data, text.len, err) : gr_fail_memory(err, "run");
    gr_str_release(&text);
    free(path);
    return st;
}

bool gr_folder_logs(const gr_comm *comm) {
    const char *wanted = getenv("GRAFT_RANK_LOG");
    return gr_comm_rank(comm) == 0 || (wanted && strcmp(wanted, "1") == 0);
}

graft_status gr_folder_listen(gr_run *run, graft_error *err) {
    run->started = (int64_t)time(NULL);
    run->early = open_memstream(&run->early_text, &run->early_len);
    if (!run->early) return gr_fail_memory(err, "run.log");
    gr_log_tee(run->early);
    return GRAFT_OK;
}

/* The words of this process's command line, as a shell would take them. */
static void put_command(FILE *out) {
    char *text = NULL;
    int64_t len = 0;
    if (gr_file_read(&text, &len, "/proc/self/cmdline", 1 << 20, NULL) != GRAFT_OK) return;
    fputs("command:", out);
    for (const char *word = text; word < text + len; word += strlen(word) + 1) {
        bool plain = *word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,+@%")];
        fputs(plain ? " " : " '", out);
        for (const char *c = word; *c; c++) {
            if (*c == '\'') fputs("'\\''", out);
            else fputc(*c == '\n' ? ' ' : *c, out);
        }
        if (!plain) fputc('\'', out);
    }
    fputc('\n', out);
    free(text);
}

/* run.log is also the run's lock: one process trains into a folder. */
static graft_status open_log(gr_run *run, const char *dir, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *path = gr_path_join(dir, "run.log");
    if (!path) return gr_fail_memory(err, "run.log");
    FILE *log = fopen(path, "ae");
    if (!log) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "%s", path));
    if (flock(fileno(log), LOCK_EX | LOCK_NB) != 0) {
        fclose(log);
        GR_TRY(gr_fail(err, GRAFT_FAILED, "%s is in use: another graft trains into this folder", path));
    }
    run->log = log;
done:
    free(path);
    return st;
}

/* That of another rank than 0. */
static graft_status open_rank_log(gr_run *run, bool resumes, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *folder = gr_path_join(run->r->_output_dir, "ranks");
    char *path = folder ? gr_format("%s/rank-%d.log", folder, gr_comm_rank(run->comm)) : NULL;
    if (!path) GR_TRY(gr_fail_memory(err, "logs of ranks"));
    GR_TRY(gr_make_dirs(folder, err));
    if (!(run->log = fopen(path, resumes ? "ae" : "we"))) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "%s", path));
done:
    free(folder);
    free(path);
    return st;
}

/* The head of this process's part of the log, and what was said before the log was there. */
static void begin_log(gr_run *run) {
    char when[32];
    time_text(when, run->started);
    fprintf(run->log, "graft %s, started %s\n", GRAFT_VERSION, when);
    put_command(run->log);
    const gr_machine *machine = &run->session.machine;
    const char *more = machine->device->about ? machine->device->about : machine->no_card;
    fprintf(run->log, "machine: %s, %d threads%s%s%s\n", machine->device->level, gr_threads_count(machine->threads),
            more ? machine->device->about ? " (" : " (no card: " : "", more ? more : "", more ? ")" : "");
    if (run->comm)
        fprintf(run->log, "ranks: %d, %d of them on this host; this is rank %d\n", gr_comm_size(run->comm),
                gr_comm_host_size(run->comm), gr_comm_rank(run->comm));
    gr_log_tee(NULL);
    fclose(run->early);
    run->early = NULL;
    fputs(run->early_text, run->log);
    fflush(run->log);
    gr_log_tee(run->log);
}

/* ---- opening ---- */

static graft_status write_recipe(gr_run *run, graft_error *err) {
    char *path = gr_path_join(run->r->_output_dir, "recipe.yaml");
    graft_status st =
        path ? gr_file_write(path, run->recipe_text, (int64_t)strlen(run->recipe_text), err) : gr_fail_memory(err, "recipe");
    free(path);
    return st;
}

/* Is there a folder under output_dir's name, and is it this run's? */
static bool is_there(const gr_run *run, bool *ours) {
    struct stat info;
    const bool there = stat(run->r->_output_dir, &info) == 0;
    *ours = there && info.st_dev == run->folder_device && info.st_ino == run->folder_inode;
    return there;
}

/* From now on output_dir is this run's. */
static graft_status know_folder(gr_run *run, graft_error *err) {
    struct stat info;
    if (stat(run->r->_output_dir, &info) != 0) return gr_fail_errno(err, GRAFT_FAILED, "%s", run->r->_output_dir);
    run->folder_device = info.st_dev, run->folder_inode = info.st_ino;
    return GRAFT_OK;
}

graft_status gr_folder_hold(gr_run *run, bool *anew, graft_error *err) {
    const char *dir = run->r->_output_dir;
    graft_status st;
    FILE *before = run->log;
    bool ours;
    const bool there = is_there(run, &ours);
    *anew = !ours;
    if (ours) return GRAFT_OK;
    if (there && !gr_is_empty_dir(dir))
        return gr_fail(err, GRAFT_FAILED,
                       "output_dir %s is another folder than the one that this run began in, which was moved away: nothing is "
                       "written there",
                       dir);
    GR_TRY(gr_make_dirs(dir, err));
    GR_TRY(know_folder(run, err));
    GR_TRY(open_log(run, dir, err));
    gr_log_tee(run->log);
    fclose(before);
    gr_metrics_close(run->metrics);
    run->metrics = NULL;
    gr_warn("output_dir %s was removed or moved away: it is made anew, and has what is saved, measured and logged from here on",
            dir);
    GR_TRY(write_mark(run, "running", NULL, err));
    GR_TRY(write_recipe(run, err));
    GR_TRY(gr_metrics_open(&run->metrics, dir, run->r->log_tensorboard, run->r->log_plot, -1, err));
done:
    return st;
}

/* The folder becomes this run's; *last: the checkpoint to go on from, where there is one. */
static graft_status take(gr_run *run, const gr_train_options *o, gr_checkpoint *last, graft_error *err) {
    const char *dir = run->r->_output_dir;
    graft_status st;
    GR_TRY(gr_make_dirs(dir, err));
    GR_TRY(know_folder(run, err));
    GR_TRY(gr_folder_check(run->r, o, err)); /* once more: the set-up took its time */
    GR_TRY(open_log(run, dir, err));
    each_entry(dir, is_unfinished, gr_remove_all);
    if (o->overwrite) remove_run(dir);
    if (o->resume) GR_TRY(gr_checkpoint_open_last(last, dir, false, err));
    if (!last->folder && ftruncate(fileno(run->log), 0) != 0) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "%s/run.log", dir));
    begin_log(run);
    if (!last->folder) GR_TRY(write_mark(run, "running", NULL, err)); /* whatever happens next, the folder is a run's */
done:
    return st;
}

/* What rank 0 goes on from, all do: a host may see another folder under the name of output_dir. */
static graft_status check_same(const gr_run *run, graft_error *err) {
    struct {
        int64_t step;
        gr_h5_seal seal; /* of all that was read, but for the frozen base */
    } mine = {.step = run->state.step}, first;
    if (!run->comm) return GRAFT_OK;
    if (run->last.h5) mine.seal = gr_h5_seal_of(run->last.h5);
    first = mine;
    graft_status st = gr_comm_broadcast(run->comm, "the checkpoint", &first, sizeof first, err);
    if (st != GRAFT_OK || (mine.step == first.step && memcmp(&mine.seal, &first.seal, sizeof mine.seal) == 0)) return st;
    if (mine.step != first.step)
        return gr_fail(err, GRAFT_FAILED,
                       "output_dir %s: rank 0 goes on from step %lld, here it is %lld: all ranks must see one folder",
                       run->r->_output_dir, (long long)first.step, (long long)mine.step);
    return gr_fail(err, GRAFT_FAILED,
                   "output_dir %s: its checkpoint of step %lld is not the one of rank 0: all ranks must see one folder",
                   run->r->_output_dir, (long long)mine.step);
}

graft_status gr_folder_open(gr_run *run, const gr_train_options *o, graft_error *err) {
    const char *dir = run->r->_output_dir;
    gr_checkpoint *last = &run->last;
    gr_str text = {0};
    graft_status st;
    GR_TRY(gr_recipe_print_absolute(run->r, &text, err));
    if (!(run->recipe_text = gr_str_take(&text))) GR_TRY(gr_fail_memory(err, "recipe"));
    run->identity.recipe = run->recipe_text;
    run->state.best_eval_loss = run->state.final_loss = run->last_eval_loss = NAN;
    run->state.best_step = -1;
    const bool writes = gr_comm_rank(run->comm) == 0;
    if (writes) st = take(run, o, last, err);
    GR_TRY(gr_comm_await(run->comm, "the folder", st, err));
    if (!writes && run->early) {
        GR_TRY(open_rank_log(run, o->resume, err));
        begin_log(run);
    }
    if (!writes && o->resume) GR_TRY(gr_checkpoint_open_last(last, dir, false, err)); /* the same that rank 0 has found */
    if (last->folder) {
        GR_TRY(gr_checkpoint_read(last, &run->params, &run->state, gr_resume_check, run, err));
        gr_model_renew(run->session.model);
        gr_note("resuming from %s, step %lld of %lld", last->folder, (long long)run->state.step, (long long)run->total_steps);
        if (run->state.step == run->total_steps) gr_resume_tell_complete(run);
        gr_last_checkpoint_set(last->folder);
        if (writes) GR_TRY(write_mark(run, "running", NULL, err));
    } else if (o->resume) {
        gr_note("%s holds no checkpoint: starting from the beginning", dir);
    }
    GR_TRY(check_same(run, err));
    if (!writes) goto done;
    GR_TRY(write_recipe(run, err));
    GR_TRY(
        gr_metrics_open(&run->metrics, dir, run->r->log_tensorboard, run->r->log_plot, last->folder ? run->state.step : -1, err));
done:
    gr_checkpoint_close(last);
    gr_str_release(&text);
    return st;
}

/* ---- the end ---- */

graft_status gr_run_facts_save(gr_run *run, graft_error *err) {
    /* The best adapter is always exported; a checkpoint of it is there when one was due. */
    char *checkpoint =
        run->state.best_step >= 0 && run->adapter ? gr_checkpoint_folder(run->r->_output_dir, run->state.best_step) : NULL;
    char *adapter = checkpoint && !gr_exists(checkpoint) && run->r->save_best ? gr_path_join(run->r->_output_dir, "adapter") : NULL;
    gr_run_facts facts = {.max_steps = run->total_steps,
                          .save_steps = run->save_every,
                          .eval_steps = run->eval_every,
                          .logging_steps = run->log_every,
                          .train_batch_size = run->r->train_batch_size,
                          .num_train_epochs = run->r->train_num_train_epochs,
                          .best_metric = run->state.best_eval_loss,
                          .best_step = run->state.best_step,
                          .best_folder = adapter,
                          .global_step = run->state.step,
                          .epoch = (double)run->state.step / (double)GR_MAX(run->steps_per_epoch, 1)};
    graft_status st = gr_metrics_save(run->metrics, &facts, err);
    free(checkpoint);
    free(adapter);
    return st;
}

void gr_folder_end(gr_run *run, graft_status status, const graft_error *err) {
    const char *how = status == GRAFT_OK ? "finished" : status == GRAFT_INTERRUPTED ? "interrupted" : "failed";
    const char *why = status != GRAFT_OK && err ? err->msg : NULL;
    char when[32];
    gr_log_tee(NULL);
    if (run->early) fclose(run->early); /* it did not come to its log */
    free(run->early_text);
    if (!run->log) return;
    bool ours;
    if (is_there(run, &ours) && ours && run->metrics) write_mark(run, how, why, NULL); /* the run's own error is the one to tell */
    time_text(when, (int64_t)time(NULL));
    fprintf(run->log, "%s %s", how, when);
    if (status != GRAFT_INTERRUPTED)
        fprintf(run->log, " at step %lld of %lld", (long long)run->state.step, (long long)run->total_steps);
    fprintf(run->log, "%s%s\n", why ? ": " : "", why ? why : "");
    fclose(run->log);
}
