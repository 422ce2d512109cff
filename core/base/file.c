#include "core/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/output.h"
#include "core/base/sniff.h"

/* ---- reading ---- */

graft_status gr_map_open(gr_map *map, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is refused below, not waited for */
    if (fd < 0) return gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    if (fstat(fd, &info) != 0) {
        st = gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    } else if (!S_ISREG(info.st_mode)) {
        const char *what = S_ISDIR(info.st_mode) ? "a folder" : "not a regular file";
        st = gr_fail(err, GRAFT_BAD_INPUT, "cannot read %s: it is %s, expected a file", path, what);
    } else if (info.st_size == 0) {
        *map = (gr_map){0};
    } else {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) st = gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot map %s", path);
        else *map = (gr_map){.data = data, .size = info.st_size};
    }
    close(fd);
    return st;
}

void gr_map_close(gr_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    *map = (gr_map){0};
}

void gr_map_drop(const void *data, int64_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED); /* advice: a refusal costs memory alone */
}

graft_status gr_stream_read(char **text, int64_t *len, FILE *f, const char *path, int64_t max_bytes, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *data = NULL;
    int64_t n = 0, capacity = 0;
    for (;;) {
        if (!gr_grow(&data, &capacity, n + 16384, 1)) GR_TRY(gr_fail_memory(err, path));
        size_t got = fread(data + n, 1, (size_t)(capacity - n - 1), f);
        n += (int64_t)got;
        if (n > max_bytes)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: longer than %lld bytes, not the file expected here", path,
                           (long long)max_bytes));
        if (got == 0) break;
    }
    if (ferror(f)) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path));
    data[n] = '\0';
    *text = data;
    *len = n;
    data = NULL;
done:
    free(data);
    return st;
}

graft_status gr_file_read_raw(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err) {
    FILE *f = fopen(path, "re");
    if (!f) return gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    graft_status st = gr_stream_read(text, len, f, path, max_bytes, err);
    fclose(f);
    return st;
}

graft_status gr_file_read(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err) {
    char *bytes;
    int64_t n;
    graft_status st = gr_file_read_raw(&bytes, &n, path, max_bytes, err);
    if (st != GRAFT_OK) return st;
    st = gr_expect_kind(bytes, n, GR_KIND_UNKNOWN, NULL, path, err);
    if (st != GRAFT_OK) return free(bytes), st;
    *text = bytes;
    *len = n;
    return GRAFT_OK;
}

graft_status gr_file_read_json(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err) {
    static const char mark[] = "\xEF\xBB\xBF";
    graft_status st = gr_file_read(text, len, path, max_bytes, err);
    if (st != GRAFT_OK || !gr_starts_with(*text, mark)) return st;
    *len -= (int64_t)strlen(mark);
    memmove(*text, *text + strlen(mark), (size_t)*len + 1);
    return GRAFT_OK;
}

/* ---- what is unfinished ---- */

typedef struct unfinished {
    struct unfinished *next;
    char *path;
} unfinished;
static unfinished *all_unfinished;
static pthread_mutex_t unfinished_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void gr_unfinished_hold(void) { pthread_mutex_lock(&unfinished_lock); }
void gr_unfinished_release(void) { pthread_mutex_unlock(&unfinished_lock); }

void gr_unfinished_add(const char *path) {
    unfinished *one = gr_calloc(1, sizeof *one);
    if (one && (one->path = gr_strdup(path))) {
        gr_unfinished_hold();
        one->next = all_unfinished;
        all_unfinished = one;
        gr_unfinished_release();
    } else free(one); /* then nobody removes it */
}

void gr_unfinished_drop(const char *path) {
    gr_unfinished_hold();
    for (unfinished **at = &all_unfinished; *at; at = &(*at)->next)
        if (strcmp((*at)->path, path) == 0) {
            unfinished *one = *at;
            *at = one->next;
            free(one->path);
            free(one);
            break;
        }
    gr_unfinished_release();
}

/* ---- writing a file ---- */

/* The folder that holds path, owned: "." for a bare name. */
static char *parent_dir(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return gr_strdup(".");
    return gr_strndup(path, slash == path ? 1 : slash - path);
}

