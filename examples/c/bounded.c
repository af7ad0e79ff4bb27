/*
 * Reads a text of any length in a llama.cpp context of CELLS + BLOCK cells, and goes on writing.
 *
 *     bounded MODEL.gguf TEXT.txt FOLDER-OF-LLAMA.CPP'S-LIBRARIES
 *
 * llama.cpp knows one position a cell. kvmerge lets each layer and KV head keep other tokens in its cells, so the
 * program has a table of its own: which cell holds which position, for each head. docs/architecture.md, "Packing",
 * says why that is right.
 */
#include <kvmerge.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELLS = 448, BLOCK = 64, ALL = CELLS + BLOCK, SINKS = 4, NEW_TOKENS = 24 }; /* ALL: llama.cpp pads to 256 */

typedef struct {
    int32_t cell, position;
    double mass;     /* attention that it got, decayed */
    double exposure; /* queries that could have given it some, likewise */
} entry;

static struct llama_context * context;
static kvmerge_observer * observer;
static int layers, heads_kv, used, position, pending;
static entry * table; /* [layer][KV head][ALL], in position order; [0, used) of each head */

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

/* The table learns of the block: which cells its tokens went to, and what attention every cell got. */
static void account(void) {
    kvmerge_block_stats stats;
    ok(kvmerge_observer_stats(observer, &stats));
    for (int pair = 0; pair < layers * heads_kv; pair++) {
        entry * head = table + (size_t) pair * ALL;
        for (int i = 0; i < used; i++) {
            head[i].mass *= .9;
            head[i].exposure = .9 * head[i].exposure + stats.n_tokens;
        }
        for (int t = 0; t < stats.n_tokens; t++) {
            entry e = {stats.token_cell[t], position - stats.n_tokens + t, 0, stats.n_tokens - t};
            head[used + t] = e;
        }
        for (int i = 0; i < used + stats.n_tokens; i++) {
            head[i].mass += stats.mass[(size_t) pair * ALL + head[i].cell];
        }
    }
    used += stats.n_tokens;
}

/* One head: `used` cells become CELLS. Those stay that llama.cpp keeps: 0 .. CELLS-2, and the newest token's. */
static void plan(int pair, int32_t * target, float * weight, int32_t * from, int32_t * dest) {
    entry * head = table + (size_t) pair * ALL;
    int32_t cells[ALL], group[ALL], pivot[ALL];
    double rate[ALL], sum[ALL];
    char taken[ALL] = {0};
    const int newest = head[used - 1].cell;
    for (int i = 0; i < used; i++) {
        cells[i] = head[i].cell;
        rate[i] = head[i].mass / head[i].exposure;
    }
    kvmerge_groups_params p = {0};
    p.n = used;
    p.first = SINKS;
    p.end = used - CELLS / 4; /* the newest stay as they are */
    p.operations = used - CELLS;
    p.largest_group = 8;
    p.key_cost = 1.5;
    p.rate = rate;
    ok(kvmerge_plan_cells(observer, pair / heads_kv, pair % heads_kv, cells, &p, group, NULL));
    for (int i = 0; i < used; i++) { /* group[i] is the first member of i's: the heaviest is to be its pivot */
        sum[i] = 0;
        pivot[i] = i;
    }
    for (int i = 0; i < used; i++) {
        if (group[i] >= 0) {
            const int g = group[i];
            sum[g] += rate[i];
            pivot[g] = rate[i] > rate[pivot[g]] ? i : pivot[g];
        }
    }
    for (int c = 0; c < ALL; c++) {
        target[c] = -1;
    }
    for (int i = 0; i < used; i++) {
        from[cells[i]] = head[i].position;
        if (group[i] >= 0) {
            const int g = group[i];
            target[cells[i]] = cells[pivot[g]];
            weight[cells[i]] = sum[g] > 0 ? (float) (rate[i] / sum[g]) : (float) (i == pivot[g]);
            taken[cells[i]] = pivot[g] == i;
        }
    }
    int kept = 0, free_cell = 0;
    entry next[ALL];
    for (int i = 0; i < used; i++) { /* pivots in cells that stay keep them, the others take what is free there */
        if (group[i] < 0 || pivot[group[i]] != i) {
            continue;
        }
        int to = cells[i];
        if (to > CELLS - 2 && to != newest) {
            while (taken[free_cell]) {
                free_cell++;
            }
            to = free_cell++;
        }
        dest[cells[i]] = to;
        next[kept] = head[i];
        next[kept].cell = to;
        next[kept].mass = sum[group[i]] * head[i].exposure; /* what all members got */
        kept++;
    }
    memcpy(head, next, kept * sizeof *next);
}

