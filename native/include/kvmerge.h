/*
 * kvmerge: keep a llama.cpp context within a fixed number of KV cells, by merging and evicting in place.
 *
 * One observer watches one llama_context. It is llama.cpp's eval callback: it sees the attention of every layer as it
 * is computed, sums it up, and knows where K and V lie. kvmerge_apply() then carries out moves on those cells.
 *
 *     kvmerge_observer * obs;
 *     kvmerge_observer_create(&params, &obs);
 *     cparams.cb_eval = kvmerge_eval_callback;  cparams.cb_eval_user_data = obs;
 *     ... llama_init_from_model, then for each block of tokens:
 *     kvmerge_observer_begin(obs);  llama_decode(ctx, batch);  llama_synchronize(ctx);
 *     kvmerge_observer_stats(obs, &stats);    // decide what to keep
 *     kvmerge_apply(obs, &moves);             // rewrite the cells
 *     llama_memory_seq_rm(...);               // free the rest
 *
 * Rules that hold for every function here:
 *  - it returns a kvmerge_status; on anything but KVMERGE_OK, kvmerge_last_error() says what and why (per thread);
 *  - no exception and no abort crosses this border;
 *  - a handle is a number, not an address: null, foreign and freed ones are told from live ones without being followed,
 *    and answer ARGUMENT. A freed handle's number is not given out again (before 2^42 others);
 *  - arrays have to be as long as their comment says. A count that no array could have is refused: more cells than the
 *    cache has, and the limits given below. Nothing else tells how long a caller's array is;
 *  - nothing is written when an argument is refused. After NUMERIC, MEMORY or DEVICE an output array may be half full;
 *  - an observer is one thread's at a time: while a thread is inside a call, another thread's call answers STATE, and
 *    so does kvmerge_observer_free. kvmerge_read_cells, kvmerge_plan_cells, kvmerge_project_cells, kvmerge_rotation,
 *    kvmerge_query_moments, kvmerge_query_head_moments and kvmerge_observer_cache_info may run on several threads at
 *    once. Functions that take no observer may run on any;
 *  - an observer belongs to one llama_context. It reads and writes the cells where they lie, and nobody tells it when
 *    llama_free takes them away: after llama_free, call nothing with it but kvmerge_observer_free. (Or free it before:
 *    every later call, the callback's too, is an error then.) When it sees another context's cache, it answers STATE
 *    for good;
 *  - an observer's context holds one sequence. llama.cpp's graph does not say whose cells are whose: with several
 *    sequences in a unified cache (n_seq_max > 1 and kv_unified), moves would mix them, and where a mask shows it they
 *    are refused. Several sequences in streams of their own are observed by a group, below.
 *  - n_threads is the most threads that a call works on, the caller's among them. They come from one pool of the
 *    process, made at the first call that wants it, which holds no more than the machine has processors; where the
 *    system starts fewer, fewer do the work. Calls from several threads at once share it. A forked process starts one
 *    of its own. The library stays loaded after dlclose, for the pool sleeps in it.
 * Arrays are C order (last index fastest), sizes are in elements.
 */
#ifndef KVMERGE_H
#define KVMERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#    define KVMERGE_API __declspec(dllexport)
#else
#    define KVMERGE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_tensor;              /* ggml's; opaque here */
struct ggml_backend_buffer;      /* ggml's; opaque here */
struct ggml_backend_buffer_type; /* ggml's; opaque here */

struct llama_context;  /* llama.cpp's; opaque here */
struct llama_memory_i; /* llama.cpp's; opaque here */

typedef struct kvmerge_observer kvmerge_observer;
typedef struct kvmerge_cache kvmerge_cache;
typedef struct kvmerge_log kvmerge_log;

typedef int32_t kvmerge_status;

enum kvmerge_status_code {
    KVMERGE_OK = 0,
    KVMERGE_E_ARGUMENT = 1,    /* an argument is null, out of range or inconsistent */
    KVMERGE_E_UNSUPPORTED = 2, /* a cell type, layout or model that is not handled; nothing was touched */
    KVMERGE_E_STATE = 3,       /* called at the wrong time: before the first decode, while another thread is inside */
    KVMERGE_E_MEMORY = 4,
    KVMERGE_E_NUMERIC = 5, /* NaN or infinity where a finite number is needed */
    KVMERGE_E_DEVICE = 6,  /* a GPU that failed */
};

/* What an observer looks at. Each costs time, so ask for what the strategy needs.
 *
 * With flash attention, and in memory that is not the host's, the graph is not stopped: a node of it is made a copy of
 * each layer's queries. What they attend to is computed for all tokens of the block at once, by
 * kvmerge_observer_stats() (or before, when a call here or a decode changes keys that they see). That takes memory for
 * a block's queries, n_layer * n_tokens * n_head * head_dim floats, and for their masks: on the host, and on the
 * backend where that is another. Do not change keys behind the observer's back (llama_state_set_data,
 * llama_memory_clear) between a block's first token and its statistics. Without flash attention in host memory, where
 * capturing cannot be, and with KVMERGE_OBSERVE_STOP, the graph is stopped at each layer. */
enum kvmerge_observe_flag {
    KVMERGE_OBSERVE_CELLS = 0,    /* always: where K and V lie, which cells a batch fills */
    KVMERGE_OBSERVE_MASS = 1,     /* attention received by each cell */
    KVMERGE_OBSERVE_ENTROPY = 2,  /* normalised entropy of each attention row */
    KVMERGE_OBSERVE_QUERIES = 4,  /* decayed mean and second moment of the roped queries (of about 64 tokens a ubatch),
                                     for the folded bias */
    KVMERGE_OBSERVE_STOP = 8,     /* never capture: stop llama.cpp's graph at each layer */
    KVMERGE_OBSERVE_CAPTURE = 16, /* capture without flash attention too, where that shows the attention in host memory.
                                     Not with STOP */
    KVMERGE_OBSERVE_QUERY_HEADS = 32, /* QUERIES, and the same queries by query head, before their rotation. On the CPU
                                         alone: with KVMERGE_DEVICE_CPU */
};

