#include "core/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/base/base.h"

int64_t gr_memory_resident(void) {
    long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%lld %lld", &size, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return (int64_t)resident * sysconf(_SC_PAGESIZE);
}

static int64_t mem_available(void) {
    long long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
    if (f) fclose(f);
    return kib > 0 ? (int64_t)kib * 1024 : (int64_t)8 << 30;
}

/* The number in folder/name, or that after `key` in it; -1: none ("max"). */
static int64_t number_in(const char *folder, const char *name, const char *key) {
    char path[640], line[160];
    long long n = -1;
    size_t len = key ? strlen(key) : 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    while (f && n < 0 && fgets(line, sizeof line, f))
        if (!key || (strncmp(line, key, len) == 0 && line[len] == ' ')) {
            if (sscanf(line + len, "%lld", &n) != 1) n = -1;
            if (!key) break;
        }
    if (f) fclose(f);
    return n;
}

/* What the group at folder leaves: its limit less what it uses, of which files that nobody reads do not count. */
static int64_t left_in_group(const char *folder, bool v2) {
    int64_t limit = number_in(folder, v2 ? "memory.max" : "memory.limit_in_bytes", NULL);
    int64_t used = number_in(folder, v2 ? "memory.current" : "memory.usage_in_bytes", NULL);
    if (limit < 0 || used < 0) return INT64_MAX;
    int64_t files = number_in(folder, "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
    return GR_MAX(limit - used + GR_MAX(files, 0), 0);
}

/* The least that the group at path below root and those around it leave. In a container the path may be seen
 * from inside: then the root is the group. */
static int64_t left_in_groups(const char *root, char *path, bool v2) {
    int64_t least = INT64_MAX;
    for (;;) {
        char folder[600];
        snprintf(folder, sizeof folder, "%s%s", root, path);
        least = GR_MIN(least, left_in_group(folder, v2));
        char *slash = strrchr(path, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

int64_t gr_memory_available(int *by_cgroup) {
    int64_t system = mem_available(), groups = INT64_MAX;
    char line[512];
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) { /* "4:cpu,memory:/path", or "0::/path" */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        bool v2 = controllers[1] == '\0';
        if (v2) groups = GR_MIN(groups, left_in_groups("/sys/fs/cgroup", path, true));
        else if (strstr(controllers, "memory")) groups = GR_MIN(groups, left_in_groups("/sys/fs/cgroup/memory", path, false));
    }
    if (f) fclose(f);
    if (by_cgroup) *by_cgroup = groups < system;
    return GR_MIN(system, groups);
}

int64_t gr_disk_free(const char *path) {
    struct statvfs info;
    int64_t bytes = -1;
    char *at = gr_strdup(path);
    while (at) {
        if (statvfs(*at ? at : ".", &info) == 0) {
            bytes = (int64_t)info.f_bavail * (int64_t)info.f_frsize;
            break;
        }
        char *slash = strrchr(at, '/');
        if (!slash && !*at) break;
        if (slash == at && at[1]) at[1] = '\0';
        else if (slash && slash != at) *slash = '\0';
        else *at = '\0';
    }
    free(at);
    return bytes;
}
