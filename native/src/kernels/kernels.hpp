// The list of kernels. Each is one line in KVMERGE_DEVICE_KERNELS or KVMERGE_HOST_KERNELS, and one descriptor struct.
// The tables of the reference, of each instruction set and of CUDA (first list only), the dispatcher and the tests are
// all made from that line, so a kernel that lacks one of them does not compile.
//
// A descriptor holds plain pointers: into host memory for the CPU, into device memory for CUDA. The CPU's kernels have
// finished when they return, CUDA's are queued (device.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmerge {

// The types that llama.cpp's -ctk and -ctv take. From CELL_Q8_0 on they are quantised: elements come in blocks of
// QUANTS, with a factor in half precision and in some types an offset.
enum CellType : int32_t {
    CELL_F32,
    CELL_F16,
    CELL_BF16,
    CELL_Q8_0,
    CELL_Q4_0,
    CELL_Q4_1,
    CELL_Q5_0,
    CELL_Q5_1,
    CELL_IQ4_NL
};
constexpr int CELL_TYPES = CELL_IQ4_NL + 1;

constexpr int QUANTS = 32; // elements of a quantisation block

constexpr bool is_quantised(int32_t type) {
    return type >= CELL_Q8_0;
}

// Bytes of n elements; of a quantised type, n is a multiple of QUANTS.
constexpr size_t bytes_of(int32_t type, size_t n) {
    constexpr size_t block[CELL_TYPES] = {4 * QUANTS, 2 * QUANTS, 2 * QUANTS, 34, 18, 20, 22, 24, 18};
    return is_quantised(type) ? n / QUANTS * block[type] : n * (block[type] / QUANTS);
}

// What the 16 codes of IQ4_NL stand for, in units of the block's factor (ggml's kvalues_iq4nl).
constexpr int8_t IQ4_NL_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// What llama.cpp's mask hides a cell with: minus infinity in half precision.
constexpr uint16_t HIDDEN = 0xfc00;

// Where the cells of one of a layer's cache tensors lie. Row-wise, element i of a cell of head h is the (h * dim + i)th
// of the cell's row; transposed (never a quantised type), it is at h * dim + i rows of n_cells elements. Of a quantised
// type, dim is a multiple of QUANTS.
struct CellView {
    void * data;
    int32_t type;              // CellType
    int32_t transposed;        // 0 or 1
    int32_t dim;               // elements a head
    int32_t n_cells;           // cells allocated
    std::ptrdiff_t cell_bytes; // row-wise: from a cell to the next
};

// Attention received and row entropy, from the probabilities. Query head h belongs to KV head h / heads_per_kv.
struct AttentionStatsArgs {
    const float * p;            // probabilities: element (head h, row r, cell c) at h*head_stride + r*row_stride + c
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_kv_heads;
    int heads_per_kv; // query heads that share a KV head
    int n_rows;       // queries
    int n_cells;
    int half_powers;               // 2, 3 or 4: the mass adds up p, p^1.5 or p^2
    float * mass;                  // null, or sums of p^(half_powers/2) are added to it, at kv_head*mass_stride + cell
    std::ptrdiff_t mass_stride;    // elements
    float * entropy;               // written: H(row) * inv_log_visible[r], 0..1, at h*entropy_stride + r; or null
    std::ptrdiff_t entropy_stride; // elements
    const float * inv_log_visible; // [n_rows]: 1 / ln(cells the row sees), 0 where it sees one; null where entropy is
};

// The same statistics from the queries and the cached keys, since flash attention leaves no matrix of probabilities.
// The score of a query and a cell is scale * q.k, or cap * tanh(scale * q.k / cap) where cap is not 0. Hidden cells
// count as absent.
struct ScoreStatsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_kv_heads;
    int heads_per_kv;
    int n_rows;
    CellView keys;
    int first_kv_head;          // the KV head of `keys` that row 0 of mass is for
    int n_cells;                // cells 0 .. n_cells-1 are looked at
    const uint16_t * mask;      // half precision, row r at r*mask_stride; HIDDEN hides a cell. Or null
    std::ptrdiff_t mask_stride; // elements
    float scale;
    float cap;
    float row_weight; // each row's share of the mass counts so often
    int half_powers;  // this and the following: as above
    float * mass;
    std::ptrdiff_t mass_stride;
    float * entropy;
    std::ptrdiff_t entropy_stride;
    const float * inv_log_visible;
};