/* How a merged cell gets the log of the mass that its members had (the Gibbs bias). */
enum kvmerge_bias_mode {
    KVMERGE_BIAS_NONE = 0,   /* it does not */
    KVMERGE_BIAS_FOLDED = 1, /* folded into its key along the queries' common direction: the graph is untouched */
    KVMERGE_BIAS_EXACT = 2,  /* added to the score node `kq-<il>` in the callback: exact, needs flash attention off */
};

/* Where the kernels run on cells and attention that are in a GPU's memory. */
enum kvmerge_device {
    KVMERGE_DEVICE_CPU = 0,  /* on copies in host memory, of any backend */
    KVMERGE_DEVICE_CUDA = 1, /* where they lie, with libkvmerge-cuda beside this library; other memory as above */
};

/* The entry points of the ggml that the caller's llama.cpp uses, so that this library links to none. */
typedef struct kvmerge_ggml {
    void (*tensor_get)(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
    void (*tensor_set)(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    bool (*buffer_is_host)(struct ggml_backend_buffer * buffer);
    /* What it takes to capture queries in memory that is neither the host's nor CUDA's. Any of them may be null: then
     * the graph is stopped there. */
    struct ggml_backend_buffer_type * (*buffer_get_type)(struct ggml_backend_buffer * buffer);
    struct ggml_backend_buffer * (*buft_alloc_buffer)(struct ggml_backend_buffer_type * type, size_t size);
    void * (*buffer_get_base)(struct ggml_backend_buffer * buffer);
    void (*buffer_clear)(struct ggml_backend_buffer * buffer, uint8_t value);
    void (*buffer_free)(struct ggml_backend_buffer * buffer);
} kvmerge_ggml;

typedef struct kvmerge_observer_params {
    int32_t n_layer;        /* layers to work on; each must have a KV cache of n_cells */
    int32_t n_head;         /* query heads a layer */
    int32_t n_head_kv;      /* KV heads a layer; divides n_head */
    int32_t n_cells;        /* cells of the sequence (llama_n_ctx_seq), the width of every per-cell array */
    int32_t n_tokens;       /* most tokens a block, the width of every per-token array. n_layer and n_head are at most
                             * 65536, n_layer * n_head_kv * n_cells and n_layer * n_head * n_tokens at most 2^40 */
    int32_t observe;        /* KVMERGE_OBSERVE_* or-ed together */
    int32_t bias;           /* KVMERGE_BIAS_*; FOLDED implies OBSERVE_QUERIES */
    float mass_power;       /* 1: the mass of a cell is the attention it received; 1.5, 2: the sum of that power, which
                             * favours cells that someone needed much over cells that everyone needs a little */
    int32_t mass_queries;   /* n: the mass is over the newest n queries of the block's last ubatch of n and more, and
                             * all that came after it; over all queries where no ubatch has as many, as in a generation
                             * token by token (n = 1 is exact there too). 0: over all queries */
    int32_t mass_sample;    /* n: where queries are captured, the mass is of about n of a block's, evenly spaced, each
                             * of which counts for those between. Not with mass_queries or entropies. 0: of all */
    float query_decay;      /* what is left of the query moments at a begin that ends a block of 128 tokens, 0..1; of n
                             * tokens query_decay^(n / 128). .7 is good */
    float ridge;            /* lambda of the fold direction, > 0; .05 is good */
    int32_t device;         /* KVMERGE_DEVICE_* */
    int32_t n_threads;      /* most threads that observing attention and kvmerge_apply use, 1..1024 */
    const int32_t * layers; /* [n_layer] their numbers in the model, ascending, where it has others that are to be left
                             * alone, such as layers with sliding windows; null: 0, 1, 2, ... All else that is called
                             * layer counts along this list */
    kvmerge_ggml ggml;
} kvmerge_observer_params;

/* What was seen since kvmerge_observer_begin(). Pointers are the observer's, valid until the next begin or free. */
typedef struct kvmerge_block_stats {
    int32_t n_tokens;           /* tokens decoded in this block */
    int32_t n_layer_seen;       /* layers whose attention was observed in full */
    const int32_t * token_cell; /* [n_tokens]: the cell that each token was written to */
    const float * mass;         /* [n_layer][n_head_kv][n_cells]: attention to mass_power, summed over queries and the
                                      query heads of the KV head; null when not observed, or before the
                                      first decode */
    const float * entropy;      /* [n_layer][n_head][params.n_tokens]: H(row) / log(visible cells), 0..1;
                                      null likewise. A row that sees one cell has entropy 0 */
    int64_t observe_nanos;      /* time spent in the callback */
} kvmerge_block_stats;

/* Where the cells lie, as read from the graph. Filled after the first decode. */
typedef struct kvmerge_cache_info {
    int32_t n_cells;      /* cells allocated */
    int32_t head_dim_k;   /* elements a key */
    int32_t head_dim_v;   /* elements a value */
    int32_t v_transposed; /* 1: flash attention off, V is [n_embd][n_cells] */
    int64_t bytes;        /* K and V of the sequence in all layers of the model, those left alone too */
    char type_k[16];      /* "f16", "f32", ... */
    char type_v[16];
    char device[16]; /* whose kernels work on them: "CPU" or "CUDA" */
} kvmerge_cache_info;

/* The rotation (RoPE, Su et al. 2021) that a layer's keys carry in the cache, at n_rot/2 frequencies. */
typedef struct kvmerge_key_rotation {
    int32_t n_rot;    /* rotated dimensions of a key, even; 0: the keys carry no rotation */
    int32_t neox;     /* 1: dimension i turns with i + n_rot/2; 0: 2i with 2i + 1 */
    int32_t hadamard; /* size of the Hadamard matrices that the rotated keys were multiplied by for storage; 0: none */
} kvmerge_key_rotation;

/*
 * The plans of all layers and KV heads, as cell numbers. All arrays are [n_layer][n_head_kv][n_cells], indexed by cell:
 *   target[c]    -1: the cell is evicted, or was not in use; p: its content goes into the group of cell p, its pivot.
 *                A pivot has target[p] == p. A kept cell is a group of one.
 *   weight[c]    share in its group's weighted mean, >= 0, the shares of a group sum to 1 (within 1e-3)
 *   value_weight[c]  the same for the value, where it is another than the key's; any finite number, and no sum is asked
 *                for
 *   position[c]  the position whose RoPE rotation the cached key carries
 *   new_position[c]  for a pivot: the position that its group's key is to carry the rotation of
 *   dest[c]      for a pivot: the cell to write the group to; distinct within the head
 */
typedef struct kvmerge_moves {
    const int32_t * target;
    const float * weight;
    const float * value_weight; /* null: as weight */
    const int32_t * position;
    const int32_t * dest;
    const int32_t * new_position; /* null: pivots keep their positions */
    int32_t pivot_frame; /* 1: rotate each key to the pivot's position before averaging; 0: average as cached */
} kvmerge_moves;
typedef struct kvmerge_moves kvmerge_plan; /* its name in 0.1; 0.3 has it no more */

/* ---- the library ------------------------------------------------------------------------------------------------ */

/* Version of this library, "major.minor.patch". */
KVMERGE_API const char * kvmerge_version(void);
/* The instruction set its kernels run with on this machine: "avx512", "avx2", "neon" or "generic". It is the best
 * that the CPU has, or the one that the environment variable KVMERGE_ISA names, read at the first call. Where that
 * is not there it is "", and every function that needs kernels returns UNSUPPORTED and says what there is. */
KVMERGE_API const char * kvmerge_isa(void);
/* The message of this thread's last error; "" when there was none. Valid until this thread's next call. */
KVMERGE_API const char * kvmerge_last_error(void);
/* Every function's signature and every struct's fields, one a line, as this library was compiled: what bindings in
 * other languages are tested against. */
KVMERGE_API const char * kvmerge_abi(void);

/* Whether a KVMERGE_DEVICE_*, and what KVMERGE_ISA names, can be used. Errors: ARGUMENT; UNSUPPORTED, and the
 * message says what is missing. */
KVMERGE_API kvmerge_status kvmerge_device_check(int32_t device);

/* ---- observing -------------------------------------------------------------------------------------------------- */

/* Creates an observer, which takes little memory before the first decode. Errors: ARGUMENT, UNSUPPORTED (a device
 * that is not there), MEMORY (4096 observers are alive, too). */
KVMERGE_API kvmerge_status kvmerge_observer_create(const kvmerge_observer_params * params, kvmerge_observer ** out);
/* Errors: ARGUMENT, STATE while a thread is inside a call with it. Right before llama_free or right after. A group's
 * handle frees its streams' observers as well, or none of them; a stream's handle alone is refused. */
KVMERGE_API kvmerge_status kvmerge_observer_free(kvmerge_observer * observer);

/*
 * Several sequences: an observer for each stream of a context that is made with n_seq_max = n_streams and kv_unified =
 * false. Sequence i is stream i, which has cells of its own, and streams[i] is its observer: to it they are all there
 * is. So cells are numbered within a stream, params.n_cells is a sequence's (llama_n_ctx_seq), params.n_tokens a
 * sequence's block, and blocks begin and end independently of other streams'.
 *
 *     kvmerge_observer * group, * streams[8];
 *     kvmerge_observer_create_group(&params, 8, &group, streams);
 *     cparams.n_seq_max = 8;  cparams.kv_unified = false;
 *     cparams.cb_eval = kvmerge_eval_callback;  cparams.cb_eval_user_data = group;
 *     ... llama_decode of a batch with tokens of some sequences
 *     kvmerge_observer_stats(streams[3], &stats);  kvmerge_apply(streams[3], &moves);
 *     llama_memory_seq_rm(memory, 3, ...);  kvmerge_observer_begin(streams[3]);
 *
 * or with a cache of each: kvmerge_cache_create(&p, streams[3], context, 3, &cache).
 *
 * The group's handle is for llama.cpp and kvmerge_observer_free; other calls answer ARGUMENT to it. The callback
 * enters the observers of the sequences that llama.cpp decodes, and all of them as a ubatch begins: none may be inside
 * a call then. One that is misses it, which is its own next error (STATE) and nobody else's. Between decodes, different
 * streams may be called on different threads. An error of one stream leaves the others' blocks whole; so does
 * an aborted llama_decode, but for the streams whose tokens were in it. llama.cpp shifts the positions of all streams
 * in one graph, which makes all statistics due.
 *
 * llama.cpp computes neighbouring streams with equally many tokens in one ubatch: put a batch's tokens in the order of
 * their sequences, and give sequences from 0 on without a gap. A sequence that the batch leaves out cuts it in two, and
 * so do different lengths. (params.mass_queries counts in such ubatches: its last queries may be more than alone.)
 *
 * group: one handle; streams: [n_streams]. n_streams: 1..256. Errors: as kvmerge_observer_create.
 */
KVMERGE_API kvmerge_status kvmerge_observer_create_group(const kvmerge_observer_params * params, int32_t n_streams,
                                                         kvmerge_observer ** group, kvmerge_observer ** streams);

/* llama_context_params.cb_eval, with the observer as user data. Always lets the graph go on; what went wrong is
 * reported by kvmerge_observer_stats(). A host with a callback of its own hands every node on in both phases, and
 * asks for those that either wants: nodes that this one did not ask for it leaves alone. With a handle that is none
 * it does nothing. */
KVMERGE_API bool kvmerge_eval_callback(struct ggml_tensor * tensor, bool ask, void * observer);

/* Starts a block: forgets the tokens, mass and entropies seen, decays the query moments. */
KVMERGE_API kvmerge_status kvmerge_observer_begin(kvmerge_observer * observer);
/* After a decode that failed or was aborted, where no other came since begin: forgets it, as if the block had just
 * begun. Where the graph is stopped (KVMERGE_OBSERVE_STOP, or no room to capture) the query moments keep queries that
 * had come. */
KVMERGE_API kvmerge_status kvmerge_observer_forget(kvmerge_observer * observer);
/* Errors: whatever the callback met since begin (UNSUPPORTED: a layout it cannot read, a cache smaller than n_cells by
 * 256 and more; NUMERIC: attention with NaN; STATE: another thread was inside a call meanwhile, another context). */
KVMERGE_API kvmerge_status kvmerge_observer_stats(kvmerge_observer * observer, kvmerge_block_stats * out);
/* Errors: STATE before the first decode. */
KVMERGE_API kvmerge_status kvmerge_observer_cache_info(kvmerge_observer * observer, kvmerge_cache_info * out);

/* Mean and second moment of the roped queries of a KV head's query heads, decayed by query_decay, in the frame of the
 * cached keys. mean: [head_dim_k], second: [head_dim_k][head_dim_k]. Errors: STATE when no queries
 * were observed. */
KVMERGE_API kvmerge_status kvmerge_query_moments(kvmerge_observer * observer, int32_t layer, int32_t kv_head,
                                                 float * mean, float * second);

/* Mean and second moment of one query head's queries as they were before their rotation (RoPE) and any Hadamard matrix,
 * times the scale of the scores: their product with a key that carries no rotation is a logit. Of the same queries as
 * above, decayed alike. head: 0 .. n_head - 1. mean: [head_dim_k], second: [head_dim_k][head_dim_k]. Errors: STATE when
 * no queries were observed, or not with KVMERGE_OBSERVE_QUERY_HEADS; ARGUMENT. */
KVMERGE_API kvmerge_status kvmerge_query_head_moments(kvmerge_observer * observer, int32_t layer, int32_t head,
                                                      float * mean, float * second);

/* How a layer's cached keys are rotated. frequency: [head_dim_k / 2], of which n_rot/2 are written: radians a
 * position; may be null. Errors: STATE before the first decode, ARGUMENT. */
KVMERGE_API kvmerge_status kvmerge_rotation(kvmerge_observer * observer, int32_t layer, kvmerge_key_rotation * out,
                                            double * frequency);

/* ---- cells ------------------------------------------------------------------------------------------------------ */

/* Reads the cells `cells[0..n)` of one layer and KV head as F32. keys: [n][head_dim_k], values: [n][head_dim_v];
 * either may be null. A cell may be there twice. Errors: STATE, ARGUMENT (n above the cache's cells, too). */
KVMERGE_API kvmerge_status kvmerge_read_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head,
                                              const int32_t * cells, int32_t n, float * keys, float * values);
/* The inverse of kvmerge_read_cells: rounds to the cells' type. Errors: STATE, ARGUMENT (a cell that is there
 * twice, too), NUMERIC (a NaN or an infinity). */
KVMERGE_API kvmerge_status kvmerge_write_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head,
                                               const int32_t * cells, int32_t n, const float * keys,
                                               const float * values);
