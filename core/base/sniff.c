#include "core/base/sniff.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#define PACKED   "; unpack it first"
#define TO_JSONL "; write it as JSONL, with Python: "

static const struct kind_row {
    gr_kind kind;
    int offset, len;
    const char *magic, *what;
} rows[] = {
#define MAGIC(offset, text) offset, sizeof(text) - 1, text
    {GR_KIND_FOREIGN, MAGIC(0, "version https://git-lfs.github.com/spec/"),
     "a git-LFS pointer instead of the file; `git lfs pull` fetches it"},
    {GR_KIND_FOREIGN, MAGIC(0, "version https://hawser.github.com/spec/"),
     "a git-LFS pointer instead of the file; `git lfs pull` fetches it"},
    {GR_KIND_FOREIGN, MAGIC(0, "<?xml"), "an XML document, such as a server's error; download the file again"},
    {GR_KIND_FOREIGN, MAGIC(0, "PAR1"),
     "a Parquet file" TO_JSONL "pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True, force_ascii=False)"},
    {GR_KIND_FOREIGN, MAGIC(0, "ARROW1"),
     "an Arrow file" TO_JSONL "pandas.read_feather(FILE).to_json(OUT, orient='records', lines=True, force_ascii=False)"},
    {GR_KIND_FOREIGN, MAGIC(0, "\xFF\xFF\xFF\xFF"),
     "an Arrow stream" TO_JSONL "datasets.Dataset.from_file(FILE).to_json(OUT, force_ascii=False)"},
    {GR_KIND_FOREIGN, MAGIC(0, "Obj\x01"), "an Avro file; write it as JSONL"},
    {GR_KIND_FOREIGN, MAGIC(0, "ORC"), "an ORC file; write it as JSONL"},
    {GR_KIND_GZIP, MAGIC(0, "\x1F\x8B"), "compressed with gzip; gunzip unpacks it"},
    {GR_KIND_FOREIGN, MAGIC(0, "PK\x03\x04"), "a zip archive" PACKED},
    {GR_KIND_FOREIGN, MAGIC(0, "PK\x05\x06"), "an empty zip archive"},
    {GR_KIND_FOREIGN, MAGIC(0, "BZh"), "compressed with bzip2; bunzip2 unpacks it"},
    {GR_KIND_FOREIGN,
     MAGIC(0, "\xFD"
              "7zXZ"),
     "compressed with xz; unxz unpacks it"},
    {GR_KIND_FOREIGN, MAGIC(0, "]\0\0"), "compressed with lzma; unlzma unpacks it"}, /* no text has zeros there, UTF-32 apart */
    {GR_KIND_FOREIGN, MAGIC(0, "\x28\xB5\x2F\xFD"), "compressed with zstd; unzstd unpacks it"},
    {GR_KIND_FOREIGN, MAGIC(0, "\x04\x22\x4D\x18"), "compressed with lz4; unlz4 unpacks it"},
    {GR_KIND_FOREIGN, MAGIC(0, "7z\xBC\xAF\x27\x1C"), "a 7z archive" PACKED},
    {GR_KIND_FOREIGN, MAGIC(0, "Rar!\x1A"), "a RAR archive" PACKED},
    {GR_KIND_FOREIGN, MAGIC(257, "ustar"), "a tar archive; tar xf unpacks it"},
    {GR_KIND_GGUF, MAGIC(0, "GGUF"), "a GGUF file"},
    {GR_KIND_FOREIGN, MAGIC(0, "FUGG"), "a GGUF file of a big-endian machine"},
    {GR_KIND_FOREIGN, MAGIC(0, "lmgg"), "a GGML file, from before GGUF; take the model as GGUF or safetensors"},
    {GR_KIND_FOREIGN, MAGIC(0, "fmgg"), "a GGML file, from before GGUF; take the model as GGUF or safetensors"},
    {GR_KIND_FOREIGN, MAGIC(0, "tjgg"), "a GGML file, from before GGUF; take the model as GGUF or safetensors"},
    {GR_KIND_HDF5, MAGIC(0, "\x89HDF\r\n\x1A\n"), "an HDF5 file"},
    {GR_KIND_HDF5, MAGIC(0, "graft-h5"), "a checkpoint or cache of graft"},
    {GR_KIND_FOREIGN, MAGIC(0, "\x93NUMPY"), "a NumPy array"},
    {GR_KIND_FOREIGN, MAGIC(0, "SQLite format 3"), "an SQLite database"},
    {GR_KIND_FOREIGN, MAGIC(0, "%PDF-"), "a PDF document"},
    {GR_KIND_FOREIGN,
     MAGIC(0, "\x7F"
              "ELF"),
     "a program"},
    {GR_KIND_FOREIGN, MAGIC(0, "\x89PNG"), "a picture"},
    {GR_KIND_FOREIGN, MAGIC(0, "\xFF\xD8\xFF"), "a picture"},
    {GR_KIND_UTF16, MAGIC(0, "\xFF\xFE"), "text in UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"},
    {GR_KIND_UTF16, MAGIC(0, "\xFE\xFF"), "text in UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"},
#undef MAGIC
};

/* Text in UTF-32 by its mark or, from 8 bytes on, by the zeros of its first two characters. */
static bool is_utf32(const uint8_t *s, int64_t n) {
    static const uint8_t zeros[3] = {0};
    if (n >= 4 && (!memcmp(s, "\xFF\xFE\0\0", 4) || !memcmp(s, "\0\0\xFE\xFF", 4))) return true;
    return n >= 8 && ((s[0] && s[4] && !memcmp(s + 1, zeros, 3) && !memcmp(s + 5, zeros, 3)) ||
                      (s[3] && s[7] && !memcmp(s, zeros, 3) && !memcmp(s + 4, zeros, 3)));
}