// Spans: runs of neighbours above a threshold, cut at `longest`.
struct FindSpansArgs {
    const float * value;   // element (row, i) at row*stride + i
    std::ptrdiff_t stride; // elements
    int n_rows;
    int first; // [first, end) of a row are looked at: after the sinks, before the newest
    int end;
    float threshold;
    int longest;    // >= 1
    int32_t * span; // laid out as value. For i in [first, end): the index where i's span starts, -1 where i is in none
};

// First and second moment of the queries of each KV head after RoPE, summed over its query heads and rows.
struct QueryMomentsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_kv_heads;
    int heads_per_kv;
    int n_rows;
    int dim;
    float keep;     // sum and second are multiplied by it first
    float * sum;    // [n_kv_heads][dim]
    float * second; // [n_kv_heads][dim][dim], both triangles
};

// The direction u along which a bias is folded into a key: u = (C + ridge * tr(C)/d * I)^-1 mean, where C is the second
// moment of the queries. A ridge regression over the queries brings u.q as near to 1. Both moments are given as sums,
// which inverse_weight turns into means.
struct FoldDirectionArgs {
    const float * sum;    // [n][dim]
    const float * second; // [n][dim][dim], symmetric positive semidefinite
    int n;
    int dim;
    double inverse_weight;
    double ridge; // > 0
    float * u;    // [n][dim], written; zeros where C is zero
};

// Reads cells of one head as single precision; writes them, rounded to their type.
struct GatherCellsArgs {
    CellView view;
    int head;
    const int32_t * cells; // [n]
    int n;
    float * out; // [n][dim]
};
struct ScatterCellsArgs {
    CellView view;
    int head;
    const int32_t * cells; // [n], distinct
    int n;
    const float * in; // [n][dim]
};

// The groups of one KV head, each of which becomes one cell. All arrays lie where the cells do.
struct MergeHead {
    CellView k, v;
    int head;
    int n_groups;
    const int32_t * start;      // [n_groups + 1]: members of group g are start[g] .. start[g+1]-1
    const int32_t * member;     // cells
    const int32_t * delta;      // of each member: pivot's position - own position
    const float * weight;       // of each member's key; those of a group sum to 1
    const float * value_weight; // of each member's value
    const int32_t * dest;       // [n_groups]: the cell to write to, distinct
    const float * bias;         // [n_groups], or null: K' += bias * u
    const float * u;            // [dim of k], or null where bias is
    float * scratch;            // [n_groups][dim of k + dim of v]
    // RoPE (Su et al. 2021): pairs are (i, i + n_rot/2) for NEOX order and (2i, 2i+1) for normal order.
    int n_rot;           // rotated dimensions of a key, even; 0 for none
    int neox;            // 1: pairs in NEOX order
    const double * freq; // [n_rot/2]: radians a position
    int hadamard;        // keys are stored multiplied by Hadamard matrices of this size; 0: they are not
};

// Every group becomes K' = sum w R(delta) K + bias u and V' = sum v V in its destination. All groups are read before
// any is written, since a destination may be another group's member.
struct MergeCellsArgs {
    const MergeHead * heads; // [n_heads], in host memory
    int n_heads;             // of all layers
};

// What a calibration's regression takes from a cell: the product of `weight` and the key as it was before RoPE (as in
// MergeHead), and the length of the value.
struct ProjectCellsArgs {
    CellView keys, values;
    int head;
    const int32_t * cells;    // [n]
    const int32_t * position; // [n]: where each key was rotated to
    int n;
    const float * weight; // [dim of keys]
    int n_rot;
    int neox;
    const double * freq;
    int hadamard;
    float * product; // [n]
    float * length;  // [n]
};

