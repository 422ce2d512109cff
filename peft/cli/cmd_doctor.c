/* graft doctor: what graft finds on this machine. */
#include <hdf5.h>
#include <jansson.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <sys/sysinfo.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <yaml.h>

#include "peft/cli/commands.h"

static void set_version(json_t *libraries, const char *name, int major, int minor, int patch) {
    char text[48];
    snprintf(text, sizeof text, "%d.%d.%d", major, minor, patch);
    json_object_set_new(libraries, name, json_string(text));
}

static json_t *library_versions(void) {
    json_t *libraries = json_object();
    int major, minor, patch;
    unsigned h5[3] = {0};
    char pcre[64] = "";
    unsigned xx = XXH_versionNumber();
    yaml_get_version(&major, &minor, &patch);
    set_version(libraries, "libyaml", major, minor, patch);
    json_object_set_new(libraries, "jansson", json_string(JANSSON_VERSION));
    H5get_libversion(&h5[0], &h5[1], &h5[2]);
    set_version(libraries, "hdf5", (int)h5[0], (int)h5[1], (int)h5[2]);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre);
    json_object_set_new(libraries, "pcre2", json_string(pcre));
    json_object_set_new(libraries, "utf8proc", json_string(utf8proc_version()));
    set_version(libraries, "xxhash", (int)(xx / 10000), (int)(xx / 100 % 100), (int)(xx % 100));
    return libraries;
}

graft_status gr_cmd_doctor(const gr_args *a, graft_error *err) {
    const char *name;
    struct sysinfo memory = {0};
    json_t *version;
    gr_machine machine;
    graft_status st = gr_machine_open(&machine, "auto", 0, err);
    if (st != GRAFT_OK) return st;
    sysinfo(&memory);
    double total = (double)memory.totalram * memory.mem_unit,
           available = (double)(memory.freeram + memory.bufferram) * memory.mem_unit;
    json_t *libraries = library_versions();
    const bool int8 = machine.device->int8, fp8 = machine.device->fp8;
    if (gr_args_has(a, "json")) {
        json_t *out = json_pack("{s:s,s:s,s:s?,s:s?,s:b,s:b,s:i,s:I,s:I,s:O}", "graft", GRAFT_VERSION, "device",
                                machine.device->level, "card", machine.device->about, "no_card", machine.no_card, "int8", int8,
                                "fp8", fp8, "threads", gr_threads_count(machine.threads), "memory_bytes", (json_int_t)total,
                                "free_bytes", (json_int_t)available, "libraries", libraries);
        json_dumpf(out, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(out);
    } else {
        const char *card = machine.device->about ? machine.device->about : machine.no_card;
        printf("graft      %s\ndevice     %s\ncard       %s\ncompute    exact%s%s\n", GRAFT_VERSION, machine.device->level,
               card ? card : "not asked for", int8 ? ", int8" : "", fp8 ? ", fp8" : "");
        printf("threads    %d\nmemory     %.1f GiB, %.1f GiB free\nlibraries ", gr_threads_count(machine.threads),
               total / 1073741824.0, available / 1073741824.0);
        json_object_foreach(libraries, name, version) printf(" %s %s", name, json_string_value(version));
        putchar('\n');
    }
    json_decref(libraries);
    gr_machine_close(&machine);
    return GRAFT_OK;
}