/* What a log-linear model of attention takes from cells themselves. product[i]: weight . K_i, with the key as it
 * was before its rotation to position[i]; length[i]: |V_i|. weight: [head_dim_k]; the others: [n]. Errors: STATE,
 * ARGUMENT, NUMERIC (in weight). */
KVMERGE_API kvmerge_status kvmerge_project_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head,
                                                 const int32_t * cells, const int32_t * position, int32_t n,
                                                 const float * weight, float * product, float * length);
/* Carries out moves: rewrites K and V in place. All moves are checked before the first cell is written. K' = sum w_i
 * R(p_pivot - p_i) K_i, V' = sum w_i V_i, bias H(w) = -sum w_i log w_i as params.bias says. Errors: STATE, ARGUMENT
 * (names layer, head and cell; a key that has more than 2^31 - 1 positions to go, too), NUMERIC (queries with NaN
 * to fold a bias along). All memory is there before the first cell is written; should writing fail all the same
 * (DEVICE, say), every later call on cells answers STATE, since nobody knows what they hold. */
KVMERGE_API kvmerge_status kvmerge_apply(kvmerge_observer * observer, const kvmerge_moves * moves);

/* ---- planning --------------------------------------------------------------------------------------------------- */

/* Cells of one layer and KV head in position order, and how many of them have to go. */
typedef struct kvmerge_groups_params {
    int32_t n;
    int32_t head_dim_k;
    int32_t head_dim_v;
    int32_t first; /* cells [first, end) may be merged and dropped: after the sinks, before the newest */
    int32_t end;
    int32_t operations;    /* 0 .. end - first: each leaves a cell less */
    int32_t largest_group; /* most cells that become one, >= 1 */
    double key_cost;       /* >= 0: how much a distance between keys costs */
    const float * keys;    /* [n][head_dim_k] */
    const float * values;  /* [n][head_dim_v] */
    const double * rate;   /* [n], >= 0: attention that a query is expected to give each cell */
} kvmerge_groups_params;