// The foreseen attention of cells, by a log-linear regression on the attention so far: exp(prior + w0 log r +
// w1 log r of the cell before + w2 log r of the cell after + w3 log age), where r = rate + least and age = now -
// position. The exponent is at most 88. The first and the last cell are their own neighbours.
struct ExpectedAttentionArgs {
    int n;
    const double * rate;      // [n], >= 0
    const float * prior;      // [n]
    const int32_t * position; // [n], below now
    int32_t now;
    double least;         // > 0
    const float * weight; // [4]
    double * expected;    // [n]
};

// Squared distances of a cell's key and value from those of the cell that comes next. They are forgotten when either
// cell is written.
struct Neighbour {
    int32_t next = -1; // a cell; -1: nothing is known
    float keys = 0, values = 0;
};

// Which cells of a head to drop and which to merge with their neighbours. The cheapest operation is done again and
// again, and each leaves one cell less. kvmerge.h has the prices, at kvmerge_plan_groups.
struct PlanGroupsArgs {
    CellView keys, values;
    int head;
    const int32_t * cells; // [n], in position order
    int n;
    const double * rate; // [n], >= 0: foreseen attention
    int first;           // cells [first, end) may be touched
    int end;
    int operations;    // 0 .. end - first
    int largest_group; // members, >= 1
    double key_cost;   // >= 0
    int32_t * group;   // [n], written: the first member of the cell's group, -1 for a dropped cell
    double * cost;     // written: the sum of the prices of what was done
    Neighbour * known; // one for each cell allocated: what earlier calls found, and what this one does; or null
};

// Many heads at once, of all layers. A GPU has them by one descriptor each; the host works head by head, on many
// threads.
struct ProjectHeadsArgs {
    const ProjectCellsArgs * heads; // [n_heads], in host memory; what they point to lies where the cells do
    int n_heads;
};
struct ForeseeHeadsArgs {
    const ExpectedAttentionArgs * heads; // likewise
    int n_heads;
};
struct PlanHeadsArgs {
    const PlanGroupsArgs * heads; // likewise
    int n_heads;
};

// Has a GPU take the memory that all kernels here work with, so that none needs more later.
struct ReserveScratchArgs {
    const void * near; // where it lies
    int n_layers;      // on that GPU
    int n_kv_heads;
    int heads_per_kv;
    int n_rows;  // most tokens of a block
    int n_cells; // of the cache
    int dim;     // of keys
};

// The table of the cells (table.hpp) of the KV heads of those layers that lie on one GPU: rows of n_cells, one a head,
// in position order. All arrays of the following kernels lie on that GPU; those by head are [n_heads][n_cells] too,
// unless they say otherwise.
struct TableRows {
    int n_heads;
    int n_cells;
    int32_t *cell, *position, *frame, *count;
    float *mass, *exposure;
    float *entropy, *prior; // null where nobody asks for them
};

// Adds a block, as CellTable::add does.
struct AddBlockArgs {
    TableRows rows;
    int used;                   // cells in use before
    int n;                      // tokens of the block
    const int32_t * token_cell; // [n]
    int32_t first_position;
    int32_t first_frame;
    double keep;                   // factor on the mass and exposure so far
    const float * const * mass;    // [n_heads]: what the observer summed up, [n_cells] by cell; or null
    const float * const * entropy; // [n_heads]: that of the head's first query head, [n]; or null
    std::ptrdiff_t entropy_stride; // elements, to the next query head
    int heads_per_kv;
    const float * product;     // [n_heads][n], of ProjectCellsArgs; null where calibration is
    const float * length;      // [n_heads][n]
    const float * calibration; // [n_heads][calibration_stride]: the prior is w0 + w5 log(length + 1e-3) + product
    int calibration_stride;
    int32_t * flaw; // [n_heads]: 1 is written where the mass is not finite
};

