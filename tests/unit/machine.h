/* machine.h - the machine of a test program, opened for all of its tests: cmocka_run_group_tests(tests, open_machine,
 * close_machine). After cmocka.h and core/model/machine.h. */
#ifndef GR_TEST_MACHINE_H
#define GR_TEST_MACHINE_H

#include "tests/unit/assert_ok.h"

static gr_machine machine;

static int open_machine(void **state) {
    (void)state;
    assert_ok(gr_machine_open(&machine, "auto", 2, &err));
    return 0;
}

static int close_machine(void **state) {
    (void)state;
    gr_machine_close(&machine);
    return 0;
}

#endif
