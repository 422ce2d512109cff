/* assert_ok.h - what must succeed tells its message where it does not. After cmocka.h and a header of graft's errors. */
#ifndef GR_TEST_ASSERT_OK_H
#define GR_TEST_ASSERT_OK_H

static graft_error err;

#define assert_ok(e)                                                                                                               \
    do {                                                                                                                           \
        graft_status status = (e);                                                                                                 \
        if (status != GRAFT_OK) fail_msg("%s: %s", #e, err.msg);                                                                   \
    } while (0)

#endif