/* The attention that each of n cells, in position order, is expected to get from a query to come, by a log-linear
 * model of what it got so far: exp(prior_i + w[0] log r_i + w[1] log r_{i-1} + w[2] log r_{i+1} + w[3] log(now -
 * position_i)), r = rate + least; at most e^88. The first and the last cell are their own neighbours. Seven digits.
 * n: 1 .. 2^27. Errors: ARGUMENT (a position that is not before now), NUMERIC (a rate that is negative, and
 * whatever is not finite). */
KVMERGE_API kvmerge_status kvmerge_expected_attention(int32_t n, const double * rate, const float * prior,
                                                      const int32_t * position, int32_t now, double least,
                                                      const float w[4], double * expected);

/* Which cells to drop and which to merge with their neighbours: the cheapest operation, again and again. With m the
 * rate, w_a = m_a / (m_a + m_b), V_mean the mean of V weighted by m and sigma^2 = key_cost |K_a - K_b|^2 / d, the
 * output of attention changes by about
 *   dropping a:      m_a |V_a - V_mean|
 *   merging a and b: (m_a + m_b) w_a w_b sigma (|V_a - V_b| + sigma/2 |w_a V_a + w_b V_b - V_mean|)
 * and what nobody attends to is not merged. group: [n], the first member of each cell's group, or -1 for a dropped
 * one. cost: the sum of the prices; may be null. n: 1 .. 2^27, head dimensions to 65536. Keys and values that are
 * not finite are the dearest to touch. Errors: ARGUMENT, NUMERIC (a rate that is negative or not finite). */