// Attention received from a query that could see the cell, of cells [pinned, used): row h of `rate` starts with the
// first of them, and so do those of the plans below.
struct RateCellsArgs {
    TableRows rows;
    int used, pinned;
    double * rate;
};

// Makes groups (PlanGroupsArgs) a plan: members weigh what they received, and the heaviest is the pivot.
struct WeighGroupsArgs {
    TableRows rows;
    int used, pinned;
    const int32_t * group;
    int32_t * target; // written
    float * weight;   // written
};

// What became of a head's plan. flaw: 0, or which rule it breaks.
struct Verdict {
    int32_t flaw;     // FLAW_ATTENTION: what the head received is not finite
    int32_t n_groups; // that are rewritten
    int32_t merges;   // whether one of them has two members and more
};

constexpr int32_t FLAW_ATTENTION = -1;

// Checks plans and makes of them what MergeHead takes. Nothing of the table changes.
struct StageHeadsArgs {
    TableRows rows;
    int used, pinned;
    int budget;             // groups that a head must have
    int32_t back;           // positions that all go back
    int pivot_frame;        // as in kvmerge_moves
    const uint8_t * stays;  // [n_cells]: whether llama.cpp keeps the cell
    const int32_t * target; // as kvmerge_cache_stage takes them
    const float * weight;
    const float * value_weight;  // null: as weight
    const float * inverse_scale; // [n_heads]: of the scores; 0 where no bias is folded
    const int32_t * not_finite;  // [n_heads]: what AddBlockArgs::flaw says
    int room;                    // most members and groups of a head, that are rewritten
    int32_t * dest;              // written: the cell that the row's group goes to; -1 where the row is no pivot
    int32_t * start;             // [n_heads][room + 1], written: as in MergeHead, and so on
    int32_t *member, *row;       // [n_heads][room]: cells and rows; a group's pivot comes first
    int32_t * delta;             // [n_heads][room]
    float *share, *value_share;  // [n_heads][room]: weight and value_weight
    int32_t * to;                // [n_heads][room]: dest of each group
    float * bias;                // [n_heads][room]
    Verdict * verdict;           // [n_heads]
};

// Moves the table, as CellTable::commit does, when the cells have been rewritten. The arrays are those of
// StageHeadsArgs.
struct CommitHeadsArgs {
    TableRows rows;
    int used;
    int32_t back;
    int room;
    const int32_t *dest, *start, *row;
    const float * share;
    const Verdict * verdict;
};

// log(sum(exp(x))) of one row of logits, and the index of its largest element (the first of equals).
struct LogSumExpArgs {
    const float * x;
    std::ptrdiff_t n; // >= 1
    double * lse;
    std::ptrdiff_t * argmax;
};

// KL(P || Q) in nats. log P = base_min + base_scale * base[i], renormalised to sum 1; log Q = x[i] - lse.
struct KlRowArgs {
    const uint16_t * base;
    float base_scale;
    float base_min;
    const float * x;
    double lse;
    std::ptrdiff_t n;
    double * kl;
};

// How captured queries of a ubatch come to the block's, in one launch: the queries of the ubatch before, which had to
// wait where the graph left them, are moved; rows that the graph is about to write are marked; its mask is kept, since
// the next one is written over it. The first three arrays are in host memory, one pointer for each layer.
struct CollectQueriesArgs {
    int n_layers;
    const float * const * from; // [n_layers][n_moved]
    float * const * to;         // [n_layers][n_moved]
    std::ptrdiff_t n_moved;     // elements a layer
    float * const * coming;     // [n_layers][n_rows][row]. May be where `from` is, if that is one row
    std::ptrdiff_t row;         // elements of a token's queries
    int n_rows;                 // tokens of the ubatch
    const void * mask;          // element (row r, cell c) at r*mask_stride + c; null: every cell is seen
    int mask_floats;            // 1: of single precision, 0: of half precision. Minus infinity hides a cell
    std::ptrdiff_t mask_stride; // elements
    int n_kv;                   // cells that the mask has
    uint16_t * masks;           // [n_rows][n_cells], written: 0, or HIDDEN as are cells from n_kv on; or null
    int n_cells;
    float * inv_log_visible; // [n_rows], written
    uint8_t * newest;        // [n_cells], written, in shared memory: 1 for cells that the last row sees; or null
};

