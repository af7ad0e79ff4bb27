/*
 * Reads a text of any length in a llama.cpp context of CELLS + BLOCK cells, and goes on writing.
 *
 *     bounded MODEL.gguf TEXT.txt FOLDER-OF-LLAMA.CPP'S-LIBRARIES
 *
 * What kvmerge needs is marked with a number: six steps.
 */
#include <llama.h> /* first: kvmerge.h fills in its entry points */

#include <kvmerge.h>
#include <stdio.h>
#include <stdlib.h>

enum { CELLS = 448, BLOCK = 64, NEW_TOKENS = 24 };

static void fail(const char * what) {
    fprintf(stderr, "bounded: %s\n", what);
    exit(1);
}

static void ok(kvmerge_status status) {
    if (status != KVMERGE_OK) {
        fail(kvmerge_last_error());
    }
}

static void * array(size_t n, size_t size) {
    void * p = calloc(n, size);
    if (!p) {
        fail("no memory");
    }
    return p;
}

static char * read_file(const char * name, long * size) {
    FILE * file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0 || (*size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0) {
        perror(name);
        exit(1);
    }
    char * text = array(*size + 1, 1);
    if (fread(text, 1, *size, file) != (size_t)*size) {
        perror(name);
        exit(1);
    }
    fclose(file);
    return text;
}

static void quiet(enum ggml_log_level level, const char * text, void * unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fail("usage: bounded MODEL.gguf TEXT.txt FOLDER-OF-LLAMA.CPP'S-LIBRARIES");
    }
    llama_log_set(quiet, NULL);
    llama_backend_init();
    ggml_backend_load_all_from_path(argv[3]);
    struct llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = 0;
    struct llama_model * model = llama_model_load_from_file(argv[1], mp);
    if (!model) {
        fail("llama.cpp cannot load the model");
    }
    if (llama_model_n_swa(model) > 0) {
        fail("the model has sliding windows: name the other layers in kvmerge_observer_params.layers, and set "
             "kvmerge_cache_params.keep_newest");
    }

    kvmerge_observer_params watch = kvmerge_observer_params_for(model, CELLS, BLOCK); /* 1: what sees the attention */
    kvmerge_observer * observer;
    ok(kvmerge_observer_create(&watch, &observer));

    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = watch.n_cells;
    cp.n_batch = cp.n_ubatch = BLOCK;
    cp.n_threads = cp.n_threads_batch = 1; /* for more, llama_attach_threadpool: an observed graph comes in pieces */
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.cb_eval = kvmerge_eval_callback; /* 2: llama.cpp shows it the graph */
    cp.cb_eval_user_data = observer;
    struct llama_context * context = llama_init_from_model(model, cp);
    if (!context) {
        fail("llama.cpp cannot make the context");
    }

    kvmerge_cache_params hold = kvmerge_cache_params_for(CELLS, BLOCK); /* 3: what holds sequence 0 within its cells */
    kvmerge_cache * cache;
    ok(kvmerge_cache_create(&hold, observer, context, 0, &cache));

    long size;
    char * text = read_file(argv[2], &size);
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    llama_token * tokens = array(size + 16, sizeof *tokens);
    const int n = llama_tokenize(vocab, text, (int32_t)size, tokens, (int32_t)size + 16, true, false);
    if (n <= 0) {
        fail("the text has no tokens");
    }
    const float * logits;
    ok(kvmerge_cache_decode(cache, tokens, n, &logits)); /* 4: in place of llama_decode */
    kvmerge_cache_used used;
    ok(kvmerge_cache_usage(cache, &used)); /* 5: how far it is */
    fprintf(stderr, "read %d tokens with %d cells, of which %d are in use\n", used.n_tokens, watch.n_cells,
            used.n_used);
    for (int i = 0; i < NEW_TOKENS; i++) { /* the likeliest token, each time */
        llama_token best = 0;
        for (llama_token t = 1; t < llama_vocab_n_tokens(vocab); t++) {
            best = logits[t] > logits[best] ? t : best;
        }
        char piece[256];
        const int bytes = llama_token_to_piece(vocab, best, piece, sizeof piece, 0, false);
        if (llama_vocab_is_eog(vocab, best) || bytes < 0) {
            break;
        }
        fwrite(piece, 1, bytes, stdout);
        ok(kvmerge_cache_decode(cache, &best, 1, &logits));
    }
    putchar('\n');
    ok(kvmerge_cache_free(cache)); /* 6 */
    llama_free(context);
    ok(kvmerge_observer_free(observer));
    llama_model_free(model);
    free(tokens);
    free(text);
    return 0;
}
