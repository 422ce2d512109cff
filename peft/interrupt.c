#include "peft/interrupt.h"

#include <signal.h>
#include <stdio.h>

/* Of the two texts the one that `saved` names (1 or 2; 0: none) is whole, the other may be in the making. */
static volatile sig_atomic_t phase, interrupted, saved;
static char saved_text[2][1024];

void gr_interrupt(void) {
    if (phase != GR_PHASE_IDLE) interrupted = 1;
}

bool gr_interrupted(void) { return interrupted != 0; }

void gr_phase_set(gr_phase next) {
    if (next == GR_PHASE_SETUP) saved = 0;
    phase = next;
    if (next == GR_PHASE_IDLE) interrupted = 0;
}

gr_phase gr_phase_get(void) { return (gr_phase)phase; }

void gr_last_checkpoint_set(const char *folder) {
    int next = saved == 1 ? 2 : 1;
    snprintf(saved_text[next - 1], sizeof saved_text[0], "%s", folder);
    saved = next;
}

const char *gr_last_checkpoint(void) { return saved ? saved_text[saved - 1] : NULL; }
