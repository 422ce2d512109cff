/* What a run has learned, written: the adapter, or the whole model. */
#include <stdlib.h>

#include "adapters/merge.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "peft/run.h"

graft_status gr_run_export(gr_run *run, graft_error *err) {
    graft_status st;
    char *path = gr_path_join(run->r->_output_dir, run->adapter ? "adapter" : "model");
    if (!path) return gr_fail_memory(err, "output");
    if (run->adapter) {
        GR_TRY(gr_adapter_save(run->adapter, path, true, err));
    } else {
        gr_merge_options o = {.format = GR_FORMAT_HF, .dtype = -1, .overwrite = true};
        gr_merge_report report;
        GR_TRY(gr_chat_carry(run->session.chat, run->session.tokenizer, err));
        gr_merge_parts parts = {.model = run->session.model, .tokenizer = run->session.tokenizer, .trained = &run->params};
        GR_TRY(gr_merge(&parts, &o, path, &report, err));
        gr_note("%s: largest logit difference to the trained weights %.3g", path, report.max_logit_difference);
    }
done:
    free(path);
    return st;
}

graft_status gr_run_result(gr_run *run, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool best_is_older = run->r->save_best && run->state.best_step >= 0 && run->state.best_step != run->state.step;
    if ((best_is_older && run->adapter) || (!run->shard.params && gr_comm_rank(run->comm) != 0)) return GRAFT_OK;
    if (best_is_older) {
        char *folder = gr_checkpoint_folder(run->r->_output_dir, run->state.best_step);
        st = folder ? gr_checkpoint_load(folder, &run->params, NULL, NULL, NULL, err) : gr_fail_memory(err, "checkpoint");
        free(folder);
        gr_model_renew(run->session.model);
    }
    if (!run->adapter) { /* a whole model is written: the steps' scratch makes room */
        gr_decoder_free(run->decoder);
        run->decoder = NULL;
    }
    st = gr_comm_agree(run->shard.params ? run->comm : NULL, "the best weights", st, NULL, err);
    if (st == GRAFT_OK && best_is_older) st = gr_shard_renew(&run->shard, err);
    if (st == GRAFT_OK) st = gr_shard_begin_reading(&run->shard, "the result", err);
    if (st == GRAFT_OK && gr_comm_rank(run->comm) == 0) st = gr_run_export(run, err);
    return gr_shard_end_reading(&run->shard, "the result", st, err);
}
