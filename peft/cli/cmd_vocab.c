/* graft vocab train */
#include "peft/cli/commands.h"

graft_status gr_cmd_vocab_train(const gr_args *a, graft_error *err) {
    int64_t size;
    if (!gr_args_has(a, "text") || !gr_args_has(a, "size") || !gr_args_has(a, "out"))
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "what to learn from and what to write is missing: give --text FILE, --size N and --out PATH");
    graft_status st = gr_args_int(a, "size", 1, 0, &size, err);
    if (st != GRAFT_OK) return st;
    return gr_fail(err, GRAFT_FAILED, "graft vocab train is not finished in this version");
}
