/* fields.c - what the fields beside those of a form mean: those that change what a sample says are refused by name, the
 * others counted, on every sample. Either way out of a refusal is the user's: change the file, or `ignore` the field. */
#include <string.h>
#include <strings.h>

#include "core/data/forms.h"

bool gr_field_says(const json_t *value) {
    if (!value || json_is_null(value)) return false;
    if (json_is_string(value)) return json_string_length(value) > 0;
    if (json_is_array(value)) return json_array_size(value) > 0;
    if (json_is_object(value)) return json_object_size(value) > 0;
    return true;
}

static bool is_one_of(const char *key, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], key)) return true;
    return false;
}

void gr_fields_drop_ignored(const gr_reader *r, json_t *object) {
    for (int i = 0; i < r->n_ignore; i++) json_object_del(object, r->ignore[i]);
}

/* ---- yes and no ---- */

typedef enum answer { NO, YES, NEITHER } answer;

/* true, 1, "true" (a CSV has nothing else) ... */
static answer yes_or_no(const json_t *value) {
    static const char *const no[] = {"false", "0", "no", "bad", "undesirable"}, *const yes[] = {"true", "1", "yes", "good",
                                                                                                "desirable"};
    if (json_is_boolean(value)) return json_is_true(value) ? YES : NO;
    if (json_is_number(value)) {
        double number = json_number_value(value);
        return number == 1 ? YES : number == 0 ? NO : NEITHER;
    }
    for (int i = 0; json_is_string(value) && i < GR_LEN(no); i++) {
        if (!strcasecmp(json_string_value(value), no[i])) return NO;
        if (!strcasecmp(json_string_value(value), yes[i])) return YES;
    }
    return NEITHER;
}

/* ---- of a sample ---- */

static bool is_preference(const char *key) { return gr_starts_with(key, "chosen") || gr_starts_with(key, "rejected"); }

static graft_status refuse_preference(const gr_conversion *c, const char *key) {
    return gr_form_fail(c,
                        "\"%.40s\" is preference data: it needs objective: dpo, which is not in this version; to learn one of the "
                        "answers, name it and set the other aside: columns: {completion: chosen}, ignore: [rejected]",
                        key);
}

graft_status gr_fields_check_preference(const gr_conversion *c, const json_t *object) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        bool mapped = is_one_of(key, c->r->ignore, c->r->n_ignore);
        for (int i = 0; i < c->r->n_columns && !mapped; i++) mapped = !strcmp(c->r->columns[i].column, key);
        if (is_preference(key) && !mapped && !json_is_null(value)) return refuse_preference(c, key);
    }
    return GRAFT_OK;
}

static bool is_media(const char *key) {
    static const char *const names[] = {"image", "images", "image_url", "video", "videos", "audio", "audios"};
    return is_one_of(key, names, GR_LEN(names));
}

static graft_status check_sample_field(const gr_conversion *c, const char *key, const json_t *value) {
    static const char
        *const weights[] = {"weight", "sample_weight", "loss_weight", "loss_scale"},
               *const flags[] = {"train", "training", "trainable", "loss"}, *const systems[] = {"system_prompt", "system_message"},
               *const of_message[] = {"tool_calls", "function_call", "reasoning_content"}, *const parts[] = {"loss_mask", "masks"};
    bool text = !gr_form_has_turns(c->r->format);
    if (is_preference(key) && !json_is_null(value)) return refuse_preference(c, key);
    if (!gr_field_says(value)) return GRAFT_OK;
    bool label = !strcmp(key, "label") || !strcmp(key, "is_desirable");
    if (!text && (!strcmp(key, "kto_tag") || (label && yes_or_no(value) != NEITHER)))
        return gr_form_fail(c,
                            "\"%s\" is preference data, a label for each answer, which this version does not learn from; keep the "
                            "good answers without this field or, if it means something else, ignore: [%s]",
                            key, key);
    if (is_media(key))
        return gr_form_fail(
            c, "\"%s\": graft learns text alone; take the sample out or, if it needs no pictures or sound, ignore: [%s]", key, key);
    if (is_one_of(key, weights, GR_LEN(weights)) && yes_or_no(value) != YES)
        return gr_form_fail(c,
                            "\"%s\": a weight for a single sample is not in this version (a source has one: data.train: [{path, "
                            "weight}]); ignore: [%s] leaves it aside",
                            key, key);
    if (is_one_of(key, flags, GR_LEN(flags)) && yes_or_no(value) == NO)
        return gr_form_fail(
            c, "\"%s\" says that the sample is not to be learned: take it out, or leave the field aside with ignore: [%s]", key,
            key);
    if (is_one_of(key, parts, GR_LEN(parts)))
        return gr_form_fail(
            c,
            "\"%s\" says what is learned, which is not read here: write \"train\": false on a turn that is not to be "
            "learned, or leave the field aside with ignore: [%s]",
            key, key);
    if (!text && is_one_of(key, systems, GR_LEN(systems)))
        return gr_form_fail(c, "\"%s\" is not read: name it with columns: {system: %s}, or leave it aside with ignore: [%s]", key,
                            key, key);
    if (!text && is_one_of(key, of_message, GR_LEN(of_message)))
        return gr_form_fail(c, "\"%s\" belongs to a message (format messages); ignore: [%s] leaves it aside", key, key);
    if (!strcmp(key, "chat_template_kwargs") || !strcmp(key, "chat_template"))
        return gr_form_fail(c, "\"%s\" of a single sample is not in this version: use data.%s, and ignore: [%s]", key,
                            key[13] ? "template_args" : "template", key);
    gr_tally_add(c->r->tally, GR_REMARK_FIELD, key);
    return GRAFT_OK;
}