static void compress(void) {
    const size_t n = (size_t) layers * heads_kv * ALL;
    int32_t *target = array(n, 4), *from = array(n, 4), *dest = array(n, 4);
    float * weight = array(n, 4);
    for (int pair = 0; pair < layers * heads_kv; pair++) {
        const size_t at = (size_t) pair * ALL;
        plan(pair, target + at, weight + at, from + at, dest + at);
    }
    kvmerge_moves moves = {0};
    moves.target = target;
    moves.weight = weight;
    moves.position = from;
    moves.dest = dest;
    moves.pivot_frame = 1;
    ok(kvmerge_apply(observer, &moves));
    /* In llama.cpp's record, positions 0 .. CELLS-2 lie in the cells of those numbers, for good. */
    if (!llama_memory_seq_rm(llama_get_memory(context), 0, CELLS - 1, position - 1)) {
        fail("llama.cpp does not free the cells");
    }
    used = CELLS;
    free(target);
    free(from);
    free(dest);
    free(weight);
}

/* At most as many tokens as the block still takes. */
static void decode(llama_token * tokens, int n) {
    if (pending == 0) {
        ok(kvmerge_observer_begin(observer));
    }
    if (llama_decode(context, llama_batch_get_one(tokens, n)) != 0) {
        fail("llama.cpp cannot decode");
    }
    llama_synchronize(context);
    position += n;
    pending += n;
    if (pending == BLOCK) {
        account();
        if (used > CELLS) {
            compress();
        }
        pending = 0;
    }
}

static char * read_file(const char * name, long * size) {
    FILE * file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0 || (*size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0) {
        perror(name);
        exit(1);
    }
    char * text = array(*size + 1, 1);
    if (fread(text, 1, *size, file) != (size_t) *size) {
        perror(name);
        exit(1);
    }
    fclose(file);
    return text;
}

static void quiet(enum ggml_log_level level, const char * text, void * unused) {
    (void) unused;
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
        fail("the model has sliding windows: name the other layers in kvmerge_observer_params.layers");
    }
    layers = llama_model_n_layer(model);
    heads_kv = llama_model_n_head_kv(model);
    table = array((size_t) layers * heads_kv * ALL, sizeof *table);

    kvmerge_observer_params op = {0};
    op.n_layer = layers;
    op.n_head = llama_model_n_head(model);
    op.n_head_kv = heads_kv;
    op.n_cells = ALL;
    op.n_tokens = BLOCK;
    op.observe = KVMERGE_OBSERVE_MASS;
    op.bias = KVMERGE_BIAS_FOLDED;
    op.mass_power = 1.5f;
    op.query_decay = .7f;
    op.ridge = .05f;
    op.n_threads = 1;
    op.ggml.tensor_get = ggml_backend_tensor_get;
    op.ggml.tensor_set = ggml_backend_tensor_set;
    op.ggml.buffer_is_host = ggml_backend_buffer_is_host;
    ok(kvmerge_observer_create(&op, &observer));

    struct llama_context_params cp = llama_context_default_params();
    cp.n_ctx = ALL;
    cp.n_batch = cp.n_ubatch = BLOCK;
    cp.n_threads = cp.n_threads_batch = 1; /* for more, llama_attach_threadpool: an observed graph comes in pieces */
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.cb_eval = kvmerge_eval_callback;
    cp.cb_eval_user_data = observer;
    context = llama_init_from_model(model, cp);
    if (!context || llama_n_ctx(context) != ALL) {
        fail("llama.cpp cannot make the context");
    }

    long size;
    char * text = read_file(argv[2], &size);
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    llama_token * tokens = array(size + 16, sizeof *tokens);
    const int n = llama_tokenize(vocab, text, (int32_t) size, tokens, (int32_t) size + 16, true, false);
    if (n <= 0) {
        fail("the text has no tokens");
    }
    for (int at = 0; at < n; at += BLOCK) {
        decode(tokens + at, n - at < BLOCK ? n - at : BLOCK);
    }
    fprintf(stderr, "read %d tokens with %d cells\n", n, ALL);
    for (int i = 0; i < NEW_TOKENS; i++) { /* the likeliest token, each time */
        const float * logits = llama_get_logits_ith(context, -1);
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
        decode(&best, 1);
    }
    putchar('\n');
    llama_free(context);
    ok(kvmerge_observer_free(observer));
    llama_model_free(model);
    free(tokens);
    free(text);
    free(table);
    return 0;
}
