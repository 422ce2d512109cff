/* interrupt.h - what a signal handler can ask of a run and tell of it. It can reach nothing else: these are the process's mutable
 * globals. Private to peft/. */
#ifndef GR_INTERRUPT_H
#define GR_INTERRUPT_H

#include <stdbool.h>

/* The run saves a checkpoint after the current step and leaves; nothing when none is running. */
void gr_interrupt(void);
bool gr_interrupted(void);

/* What the process is doing. SETUP begins a run and forgets the one before. */
typedef enum gr_phase { GR_PHASE_IDLE, GR_PHASE_SETUP, GR_PHASE_STEPS, GR_PHASE_RESULT } gr_phase;
void gr_phase_set(gr_phase phase);
gr_phase gr_phase_get(void);

/* The folder of the run's newest whole checkpoint, NULL: none yet. */
void gr_last_checkpoint_set(const char *folder);
const char *gr_last_checkpoint(void);

#endif