KVMERGE_API kvmerge_status kvmerge_plan_groups(const kvmerge_groups_params * params, int32_t * group, double * cost);
/* The same of cells where they lie, which is faster than to read them first: `cells[0..params->n)` of one layer and
 * KV head, in position order. keys, values and the head dimensions of params are not looked at. What distances one
 * call has worked out serve the next, until a cell is written by a decode, a shift of positions or this library.
 * After anything else (llama_state_set_data, say) plan over kvmerge_read_cells instead, or make a new observer.
 * Errors: STATE, ARGUMENT, UNSUPPORTED, NUMERIC. */
KVMERGE_API kvmerge_status kvmerge_plan_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head,
                                              const int32_t * cells, const kvmerge_groups_params * params,
                                              int32_t * group, double * cost);

/* ---- a cache ---------------------------------------------------------------------------------------------------- */

/*
 * A kvmerge_cache holds one sequence of a llama_context within a number of cells. It has the table of what each cell
 * holds, decides what stays, has the cells rewritten and frees the others in llama.cpp's record. A program that
 * includes llama.h before this header needs no more than this:
 *
 *     kvmerge_observer_params op = kvmerge_observer_params_for(model, CELLS, BLOCK);
 *     kvmerge_observer_create(&op, &observer);
 *     cparams.n_ctx = op.n_cells;  cparams.n_batch = cparams.n_ubatch = BLOCK;
 *     cparams.cb_eval = kvmerge_eval_callback;  cparams.cb_eval_user_data = observer;
 *     context = llama_init_from_model(model, cparams);
 *     kvmerge_cache_params p = kvmerge_cache_params_for(CELLS, BLOCK);
 *     kvmerge_cache_create(&p, observer, context, 0, &cache);
 *     kvmerge_cache_decode(cache, tokens, n, &logits);      // again and again: a prompt, then a token at a time
 *     kvmerge_cache_free(cache);  llama_free(context);  kvmerge_observer_free(observer);
 *
 * llama.cpp reads prompts faster in ubatches of 512 than of a block: for those the observer is made for (CELLS, 512),
 * n_batch and n_ubatch are 512, and p.n_prompt_block = 512. That takes cells for 512 tokens instead of a block.
 *
 * A program with a llama_decode of its own calls kvmerge_observer_begin, decodes at most as many tokens as the larger
 * of n_block and n_prompt_block (in one batch or several), calls kvmerge_cache_take, and while kvmerge_cache_usage says
 * over: kvmerge_cache_plan or, with plans of its own, kvmerge_cache_stage for every layer and KV head; then
 * kvmerge_cache_commit.
 *
 *  - Packing: llama.cpp knows one position a cell, and masks by comparing positions. All content of a cell is older
 * than every token to come, so each layer and KV head may keep other tokens in its cells: the table is the record of
 * that. After each compression the cells 0 .. n_cells-2 stay, and the newest token's own; the others are freed as one
 * range of positions. With keep_newest the cells of the newest positions stay instead.
 *  - Ownership: the cache uses the observer and the context, and owns neither. Free it before them. Nobody else may
 * free, move or shift cells of its sequence, nor decode into it but as above.
 *  - Threads: as an observer. kvmerge_cache_stage (of different heads), kvmerge_cache_columns, kvmerge_cache_fates and
 *    kvmerge_cache_usage may run on several threads at once. What a call does to the observer and the context counts as
 *    a call with them.
 *  - What fails before the first cell is written changes nothing, and may be called again. Where writing or freeing
 * cells fails halfway, the cache is broken: every later call but kvmerge_cache_free and kvmerge_cache_clear answers
 * STATE.
 */

/* The entry points of the caller's llama.cpp, so that this library links to none. */
typedef struct kvmerge_llama {
    void (*decode)(void); /* llama_decode, cast: it takes a struct by value that is not declared here */
    void (*synchronize)(struct llama_context * context);
    uint32_t (*n_ctx_seq)(const struct llama_context * context);
    uint32_t (*n_seq_max)(const struct llama_context * context);
    uint32_t (*n_batch)(const struct llama_context * context);
    float * (*get_logits_ith)(struct llama_context * context, int32_t i);
    struct llama_memory_i * (*get_memory)(const struct llama_context * context);
    bool (*memory_seq_rm)(struct llama_memory_i * memory, int32_t seq_id, int32_t from, int32_t to);
    int32_t (*memory_seq_pos_max)(struct llama_memory_i * memory, int32_t seq_id);
    size_t (*state_seq_get_size)(struct llama_context * context, int32_t seq_id);
    size_t (*state_seq_get_data)(struct llama_context * context, uint8_t * to, size_t size, int32_t seq_id);
    size_t (*state_seq_set_data)(struct llama_context * context, const uint8_t * from, size_t size, int32_t seq_id);
} kvmerge_llama;