/* Make a rename inside path's folder durable. Some file systems cannot sync a folder; that is no failure. */
static void sync_parent(const char *path) {
    char *dir = parent_dir(path);
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(dir);
}

graft_status gr_rename(const char *tmp, const char *path, graft_error *err) {
    gr_unfinished_hold();
    graft_status st = rename(tmp, path) == 0 ? GRAFT_OK : gr_fail_errno(err, GRAFT_FAILED, "writing %s", path);
    if (st == GRAFT_OK) gr_unfinished_drop(tmp);
    gr_unfinished_release();
    if (st == GRAFT_OK) sync_parent(path);
    return st;
}

static char *temporary_name(const char *path) { return gr_format("%s.tmp-%ld", path, (long)getpid()); }

/* The descriptor that path names among the process's own, -1 for any other path. */
static int own_stream(const char *path) {
    static const char *const numbered[] = {"/dev/fd/", "/proc/self/fd/"};
    if (strcmp(path, "/dev/stdout") == 0) return STDOUT_FILENO;
    if (strcmp(path, "/dev/stderr") == 0) return STDERR_FILENO;
    for (int i = 0; i < GR_LEN(numbered); i++) {
        const char *digits = path + strlen(numbered[i]);
        if (gr_starts_with(path, numbered[i]) && *digits && strlen(digits) < 7 && !digits[strspn(digits, "0123456789")])
            return atoi(digits);
    }
    return -1;
}

/* A stream of the process's own is shared, its place in a file too: opened anew, it would write over what comes after. */
static FILE *open_device(const char *path) {
    int own = own_stream(path);
    if (own < 0) return fopen(path, "ae");
    if (own == STDOUT_FILENO) fflush(stdout);
    int fd = fcntl(own, F_DUPFD_CLOEXEC, 0);
    FILE *stream = fd < 0 ? NULL : fdopen(fd, "w");
    if (fd >= 0 && !stream) close(fd);
    return stream;
}

graft_status gr_writer_open(gr_writer *w, const char *path, graft_error *err) {
    bool device = gr_is_device(path);
    *w = (gr_writer){.path = gr_strdup(path), .tmp_path = device ? NULL : temporary_name(path)};
    if (!w->path || (!device && !w->tmp_path)) {
        gr_writer_abort(w);
        return gr_fail_memory(err, path);
    }
    if (device) {
        w->stream = open_device(path);
    } else {
        unlink(w->tmp_path); /* left by a killed process of the same id; O_EXCL follows no planted link */
        gr_unfinished_hold();
        gr_unfinished_add(w->tmp_path);
        int fd = open(w->tmp_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        gr_unfinished_release();
        w->stream = fd < 0 ? NULL : fdopen(fd, "w");
        if (fd >= 0 && !w->stream) close(fd);
    }
    if (w->stream) return GRAFT_OK;
    graft_status st = gr_fail_errno(err, GRAFT_FAILED, "writing %s", path);
    gr_writer_abort(w);
    return st;
}

/* Everything on the disk, or errno says why not. */
static bool flush_to_disk(gr_writer *w) {
    if (fflush(w->stream) != 0) return false;
    if (ferror(w->stream)) {
        /* An earlier write failed and its errno is gone; the same disk gives the same answer again. */
        if (write(fileno(w->stream), "", 1) == 1) errno = EIO;
        return false;
    }
    return !w->tmp_path || fsync(fileno(w->stream)) == 0;
}

graft_status gr_writer_commit(gr_writer *w, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (!flush_to_disk(w)) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "writing %s", w->path));
    FILE *stream = w->stream;
    w->stream = NULL;
    if (fclose(stream) != 0) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "writing %s", w->path));
    if (w->tmp_path) {
        GR_TRY(gr_rename(w->tmp_path, w->path, err));
        free(w->tmp_path);
        w->tmp_path = NULL;
    }
done:
    gr_writer_abort(w);
    return st;
}

void gr_writer_abort(gr_writer *w) {
    if (w->stream) fclose(w->stream);
    if (w->tmp_path) {
        unlink(w->tmp_path);
        gr_unfinished_drop(w->tmp_path);
    }
    free(w->tmp_path);
    free(w->path);
    *w = (gr_writer){0};
}

