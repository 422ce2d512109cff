/* scripts.h - the scripts of characters, as far as learning a vocabulary wants to know them: letters by the blocks of Unicode. */
#ifndef GR_TEXT_SCRIPTS_H
#define GR_TEXT_SCRIPTS_H

#include "core/base/base.h"

enum {
    GR_SCRIPT_COMMON,    /* digits, punctuation, signs */
    GR_SCRIPT_INHERITED, /* marks: the script of what is before them */
    GR_SCRIPT_HAN,       /* kana among them, as SentencePiece has it */
    GR_SCRIPT_CJK_SIGN,  /* their punctuation and wide forms */
    GR_SCRIPT_HANGUL,
    GR_SCRIPT_LATIN,
    GR_SCRIPT_OTHER, /* letters of scripts without a name here */
    GR_SCRIPT_FIRST  /* the rest, by scripts.c's table */
};

uint8_t gr_script(uint32_t point);
/* Bits of scripts by their names with commas ("cjk", "latin,greek"): bit s stands for script s. BAD_USAGE that lists the names. */
graft_status gr_scripts_parse(uint64_t *bits, const char *names, graft_error *err);

#endif
