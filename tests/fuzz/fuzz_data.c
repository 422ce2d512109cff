/* Readers on arbitrary bytes: the first byte chooses format and encoding, the rest is the file. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/data/dataset.h"
#include "peft/evaluate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const formats[] = {"auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "seed_tasks"};
    static const char *const encodings[] = {"utf-8", "replace", "gb18030", "utf-16"};
    char path[64];
    if (size < 1) return 0;
    int fd = memfd_create("fuzz", 0);
    GR_ASSERT(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    gr_data_source source = {.path = path, .format = formats[data[0] % GR_LEN(formats)], .encoding = encodings[data[0] / 16 % 4]};
    gr_reader *r;
    gr_record record;
    graft_error err = {0};
    graft_status st = gr_reader_open(&r, &source, &err);
    if (st == GRAFT_OK) {
        while ((st = gr_reader_next(r, &record, &err)) == GRAFT_OK && (record.n_messages || record.text)) {
            size_t n = record.text ? strlen(record.text) : 0;
            for (int64_t i = 0; i < record.n_messages; i++)
                n += strlen(record.messages[i].content) + strlen(record.messages[i].role);
            GR_ASSERT(n <= 4 * size ||
                      data[1] == 0x1F); /* U+FFFD and the names of roles are all that makes a text longer, and gzip */
            if (record.text) gr_exact_match(record.text, "#### 7");
        }
        gr_reader_close(r);
    }
    if (st != GRAFT_OK) GR_ASSERT(err.msg[0] && !strchr(err.msg, '\n'));
    close(fd);
    return 0;
}