graft_status gr_file_write(const char *path, const void *data, int64_t len, graft_error *err) {
    gr_writer w;
    graft_status st = gr_writer_open(&w, path, err);
    if (st != GRAFT_OK) return st;
    if (len > 0) fwrite(data, 1, (size_t)len, w.stream); /* an error sticks to the stream */
    return gr_writer_commit(&w, err);
}

graft_status gr_file_copy(const char *from, const char *to, graft_error *err) {
    enum { CHUNK = 1 << 18 };
    graft_status st = GRAFT_OK;
    gr_writer w = {0};
    FILE *in = NULL;
    char *buffer = gr_calloc(CHUNK, 1);
    if (!buffer) GR_TRY(gr_fail_memory(err, from));
    in = fopen(from, "re");
    if (!in) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", from));
    GR_TRY(gr_writer_open(&w, to, err));
    for (size_t n; (n = fread(buffer, 1, CHUNK, in)) > 0;)
        if (fwrite(buffer, 1, n, w.stream) != n) break;
    if (ferror(in)) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", from));
    GR_TRY(gr_writer_commit(&w, err));
done:
    gr_writer_abort(&w);
    if (in) fclose(in);
    free(buffer);
    return st;
}

/* ---- folders ---- */

/* path without slashes at its end, owned. */
static char *trimmed(const char *path) {
    int64_t n = (int64_t)strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return gr_strndup(path, n);
}

bool gr_is_empty_dir(const char *path) {
    DIR *d = opendir(path);
    if (!d) return false;
    int n = 0;
    for (struct dirent *e; n == 0 && (e = readdir(d));) n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n == 0;
}

static graft_status check_free(const char *path, bool replace, graft_error *err) {
    struct stat info;
    if (replace || lstat(path, &info) != 0 || gr_is_empty_dir(path)) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "%s exists already and is not an empty folder; name another one or ask for it to be replaced", path);
}

graft_status gr_dir_begin(char **tmp, const char *path, bool replace, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *target = trimmed(path), *parent = NULL, *name = NULL;
    if (!target || !(parent = parent_dir(target)) || !(name = temporary_name(target))) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_refuse_device(target, err));
    GR_TRY(check_free(target, replace, err));
    GR_TRY(gr_make_dirs(parent, err));
    gr_remove_all(name);
    gr_unfinished_hold();
    if (mkdir(name, 0777) == 0) gr_unfinished_add(name);
    else st = gr_fail_errno(err, GRAFT_FAILED, "making folder %s", name);
    gr_unfinished_release();
    if (st != GRAFT_OK) goto done;
    *tmp = name;
    name = NULL;
done:
    free(target);
    free(parent);
    free(name);
    return st;
}

static int sync_entry(const char *path, const struct stat *info, int flag, struct FTW *ftw) {
    (void)info, (void)ftw;
    if (flag != FTW_F && flag != FTW_DP) return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int rc = fsync(fd) != 0 && errno != EINVAL ? -1 : 0;
    int saved = errno;
    close(fd);
    errno = saved;
    return rc;
}

/* What graft replaced lies in old: what it did not write there itself goes on to path. */
static void leave(const char *old, const char *path) {
    gr_carry_strangers(old, path);
    gr_remove_all(old);
}

/* Put tmp in path's place; what was there, if anything, ends under tmp's name and is removed. */
static bool swap_in(const char *tmp, const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0 || gr_is_empty_dir(path)) return rename(tmp, path) == 0;
    if (renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RENAME_EXCHANGE) != 0) {
        /* A file system without exchange: two renames, the old content put back when the second fails. */
        char *old = gr_format("%s.old", tmp);
        bool ok = old && rename(path, old) == 0;
        if (ok && rename(tmp, path) != 0) {
            int saved = errno;
            rename(old, path);
            errno = saved;
            ok = false;
        }
        if (ok) leave(old, path);
        free(old);
        return ok;
    }
    leave(tmp, path);
    return true;
}

