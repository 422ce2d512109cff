#include "peft/recipe_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ENUM_KEY(section, name, fallback, choices, resume, help) static const gr_choice section##_##name[] = {choices{NULL, 0}};
#define C(constant, text)                                        {text, constant},
#include "peft/schema.def"

#define FIELD(section, name) offsetof(gr_recipe, section##_##name)
const gr_key gr_recipe_keys[GR_N_RECIPE_KEYS] = {
#define KEY(section, name, type, fallback, constraint, resume, help)                                                               \
    {#section, #name, fallback, constraint, help, GR_KEY_##type, GR_RESUME_##resume, FIELD(section, name), NULL},
#define ENUM_KEY(section, name, fallback, choices, resume, help)                                                                   \
    {#section, #name, fallback, &(choices)[1], help, GR_KEY_ENUM, GR_RESUME_##resume, FIELD(section, name), section##_##name},
#define C(constant, text) "|" text
#include "peft/schema.def"
};

void gr_key_range(const gr_key *k, double *min, double *max) {
    const char *dots = strstr(k->constraint, "..");
    *min = -INFINITY;
    *max = INFINITY;
    if (!dots) return;
    if (dots != k->constraint) *min = strtod(k->constraint, NULL);
    if (dots[2]) *max = strtod(dots + 2, NULL);
}

const char *gr_key_choice(const gr_key *k, int value) {
    const gr_choice *c = k->choices;
    while (c->name && c->value != value) c++;
    return c->name;
}

const gr_key *gr_recipe_key(const char *section, const char *name) {
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++)
        if (strcmp(gr_recipe_keys[i].section, section) == 0 && strcmp(gr_recipe_keys[i].name, name) == 0) return &gr_recipe_keys[i];
    return NULL;
}
