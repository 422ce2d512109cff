/* cubins LIBRARY - the kernels of a library that nvcc made, one a line: compute capability, name as the linker has it, the most
 * threads of a block (0: no bound), registers of a thread, bytes of static shared memory of a block; sorted by nothing. The first
 * line is the toolkit that made them. CUDA's own cuobjdump says as much, but is not of the compiler's package.
 * A fat binary lies in .nv_fatbin: 16 bytes of header each, then entries, of which those of kind 2 are ELF files ("cubins"), which
 * say what is known of all kernels in .nv.info, of kernel X in .nv.info.X (4 bytes each: format, attribute, size or value, then as
 * many bytes as the size says). None of it is documented but by the tools; what does not fit is an error. */
#include <elf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FAT_MAGIC = 0x50, KIND_CUBIN = 2, COMPRESSED = 0xA000, MAX_THREADS = 5, REGISTERS = 0x2F, HAS_SIZE = 4 };

typedef struct fat_entry {
    uint16_t kind, version;
    uint32_t header;
    uint64_t size;
    uint32_t packed, options;
    uint16_t minor, major;
    uint32_t arch, name_at, name_size;
    uint64_t flags, zero, full;
} __attribute__((packed)) fat_entry;

static void fail(const char *what) {
    fprintf(stderr, "cubins: %s\n", what);
    exit(1);
}

static const Elf64_Shdr *section(const char *elf, int i) {
    const Elf64_Ehdr *h = (const Elf64_Ehdr *)elf;
    return (const Elf64_Shdr *)(elf + h->e_shoff) + i;
}

static const char *name_of(const char *elf, const Elf64_Shdr *s) {
    return elf + section(elf, ((const Elf64_Ehdr *)elf)->e_shstrndx)->sh_offset + s->sh_name;
}

/* The section of a name made of two parts; NULL: there is none. */
static const Elf64_Shdr *find(const char *elf, const char *prefix, const char *name) {
    for (int i = 0; i < ((const Elf64_Ehdr *)elf)->e_shnum; i++) {
        const char *found = name_of(elf, section(elf, i));
        if (strncmp(found, prefix, strlen(prefix)) == 0 && strcmp(found + strlen(prefix), name) == 0) return section(elf, i);
    }
    return NULL;
}

/* Reads the next attribute that has n values in 4 bytes each; false: there is none. */
static bool next_attribute(const char *elf, const Elf64_Shdr *info, size_t *at, int attribute, uint32_t *value, size_t n) {
    const unsigned char *p = (const unsigned char *)elf + info->sh_offset;
    while (*at + 4 <= info->sh_size) {
        size_t here = *at + 4, size = p[*at + 2] | (size_t)p[*at + 3] << 8;
        bool found = p[*at] == HAS_SIZE && p[*at + 1] == attribute && size == 4 * n;
        *at = here + (p[*at] == HAS_SIZE ? size : 0);
        if (!found) continue;
        memcpy(value, p + here, size);
        return true;
    }
    return false;
}

static unsigned threads_of(const char *elf, const Elf64_Shdr *info) {
    uint32_t n[3];
    size_t at = 0;
    return next_attribute(elf, info, &at, MAX_THREADS, n, 3) ? n[0] * n[1] * n[2] : 0;
}

/* Of the kernel whose symbol has a name. */
static unsigned registers_of(const char *elf, const char *name) {
    const Elf64_Shdr *info = find(elf, ".nv.info", ""), *symbols = find(elf, ".symtab", ""), *names = find(elf, ".strtab", "");
    uint32_t of[2];
    if (!info || !symbols || !names) fail("a cubin without .nv.info or symbols");
    for (size_t at = 0; next_attribute(elf, info, &at, REGISTERS, of, 2);) {
        const Elf64_Sym *symbol = (const Elf64_Sym *)(elf + symbols->sh_offset) + of[0];
        if (of[1] > 0 && strcmp(elf + names->sh_offset + symbol->st_name, name) == 0) return of[1];
    }
    fail("a kernel whose registers are not known");
    return 0;
}

static int print_kernels(const char *elf, unsigned arch) {
    int n = 0;
    if (memcmp(elf, ELFMAG, SELFMAG) != 0) fail("an entry is no ELF file");
    for (int i = 0; i < ((const Elf64_Ehdr *)elf)->e_shnum; i++) {
        const char *name = name_of(elf, section(elf, i));
        if (strncmp(name, ".text.", 6) != 0) continue;
        const Elf64_Shdr *info = find(elf, ".nv.info.", name + 6), *shared = find(elf, ".nv.shared.", name + 6);
        if (!info) fail("a kernel without .nv.info");
        printf("%u %s %u %u %lld\n", arch, name + 6, threads_of(elf, info), registers_of(elf, name + 6),
               shared ? (long long)shared->sh_size : 0);
        n++;
    }
    return n;
}

/* "release 13.0, V13.0.88" of a note that each cubin holds. */
static void print_toolkit(const char *data, size_t size) {
    static const char words[] = "Cuda compilation tools, ";
    for (size_t i = 0; i + sizeof words < size; i++)
        if (memcmp(data + i, words, sizeof words - 1) == 0) {
            printf("%s\n", data + i + sizeof words - 1);
            return;
        }
    fail("no toolkit is named");
}

int main(int argc, char **argv) {
    FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!f || fseek(f, 0, SEEK_END) != 0) fail("usage: cubins LIBRARY");
    size_t size = (size_t)ftell(f);
    char *data = malloc(size);
    rewind(f);
    if (!data || fread(data, 1, size, f) != size || memcmp(data, ELFMAG, SELFMAG) != 0) fail("no library");
    print_toolkit(data, size);
    const Elf64_Shdr *fat = find(data, ".nv_fatbin", "");
    int n = 0;
    for (size_t at = fat ? fat->sh_offset : size, end = fat ? at + fat->sh_size : 0, stop; at + 16 <= end; at = stop) {
        uint64_t bytes;
        if ((unsigned char)data[at] != FAT_MAGIC) fail("no fat binary where one should be");
        memcpy(&bytes, data + at + 8, 8);
        stop = at + 16 + bytes;
        for (at += 16; at + sizeof(fat_entry) <= stop;) {
            fat_entry e;
            memcpy(&e, data + at, sizeof e);
            if (e.kind == KIND_CUBIN && e.flags & COMPRESSED) fail("compressed machine code");
            if (e.kind == KIND_CUBIN) n += print_kernels(data + at + e.header, e.arch);
            at += e.header + e.size;
        }
        stop = (stop + 7) / 8 * 8;
    }
    free(data), fclose(f);
    if (n == 0) fail("no kernel");
    return 0;
}