graft_status gr_dir_commit(const char *tmp, const char *path, bool replace, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *target = trimmed(path);
    if (!target) return gr_fail_memory(err, path);
    GR_TRY(check_free(target, replace, err));
    GR_TRY(gr_mark_folder(tmp, err));
    if (nftw(tmp, sync_entry, 32, FTW_DEPTH | FTW_PHYS) != 0) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "writing %s", target));
    gr_unfinished_hold();
    gr_unfinished_drop(tmp); /* before what was in path, a stranger's files too, stands under this name */
    if (!swap_in(tmp, target)) st = gr_fail_errno(err, GRAFT_FAILED, "writing %s", target);
    gr_unfinished_release();
    if (st == GRAFT_OK) sync_parent(target);
done:
    free(target);
    return st;
}

static int remove_entry(const char *path, const struct stat *info, int flag, struct FTW *ftw) {
    (void)info, (void)flag, (void)ftw;
    remove(path);
    return 0; /* go on: what can be removed, is */
}

static void remove_all(const char *path) { nftw(path, remove_entry, 32, FTW_DEPTH | FTW_PHYS); }

void gr_remove_all(const char *path) {
    remove_all(path);
    gr_unfinished_drop(path);
}

int gr_unfinished_remove(void) {
    int n = 0;
    gr_unfinished_hold(); /* and never released */
    for (unfinished *one = all_unfinished; one; one = one->next, n++) remove_all(one->path);
    return n;
}

graft_status gr_make_dirs(const char *path, graft_error *err) {
    char *p = gr_strdup(path);
    if (!p) return gr_fail_memory(err, path);
    for (char *c = p + 1; *p && *c; c++) {
        if (*c != '/') continue;
        *c = '\0';
        mkdir(p, 0777); /* a parent that cannot be made shows in the last step */
        *c = '/';
    }
    graft_status st = GRAFT_OK;
    const bool made = mkdir(p, 0777) == 0;
    const int why = errno; /* which a look at the folder changes */
    if (!made && !gr_is_dir(p)) {
        errno = why;
        st = gr_fail_errno(err, GRAFT_FAILED, "making folder %s", path);
    }
    free(p);
    return st;
}

bool gr_exists(const char *path) { return access(path, F_OK) == 0; }

bool gr_is_device(const char *path) {
    struct stat info;
    if (own_stream(path) >= 0) return true;
    return stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
}

graft_status gr_refuse_device(const char *path, graft_error *err) {
    if (!gr_is_device(path)) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE, "%s is a device or a pipe: what is read back to be compared needs a name of its own",
                   path);
}

bool gr_is_dir(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *gr_path_join(const char *dir, const char *name) {
    bool slash = *dir && !gr_ends_with(dir, "/");
    return gr_format("%s%s%s", dir, slash ? "/" : "", name);
}

char *gr_path_absolute(const char *path) {
    if (*path == '/') return gr_strdup(path);
    while (gr_starts_with(path, "./")) path += 2 + strspn(path + 2, "/");
    char *cwd = getcwd(NULL, 0), *out = cwd ? gr_path_join(cwd, strcmp(path, ".") == 0 ? "" : path) : NULL;
    free(cwd);
    return out;
}

char *gr_path_relative(const char *path, const char *folder) {
    char *to = realpath(path, NULL), *from = realpath(folder, NULL);
    gr_str out = {0};
    bool found = to && from;
    if (found) {
        size_t same = 0; /* length of the folders that both are in */
        for (size_t i = 0;; i++) {
            bool ends = (to[i] == '/' || !to[i]) && (from[i] == '/' || !from[i]);
            if (ends) same = i;
            if (to[i] != from[i] || !to[i]) break;
        }
        for (const char *c = from + same; *c; c++)
            if (*c == '/' && c[1]) gr_str_puts(&out, "../");
        gr_str_puts(&out, to + same + (to[same] == '/'));
        if (out.len == 0) gr_str_putc(&out, '.');
    }
    free(to);
    free(from);
    if (!found) return NULL;
    return gr_str_take(&out);
}

const char *gr_hub_hint(const char *path) {
    const char *slash = strchr(path, '/');
    bool name = slash && slash != path && path[0] != '.' && path[0] != '~' && slash[1] && !strchr(slash + 1, '/') &&
                !gr_ends_with(path, ".gguf") && !gr_ends_with(path, ".jsonl");
    return name ? "; a model of the Hugging Face hub is downloaded first (`hf download ORG/NAME --local-dir FOLDER`), then its "
                  "folder given"
                : "";
}