typedef struct kvmerge_cache_params {
    int32_t n_cells;        /* cells that stay after each compression, 2 and more; 0: all stay, nothing is planned */
    int32_t n_block;        /* most tokens between two compressions; n_cells and the larger of n_block and
                             * n_prompt_block are together at most llama_n_ctx_seq, and both blocks at most the
                             * observer's n_tokens */
    int32_t n_prompt_block; /* the same while a prompt is read, which llama.cpp does faster in ubatches of 512: a call
                             * of kvmerge_cache_decode with more than n_block tokens. Less than n_block counts as that,
                             * and more than llama_n_batch as that */
    int32_t position_range; /* 0: positions grow with the text. Else at most so many are used, n_cells and more: once
                             * the text is longer, each compression rotates every key back, so that a text may be longer
                             * than the positions that the model was trained on */
    int32_t keep_newest;    /* 1: for a model with sliding windows. n_cells has to hold a window, position_range be 0 */
    int32_t pivot_frame;    /* as in kvmerge_moves */
    int32_t record_fates;   /* 1: for kvmerge_cache_fates; 4 bytes a token, layer and KV head */
    double mass_decay;      /* what a block of 128 tokens leaves of a cell's mass and exposure, 0..1; one of n tokens
                             * leaves mass_decay^(n / 128) */
    /* What kvmerge_cache_plan and kvmerge_cache_decode decide with: entropy-merged. */
    double recent_share;   /* share of the cells that the newest tokens have for themselves, 0..1 */
    double key_cost;       /* as in kvmerge_groups_params */
    int32_t sinks;         /* first tokens behind the pinned ones, never merged or dropped */
    int32_t largest_group; /* as in kvmerge_groups_params */
    /* Weights of a log-linear model of the attention to come, for each layer and KV head: w_0, of log r_i, log r_{i-1},
     * log r_{i+1}, log age and log |V_i| (kvmerge_expected_attention), then of the key's elements. null: none, and
     * cells are expected to get what they got. [n_layer][n_head_kv][6 + calibration_dim]; copied */
    const float * calibration;
    int32_t calibration_dim; /* the keys' elements */
    kvmerge_llama llama;
} kvmerge_cache_params;

/* Fills in what docs/performance.md was measured with: 4 sinks, a quarter for the newest, groups of at most 8,
 * mass_decay .9, pivot_frame 1, and key_cost 1.5, which goes without a calibration and with an observer's mass_power
 * of 1.5. With a calibration key_cost .8 is good, and the mass_power that it is for. The rest is 0. */
KVMERGE_API kvmerge_status kvmerge_cache_defaults(kvmerge_cache_params * out);

/* Makes a cache of an empty sequence, below llama_n_seq_max. Errors: ARGUMENT (what does not go together, too), MEMORY.
 */
KVMERGE_API kvmerge_status kvmerge_cache_create(const kvmerge_cache_params * params, kvmerge_observer * observer,
                                                struct llama_context * context, int32_t seq_id, kvmerge_cache ** out);
/* Errors: ARGUMENT, STATE while a thread is inside a call with it. */
KVMERGE_API kvmerge_status kvmerge_cache_free(kvmerge_cache * cache);

/* Decodes n tokens after what is there, in as many batches as it takes, and compresses whenever n_block have come
 * together. While more than n_block tokens are left they are a prompt, read n_prompt_block at a time; what was pending
 * is compressed before. logits: the last token's, [vocabulary], llama.cpp's memory, valid until its next decode; may be
 * null. Errors: ARGUMENT; STATE (broken; llama_decode failed); what planning and kvmerge_apply meet. Whole batches
 * before the one that failed are decoded: kvmerge_cache_usage says how many tokens are. Where one of them is in the
 * block of the one that failed, and the observer saw some of that, the cache is broken. */
KVMERGE_API kvmerge_status kvmerge_cache_decode(kvmerge_cache * cache, const int32_t * tokens, int32_t n,
                                                const float ** logits);
/* Takes account of what kvmerge_cache_decode decoded since the last compression, and compresses if that is more than
 * stays: before the columns or fates are asked for in the midst of a block. On a GPU it also waits until cells are
 * rewritten. */
KVMERGE_API kvmerge_status kvmerge_cache_flush(kvmerge_cache * cache);

/* Takes n_tokens that the caller has decoded since kvmerge_observer_begin into the table. stats: what the observer saw
 * of them; may be null. Its mass and entropy are null where the cache keeps its table on a GPU. Errors: whatever
 * kvmerge_observer_stats answers (kvmerge_cache_commit does so of NaN in attention on a GPU); UNSUPPORTED where the
 * graph showed other tokens, or not all attention; ARGUMENT, for a block that was taken before, too. */
KVMERGE_API kvmerge_status kvmerge_cache_take(kvmerge_cache * cache, int32_t n_tokens, kvmerge_block_stats * stats);

/* How far a cache is. */
typedef struct kvmerge_cache_used {
    int32_t n_tokens; /* taken into the table, or decoded by kvmerge_cache_decode */
    int32_t n_used;   /* cells in use */
    int32_t n_pinned; /* of them, cells that are pinned */
    int32_t position; /* of the next token, for llama.cpp: n_tokens but with a position range */
    int32_t over;     /* 1: the table has more cells than are to stay, and compressing is due */
    int32_t broken;   /* 1: see above */
    int64_t bytes; /* all that kvmerge keeps in memory for the sequence, on devices too: the table, plans and what the
                      observer has, captured queries among it, as of the last block */
} kvmerge_cache_used;
KVMERGE_API kvmerge_status kvmerge_cache_usage(kvmerge_cache * cache, kvmerge_cache_used * out);

/* What is known of the cells of one layer and KV head, in position order, [n] each. The pointers are the cache's, valid
 * until its next call that is not beside others. */