graft_status gr_fields_check_sample(const gr_conversion *c) {
    const char *key;
    json_t *value;
    json_object_foreach(c->s->root, key, value) {
        if (is_one_of(key, c->r->used, c->r->n_used)) continue;
        graft_status st = check_sample_field(c, key, value);
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}

/* ---- of a message ---- */

/* Of a message, 0 or 1; 1 is no wish to learn a turn that is not an answer. */
static const char *const message_weights[] = {"weight", "loss_weight", "loss_scale"};

/* "train": false and the names that others have for it. */
static graft_status check_flag(const gr_conversion *c, const char *key, const json_t *value, const char *role, bool *no_loss) {
    answer learned = json_is_string(value) ? NEITHER : yes_or_no(value);
    if (learned == NEITHER)
        return gr_form_fail(c, "\"%s\" of a message must be 0 or 1 (false or true: not learned, or learned), found %s", key,
                            json_is_number(value) ? "another number" : gr_json_type(value));
    if (learned == YES && strcmp(role, "assistant") && !is_one_of(key, message_weights, GR_LEN(message_weights)))
        return gr_form_fail(c, "\"%s\": true on a turn of the role %s: only assistant turns are learned; take it out", key, role);
    if (learned == NO) *no_loss = true;
    return GRAFT_OK;
}

static graft_status check_message_field(const gr_conversion *c, const char *key, const json_t *value, const char *role) {
    static const char *const for_templates[] = {"tool_calls", "function_call", "tool_call_id", "reasoning_content"},
                             *const masks[] = {"mask", "masked", "no_loss", "ignore"},
                             *const details[] = {"train_detail", "training_detail", "loss_mask"};
    if (is_one_of(key, for_templates, GR_LEN(for_templates))) return GRAFT_OK;
    if (!strcmp(key, "name") && !strcmp(role, "tool")) return GRAFT_OK; /* the tool's, which its call names */
    if (!gr_field_says(value)) return GRAFT_OK;
    if (is_media(key))
        return gr_form_fail(
            c, "\"%s\": graft learns text alone; take the sample out or, if it needs no pictures or sound, ignore: [%s]", key, key);
    if (is_one_of(key, masks, GR_LEN(masks)) && yes_or_no(value) != NO)
        return gr_form_fail(c, "\"%s\": write \"train\": false on a turn that is not to be learned; ignore: [%s] leaves it aside",
                            key, key);
    if (is_one_of(key, details, GR_LEN(details)))
        return gr_form_fail(c, "\"%s\": a turn is learned whole or (\"train\": false) not at all; ignore: [%s] leaves it aside",
                            key, key);
    if (!is_one_of(key, masks, GR_LEN(masks))) gr_tally_add(c->r->tally, GR_REMARK_MESSAGE_FIELD, key);
    return GRAFT_OK;
}

graft_status gr_fields_check_message(const gr_conversion *c, const json_t *turn, const char *role, bool *no_loss, bool *more) {
    static const char *const flags[] = {"train", "training", "trainable", "loss"}, *const form[] = {"role", "content", "from",
                                                                                                    "value"};
    const char *key;
    json_t *value;
    *no_loss = *more = false;
    json_object_foreach((json_t *)(uintptr_t)turn, key, value) {
        graft_status st = GRAFT_OK;
        if (is_one_of(key, form, GR_LEN(form))) continue;
        if (is_one_of(key, flags, GR_LEN(flags)) || is_one_of(key, message_weights, GR_LEN(message_weights))) {
            if (!json_is_null(value)) st = check_flag(c, key, value, role, no_loss);
        } else {
            *more |= !json_is_null(value);
            st = check_message_field(c, key, value, role);
        }
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}
