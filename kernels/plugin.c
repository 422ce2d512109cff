#include "kernels/plugin.h"

#include <dlfcn.h>
#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static _Thread_local char cut_off[512]; /* why a library was not tried; empty: dlerror says it */

const char *gr_plugin_error(void) {
    const char *wrong = cut_off[0] ? cut_off : dlerror();
    return wrong ? wrong : "it cannot be loaded";
}

/* Does a file end before what it says is to be loaded of it? To touch that would end the program. */
static bool is_cut_off(const char *path) {
    Elf64_Ehdr head;
    Elf64_Phdr part;
    struct stat file;
    bool cut = false;
    FILE *f = fopen(path, "re");
    if (!f) return false;
    if (fstat(fileno(f), &file) == 0 && fread(&head, sizeof head, 1, f) == 1 && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 &&
        head.e_ident[EI_CLASS] == ELFCLASS64 && head.e_phentsize == sizeof part &&
        fseek(f, (long)(head.e_phoff & INT32_MAX), SEEK_SET) == 0)
        for (int i = 0; i < head.e_phnum && !cut; i++)
            cut = fread(&part, sizeof part, 1, f) != 1 ||
                  (part.p_type == PT_LOAD &&
                   (part.p_filesz > (uint64_t)file.st_size || part.p_offset > (uint64_t)file.st_size - part.p_filesz));
    fclose(f);
    return cut;
}

static void *load(const char *path) {
    cut_off[0] = '\0';
    if (!is_cut_off(path)) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    snprintf(cut_off, sizeof cut_off, "%.400s is cut off: install it again", path);
    return NULL;
}

void *gr_plugin_load(const char *file, const char *named_by) {
    const char *named = getenv(named_by);
    char path[4096];
    Dl_info here;
    if (named && *named) return load(named);
    if (dladdr((void *)(uintptr_t)gr_plugin_load, &here) && here.dli_fname && strrchr(here.dli_fname, '/')) {
        static const char *const folders[] = {"", "graft/", GRAFT_BACKENDS};
        int length = (int)(strrchr(here.dli_fname, '/') - here.dli_fname) + 1;
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            int n = snprintf(path, sizeof path, "%.*s%s%s", length, here.dli_fname, folders[i], file);
            if (n < (int)sizeof path && access(path, F_OK) == 0) return load(path);
        }
    }
    return load(file);
}