typedef struct kvmerge_cache_column {
    int32_t n;
    int32_t n_pinned;         /* the first of them */
    const int32_t * cell;     /* its number */
    const int32_t * position; /* of its token in the text, the pivot's where several are merged */
    const int32_t * frame;    /* the position whose rotation its key carries */
    const float * mass;       /* attention received, decayed */
    const float * exposure;   /* queries that could have given it some, decayed */
    const float * entropy;    /* of the token's own row, mean over the query heads; of merged ones weighted */
    const int32_t * count;    /* tokens merged into it, 1 for a plain one */
    const float * prior;      /* what the calibration knows of the token itself; of merged ones weighted; 0 without */
} kvmerge_cache_column;
KVMERGE_API kvmerge_status kvmerge_cache_columns(kvmerge_cache * cache, int32_t layer, int32_t kv_head,
                                                 kvmerge_cache_column * out);

/* Takes a plan for one layer and KV head, when compressing is due. Index i is the i-th cell behind the pinned ones, in
 * position order, n of them. target[i] == i: it stays, and is the pivot of its group; p: it is merged into pivot p; -1:
 * it is dropped. weight[i]: its share in its group's weighted mean, the shares of a group sum to 1. value_weight: the
 * same for values; null: as weight. There must be n_cells - n_pinned groups, and the newest cell stays alone. A second
 * plan for a head replaces the first. Errors: STATE when nothing is due, ARGUMENT. */
KVMERGE_API kvmerge_status kvmerge_cache_stage(kvmerge_cache * cache, int32_t layer, int32_t kv_head, int32_t n,
                                               const int32_t * target, const float * weight,
                                               const float * value_weight);
/* Plans all layers and KV heads by the default strategy, on the observer's threads. Errors: STATE when nothing is due,
 * ARGUMENT where the observer does not observe the mass, and what kvmerge_plan_cells answers. */
KVMERGE_API kvmerge_status kvmerge_cache_plan(kvmerge_cache * cache);
/* Carries out the plans: rewrites the cells, frees the others in llama.cpp's record, and moves the table. The groups of
 * a head come in their pivots' order. On a GPU it returns before the cells are rewritten: what of this library uses
 * them next waits, the callback before llama.cpp's next graph too. Call kvmerge_cache_flush before other functions of
 * llama.cpp that read cells, as llama_state_seq_get_data does. Where rewriting fails, the next call that waits answers
 * DEVICE, and the cache is broken. Errors: STATE (nothing due, a head without a plan), what kvmerge_apply answers. */
KVMERGE_API kvmerge_status kvmerge_cache_commit(kvmerge_cache * cache);

/* Pins what was read so far: it is never dropped or merged, and plans do not see it. Takes account of what
 * kvmerge_cache_decode decoded since the last compression. Errors: ARGUMENT when fewer than n_fewest cells would be
 * left to plan with, 2 and more. */
KVMERGE_API kvmerge_status kvmerge_cache_pin(kvmerge_cache * cache, int32_t n_fewest);
/* Forgets everything: the table, the pins, the query moments, and the sequence's cells in llama.cpp's record. Errors:
 * STATE where llama.cpp does not free them. */
KVMERGE_API kvmerge_status kvmerge_cache_clear(kvmerge_cache * cache);

/* What became of tokens [first, first + n) of the text, for one layer and KV head. fate: [n], the token's own number
 * where it is kept, as all of a block that is not full yet; the number of the token into whose cell it was merged; -1
 * where it is dropped, by itself or with that cell. Errors: STATE when fates are not recorded, ARGUMENT. */
KVMERGE_API kvmerge_status kvmerge_cache_fates(kvmerge_cache * cache, int32_t layer, int32_t kv_head, int32_t first,
                                               int32_t n, int32_t * fate);

/* The whole state in bytes: cells as they lie in memory, the table, the query moments, llama.cpp's positions. Not the
 * last logits. Both functions take account of what kvmerge_cache_decode decoded since the last compression. The bytes
 * are of the same size until something is decoded. Errors: MEMORY; STATE (llama.cpp's state has a layout that is not
 * known; with keep_newest, tokens that the observer has not seen, too). */
KVMERGE_API kvmerge_status kvmerge_cache_state_size(kvmerge_cache * cache, size_t * size);
KVMERGE_API kvmerge_status kvmerge_cache_save(kvmerge_cache * cache, void * to, size_t size);
/* Takes over a state in place of what there is. A cache of the same params, of a context of the same model and kinds of
 * cells, goes on with the same bits as the one that was saved. All is checked before anything changes. A cache whose
 * observer has seen no decode yet decodes a token first, which leaves no trace. With keep_newest, the windows have to
 * have as many cells, which llama.cpp makes of a window and an ubatch. Errors: ARGUMENT (the bytes are no state,
 * damaged, cut short, or of a cache of another kind, and the message says which), MEMORY, STATE. */
KVMERGE_API kvmerge_status kvmerge_cache_restore(kvmerge_cache * cache, const void * from, size_t size);

#ifdef LLAMA_H /* llama.h was included before this header: its entry points and a model's shape, filled in */

static inline kvmerge_llama kvmerge_llama_entries(void) {
    kvmerge_llama e;
    e.decode = (void (*)(void))llama_decode;
    e.synchronize = llama_synchronize;
    e.n_ctx_seq = llama_n_ctx_seq;
    e.n_seq_max = llama_n_seq_max;
    e.n_batch = llama_n_batch;
    e.get_logits_ith = llama_get_logits_ith;
    e.get_memory = llama_get_memory;
    e.memory_seq_rm = llama_memory_seq_rm;
    e.memory_seq_pos_max = llama_memory_seq_pos_max;
    e.state_seq_get_size = llama_state_seq_get_size;
    e.state_seq_get_data = llama_state_seq_get_data;
    e.state_seq_set_data = llama_state_seq_set_data;
    return e;
}