/* A bare zlib stream: its two bytes may begin a text in GBK or Latin-1, which then has no control characters. */
static bool is_zlib(const uint8_t *s, int64_t n) {
    if (n < 3 || s[0] != 0x78 || (s[1] != 0x9C && s[1] != 0xDA)) return false;
    for (int64_t i = 2; i < n; i++)
        if (s[i] < 0x20 && !isspace(s[i])) return true;
    return false;
}

static bool contains(const uint8_t *s, int64_t n, const char *word) { return memmem(s, (size_t)n, word, strlen(word)) != NULL; }

/* What no fixed bytes tell. */
static gr_kind sniff_further(const uint8_t *s, int64_t n, const char **what) {
    static const char *const html[] = {"<!doctype html", "<html", "<head"};
    static const char torch[] = "a pickled PyTorch checkpoint (.bin, .pt), which graft does not read; save it as safetensors "
                                "(save_pretrained(FOLDER, safe_serialization=True))",
                      pickle[] =
                          "a Python pickle, which graft does not read; write data as JSONL, a model (PyTorch) as safetensors";
    uint64_t header = 0; /* of safetensors: may look like any of the magic bytes */
    for (int i = 0; n > 9 && i < 8; i++) header |= (uint64_t)s[i] << (8 * i);
    if (header >= 2 && header < (uint64_t)1 << 32 && s[8] == '{') return *what = "a safetensors file", GR_KIND_SAFETENSORS;
    int64_t at = 0;
    if (n >= 3 && !memcmp(s, "\xEF\xBB\xBF", 3)) at = 3;
    while (at < n && isspace(s[at])) at++;
    for (int i = 0; i < GR_LEN(html); i++)
        if (n - at >= (int64_t)strlen(html[i]) && !strncasecmp((const char *)s + at, html[i], strlen(html[i])))
            return *what = "an HTML page instead of the file; download the file itself, perhaps with a login", GR_KIND_FOREIGN;
    bool zip = n > 34 && !memcmp(s, "PK\x03\x04", 4); /* the name of its first file is told from byte 30 */
    if (zip && contains(s + 30, GR_MIN(n - 30, 120), "data.pkl")) return *what = torch, GR_KIND_FOREIGN;
    if (zip && (contains(s + 30, GR_MIN(n - 30, 60), "[Content_Types].xml") || contains(s + 30, GR_MIN(n - 30, 20), "xl/")))
        return *what = "an Excel workbook or another office document; save its table as CSV (UTF-8)", GR_KIND_FOREIGN;
    if (n > 4 && s[0] == 0x80 && s[1] >= 2 && s[1] <= 5 && memchr("}(]c\x8A\x95", s[2], 6))
        return *what = s[2] == 0x8A ? torch : pickle, GR_KIND_FOREIGN; /* torch.save begins with a long number */
    if (is_zlib(s, n)) return *what = "compressed with zlib; unpack it first (pigz -dz)", GR_KIND_FOREIGN;
    if (is_utf32(s, n)) return *what = "text in UTF-32; convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)", GR_KIND_UTF16;
    if (n >= 8 && ((s[0] && !s[1] && s[2] && !s[3] && s[4] && !s[5]) || (!s[0] && s[1] && !s[2] && s[3] && !s[4] && s[5])))
        return *what = "text in UTF-16; convert it to UTF-8 (iconv -f UTF-16LE -t UTF-8, or UTF-16BE)", GR_KIND_UTF16;
    return GR_KIND_UNKNOWN;
}

gr_kind gr_sniff(const void *bytes, int64_t n, const char **what) {
    const char *ignored;
    const uint8_t *s = bytes;
    if (!what) what = &ignored;
    *what = NULL;
    n = GR_MIN(n, (int64_t)GR_SNIFF_BYTES);
    gr_kind kind = n > 0 ? sniff_further(s, n, what) : GR_KIND_UNKNOWN;
    for (int i = 0; !*what && i < GR_LEN(rows); i++) {
        const struct kind_row *r = &rows[i];
        if (n < r->offset + r->len || memcmp(s + r->offset, r->magic, (size_t)r->len)) continue;
        *what = r->what;
        kind = r->kind;
    }
    return kind;
}

/* The first line of a text, or false when these bytes are none. */
static bool as_text(const uint8_t *s, int64_t n, char *line, int64_t size) {
    int64_t len = 0;
    for (int64_t i = 0; i < GR_MIN(n, 64); i++)
        if (s[i] >= 0x7F || (s[i] < 0x20 && !isspace(s[i]))) return false;
    while (len < n && len < size - 1 && s[len] >= 0x20 && s[len] < 0x7F) line[len] = (char)s[len], len++;
    line[len] = '\0';
    return n > 0;
}

graft_status gr_expect_kind(const void *bytes, int64_t n, gr_kind wanted, const char *expected, const char *path,
                            graft_error *err) {
    const char *what;
    char line[64];
    gr_kind kind = gr_sniff(bytes, n, &what);
    if (kind == wanted) return GRAFT_OK;
    if (kind != GR_KIND_UNKNOWN)
        return gr_fail(err, GRAFT_BAD_INPUT, expected ? "%s: is %s (expected %s)" : "%s: is %s", path, what, expected);
    if (wanted != GR_KIND_UNKNOWN && as_text(bytes, n, line, sizeof line))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: expected %s, found text: \"%s\"", path, expected, line);
    return GRAFT_OK;
}
