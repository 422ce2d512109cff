/* How PEFT matches names of modules: whole components from the right, and regular expressions. */
#include "adapters/impl.h"

#include <stdlib.h>

graft_status gr_regex_compile(pcre2_code **out, const char *prefix, const char *pattern, const char *suffix, graft_error *err) {
    int code = 0;
    PCRE2_SIZE at = 0;
    char *whole = gr_format("%s%s%s", prefix, pattern, suffix);
    if (!whole) return gr_fail_memory(err, "a pattern");
    *out = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &code, &at, NULL);
    free(whole);
    if (*out) return GRAFT_OK;
    PCRE2_UCHAR why[120];
    pcre2_get_error_message(code, why, sizeof why);
    return gr_fail(err, GRAFT_BAD_USAGE, "\"%s\" is not a regular expression: %s", pattern, (const char *)why);
}

graft_status gr_regex_match(bool *yes, const pcre2_code *regex, const char *pattern, const char *name, graft_error *err) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (!data) return gr_fail_memory(err, "a pattern");
    int rc = pcre2_match(regex, (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, 0, data, NULL);
    pcre2_match_data_free(data);
    *yes = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return gr_fail(err, GRAFT_BAD_USAGE, "the pattern \"%s\" is too expensive to match", pattern);
    return GRAFT_OK;
}

bool gr_has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), k = strlen(suffix);
    return n >= k && strcmp(name + n - k, suffix) == 0 && (n == k || name[n - k - 1] == '.');
}
