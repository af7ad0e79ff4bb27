/* What the bindings assume of llama.cpp's headers, against the headers that were fetched. */
#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#include <stddef.h>
#include <stdio.h>

static int differences = 0;

static void check(const char * what, long long here, long long expected, const char * of) {
    if (here != expected) {
        printf("llama.cpp's %s has %s %lld where kvmerge's bindings have %lld: run 'make bindings'\n", what, of, here,
               expected);
        differences++;
    }
}

#define CONSTANT(name, value) check(#name, (long long)(name), value, "value");
#define STRUCT(name, bytes) check("struct " #name, (long long)sizeof(struct name), bytes, "size");
#define FIELD(type, name, offset, bytes)                                                                   \
    check("struct " #type ", field " #name ",", (long long)offsetof(struct type, name), offset, "offset"); \
    check("struct " #type ", field " #name ",", (long long)sizeof(((struct type *)0)->name), bytes, "size");

int main(void) {
#include "relied_on.inc"
    /* Written byte by byte (LongRope.java). */
    STRUCT(llama_model_kv_override, 264)
    FIELD(llama_model_kv_override, tag, 0, 4)
    FIELD(llama_model_kv_override, key, 4, 128)
    FIELD(llama_model_kv_override, val_i64, 136, 8)
    CONSTANT(LLAMA_KV_OVERRIDE_TYPE_INT, 0)
    return differences != 0;
}