// What the first element of a row holds until its queries have come: a NaN that no processor makes.
constexpr uint32_t NOT_COME = 0xffffffffu;

// Finds rows whose queries never came, and makes them zero.
struct CheckQueriesArgs {
    int n_layers;
    float * const * queries; // [n_layers], in host memory, of [n_rows][row]
    int n_rows;
    std::ptrdiff_t row;
    int first_token;
    int32_t * const * missing; // [n_layers], in host memory, of shared memory: first_token + the first such row is
                               // written where it is negative
};

// Kernels that have a version for each device: they work where the model's backend holds attention, queries and cells.
#define KVMERGE_DEVICE_KERNELS(X)          \
    X(attention_stats, AttentionStatsArgs) \
    X(score_stats, ScoreStatsArgs)         \
    X(query_moments, QueryMomentsArgs)     \
    X(fold_direction, FoldDirectionArgs)   \
    X(merge_cells, MergeCellsArgs)

// Kernels of many heads, which only GPUs have. The reference for them is the host's kernel of one head, and CellTable.
#define KVMERGE_HEADS_KERNELS(X)       \
    X(project_heads, ProjectHeadsArgs) \
    X(foresee_heads, ForeseeHeadsArgs) \
    X(plan_heads, PlanHeadsArgs)       \
    X(add_block, AddBlockArgs)         \
    X(rate_cells, RateCellsArgs)       \
    X(weigh_groups, WeighGroupsArgs)   \
    X(stage_heads, StageHeadsArgs)     \
    X(commit_heads, CommitHeadsArgs)   \
    X(reserve_scratch, ReserveScratchArgs)

// Those of them that are run for all layers at once.
#define KVMERGE_LAYER_KERNELS(X)           \
    X(attention_stats, AttentionStatsArgs) \
    X(score_stats, ScoreStatsArgs)         \
    X(query_moments, QueryMomentsArgs)     \
    X(fold_direction, FoldDirectionArgs)

// Steps of capturing queries, which a device has and no instruction set does.
#define KVMERGE_DEVICE_STEPS(X)            \
    X(collect_queries, CollectQueriesArgs) \
    X(check_queries, CheckQueriesArgs)

// Kernels that only the CPU has: single cells that the host reads and writes, what to do with a head's cells, logits.
#define KVMERGE_HOST_KERNELS(X)                  \
    X(gather_cells, GatherCellsArgs)             \
    X(scatter_cells, ScatterCellsArgs)           \
    X(project_cells, ProjectCellsArgs)           \
    X(expected_attention, ExpectedAttentionArgs) \
    X(plan_groups, PlanGroupsArgs)               \
    X(find_spans, FindSpansArgs)                 \
    X(log_sum_exp, LogSumExpArgs)                \
    X(kl_row, KlRowArgs)

#define KVMERGE_KERNELS(X)    \
    KVMERGE_DEVICE_KERNELS(X) \
    KVMERGE_HOST_KERNELS(X)

struct KernelTable {
    const char * isa;
#define KVMERGE_MEMBER(name, Args) void (*name)(const Args &);
    KVMERGE_KERNELS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
};

// Plain loops in double precision, which all others are tested against.
const KernelTable & reference_kernels();
// The fast kernels of the best instruction set that this CPU has, or of the one that KVMERGE_ISA names. Every call
// throws UNSUPPORTED where the CPU lacks that one.
const KernelTable & kernels();

} // namespace kvmerge