/* An observer of a whole model, as the default strategy needs it: n_cells is what llama.cpp makes of the sum. */
static inline kvmerge_observer_params kvmerge_observer_params_for(const struct llama_model * model, int32_t n_cells,
                                                                  int32_t n_block) {
    kvmerge_observer_params p;
    p.n_layer = llama_model_n_layer(model);
    p.n_head = llama_model_n_head(model);
    p.n_head_kv = llama_model_n_head_kv(model);
    p.n_cells = n_cells < 0 || n_block < 0 || n_cells > INT32_MAX - 255 - n_block
                    ? 0 /* no context has so many: refused when the observer is made */
                    : (n_cells + n_block + 255) / 256 * 256;
    p.n_tokens = n_block;
    p.observe = KVMERGE_OBSERVE_MASS;
    p.bias = KVMERGE_BIAS_FOLDED;
    p.mass_power = 1.5f;
    p.mass_queries = 0;
    p.mass_sample = 32;
    p.query_decay = .7f;
    p.ridge = .05f;
    p.device = KVMERGE_DEVICE_CPU;
    p.n_threads = 1;
    p.layers = 0;
    p.ggml.tensor_get = ggml_backend_tensor_get;
    p.ggml.tensor_set = ggml_backend_tensor_set;
    p.ggml.buffer_is_host = ggml_backend_buffer_is_host;
    p.ggml.buffer_get_type = ggml_backend_buffer_get_type;
    p.ggml.buft_alloc_buffer = ggml_backend_buft_alloc_buffer;
    p.ggml.buffer_get_base = ggml_backend_buffer_get_base;
    p.ggml.buffer_clear = ggml_backend_buffer_clear;
    p.ggml.buffer_free = ggml_backend_buffer_free;
    return p;
}

static inline kvmerge_cache_params kvmerge_cache_params_for(int32_t n_cells, int32_t n_block) {
    kvmerge_cache_params p;
    kvmerge_cache_defaults(&p);
    p.n_cells = n_cells;
    p.n_block = n_block;
    p.llama = kvmerge_llama_entries();
    return p;
}

#endif /* LLAMA_H */

/* ---- scoring ---------------------------------------------------------------------------------------------------- */

/* Of all of these: rows are at most 2^31 - 2 long and all of a call's together 2^40 elements, n_threads is 1..1024. */

/* -log softmax(logits[row])[target[row]] for each row, in the arithmetic of llama-perplexity (expf, summed in double).
 * logits: [n_rows][n_vocab]; nll: [n_rows]. Errors: ARGUMENT (a target outside the vocabulary), NUMERIC. */
KVMERGE_API kvmerge_status kvmerge_score(const float * logits, int64_t n_rows, int64_t n_vocab, const int32_t * target,
                                         int32_t n_threads, double * nll);
/* Bytes of one packed row of log probabilities: scale and minimum as floats, then n_vocab uint16. */
KVMERGE_API int64_t kvmerge_packed_row_bytes(int64_t n_vocab);
/* Packs log softmax of each row to 16 bits a token over the row's whole range, nothing clipped. packed: n_rows
 * packed rows, at an even address. Errors: ARGUMENT, NUMERIC (a row that spans more than a million nats, too). */
KVMERGE_API kvmerge_status kvmerge_pack_log_probs(const float * logits, int64_t n_rows, int64_t n_vocab,
                                                  int32_t n_threads, void * packed);
/* KL(packed || logits) over the whole vocabulary, in nats, and whether both agree on the likeliest token.
 * packed: n_rows packed rows, at an even address; kl: [n_rows]; same_top: [n_rows] of 0 or 1. Errors: ARGUMENT, NUMERIC
 * (packed rows that kvmerge_pack_log_probs would not write, too). */
KVMERGE_API kvmerge_status kvmerge_kl_divergence(const void * packed, const float * logits, int64_t n_rows,
                                                 int64_t n_vocab, int32_t n_threads, double * kl, uint8_t * same_top);
/* Entropy of each row of probabilities over its positive entries, divided by the log of their number (0 for one entry).
 * p: [n_rows][n]; entropy: [n_rows]. Errors: ARGUMENT, NUMERIC (an element that is
 * negative or not finite). */
KVMERGE_API kvmerge_status kvmerge_row_entropy(const float * p, int64_t n_rows, int64_t n, float * entropy);

/* Runs of neighbours above a threshold in rows of values, such as token entropies of a (layer, KV head):
 * span[row][i] is the index of the first of i's span, or -1. Only [first, end) of a row is looked at (after the
 * sinks, before the newest); the rest gets -1. Spans are cut at `longest` tokens. value, span: [n_rows][n]. Errors:
 * ARGUMENT, NUMERIC (NaN). */
KVMERGE_API kvmerge_status kvmerge_find_spans(const float * value, int64_t n_rows, int32_t n, int32_t first,
                                              int32_t end, float threshold, int32_t longest, int32_t * span);

/* ---- ending a decode early -------------------------------------------------------------------------------------- */

/* For llama_set_abort_callback, with the address of an int32_t that another thread may write at any time: whether it is
 * not 0. False for null. */
KVMERGE_API bool kvmerge_abort_callback(void * flag);

/* ---- llama.cpp's log -------------------------------------------------------------------------------------------- */

/* Keeps the last warnings and errors that llama.cpp logs, so that a failure can be explained; prints nothing itself
 * unless echo is set. Pass kvmerge_log_callback and the handle to llama_log_set. Free it after llama_log_set(null):
 * STATE while a thread is inside. All of it may be called on any thread, and a line to a freed log is dropped. */
KVMERGE_API kvmerge_status kvmerge_log_create(bool echo, kvmerge_log ** out);
KVMERGE_API kvmerge_status kvmerge_log_free(kvmerge_log * log);
KVMERGE_API void kvmerge_log_callback(int32_t level, const char * text, void * log);
/* Copies what was kept since the last take into `text` (always terminated) and forgets it. */
KVMERGE_API kvmerge_status kvmerge_log_take(kvmerge_log * log, char * text, size_t size);

#ifdef __cplusplus
}
#endif

#endif /* KVMERGE_H */
