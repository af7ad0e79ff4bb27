// The list of kernels. Each is one line in KVMERGE_DEVICE_KERNELS or KVMERGE_HOST_KERNELS, and one descriptor struct.
// The tables of the reference, of each instruction set and of CUDA (first list only), the dispatcher and the tests are
// all made from that line, so a kernel that lacks one of them does not compile.
//
// A descriptor holds plain pointers: into host memory for the CPU, into device memory for CUDA. A kernel has finished
// when it returns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmerge {

enum CellType : int32_t { CELL_F32, CELL_F16, CELL_BF16, CELL_Q8_0 };

// Where the cells of one of a layer's cache tensors lie. Row-wise, element i of a cell of head h is the (h * dim + i)th
// of the cell's row; transposed (never Q8_0), it is at h * dim + i rows of n_cells elements.
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
    int n_rows; // queries
    int n_cells;
    int half_powers; // 2, 3 or 4: the mass adds up p, p^1.5 or p^2
    float * mass;    // null, or element (KV head, cell) at kv_head*mass_stride + cell, added to: sum of p^(half_powers/2)
    std::ptrdiff_t mass_stride; // elements
    float * entropy; // null, or element (head h, row r) at h*entropy_stride + r: H(row) * inv_log_visible[r], within 0..1
    std::ptrdiff_t entropy_stride; // elements
    const float * inv_log_visible; // [n_rows]: 1 / ln(cells the row sees), 0 where it sees one; null where entropy is
};

// The same statistics without a matrix of probabilities, from the queries and the cached keys: what flash attention
// leaves to see. Score of a query and a cell: scale * q.k, or cap * tanh(scale * q.k / cap) where cap is not 0; hidden
// cells count as absent.
struct ScoreStatsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_kv_heads;
    int heads_per_kv;
    int n_rows;
    CellView keys;
    int first_kv_head;          // of the keys: whose the first mass is
    int n_cells;                // cells 0 .. n_cells-1 are looked at
    const uint16_t * mask;      // half precision, row r at r*mask_stride: minus infinity (0xfc00) hides a cell; null hides none
    std::ptrdiff_t mask_stride; // elements
    float scale;
    float cap;
    int half_powers; // as above, and so on: mass or entropy may be null
    float * mass;
    std::ptrdiff_t mass_stride;
    float * entropy;
    std::ptrdiff_t entropy_stride;
    const float * inv_log_visible;
};

// Runs of neighbours above a threshold, cut at `longest`.
struct FindSpansArgs {
    const float * value;   // element (row, i) at row*stride + i
    std::ptrdiff_t stride; // elements
    int n_rows;            // (layer, KV head) pairs, say
    int first;             // [first, end) of a row are looked at: after the sinks, before the newest
    int end;
    float threshold;
    int longest; // >= 1
    int32_t *
        span; // as value: the index of the first of i's span, -1 where i is in none; i outside [first, end) is left as it is
};

// First and second moment of the roped queries of each KV head, summed over its query heads and rows.
struct QueryMomentsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_kv_heads;
    int heads_per_kv;
    int n_rows;
    int dim;
    float keep;     // factor on what is there already
    float * sum;    // [n_kv_heads][dim]
    float * second; // [n_kv_heads][dim][dim], both triangles
};

// The direction u along which a bias is folded into a key: u = (C + ridge * tr(C)/d * I)^-1 mean, so that u.q is as
// near to 1 as a ridge regression over the queries makes it. C is a second moment. mean and C are given as sums,
// inverse_weight makes them means.
struct FoldDirectionArgs {
    const float * sum;    // [n][dim]
    const float * second; // [n][dim][dim], symmetric positive semidefinite
    int n;
    int dim;
    double inverse_weight;
    double ridge; // > 0
    float * u;    // [n][dim], written; zeros where C is zero
};

// Cells of one head as single precision, and back, rounding to their type.
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

// The groups of one KV head that a plan makes into one cell each. All arrays lie where the cells do.
struct MergeHead {
    CellView k, v;
    int head;
    int n_groups;
    const int32_t * start;      // [n_groups + 1]: members of group g are start[g] .. start[g+1]-1
    const int32_t * member;     // cells
    const int32_t * delta;      // of each member: pivot's position - own position
    const float * weight;       // of each member's key; a group's sum to 1
    const float * value_weight; // of each member's value
    const int32_t * dest;       // [n_groups]: the cell to write to, distinct
    const float * bias;         // [n_groups], or null: K' += bias * u
    const float * u;            // [dim of k], or null where bias is
    float * scratch;            // [n_groups][dim of k + dim of v]
    // RoPE (Su et al. 2021): pairs are (i, i + n_rot/2) for NEOX order and (2i, 2i+1) for normal order.
    int n_rot;           // rotated dimensions of a key, even; 0 for none
    int neox;            // order of the pairs
    const double * freq; // [n_rot/2]: radians a position
    int hadamard;        // size of the Hadamard matrix that keys are stored rotated by; 0 for none
};

// Every group becomes K' = sum w R(delta) K + bias u, V' = sum v V, in its destination. A destination may be another
// group's member: all groups are read before any is written.
struct MergeCellsArgs {
    const MergeHead * heads; // [n_heads], in host memory
    int n_heads;             // layers x KV heads, in one go
};

// What a log-linear model of attention takes from cells themselves: the product of a vector and the key as it was
// before its rotation (RoPE, as in MergeHead), and the length of the value.
struct ProjectCellsArgs {
    CellView keys, values;
    int head;
    const int32_t * cells;    // [n]
    const int32_t * position; // [n]: whose rotation each key carries
    int n;
    const float * weight; // [dim of keys]
    int n_rot;
    int neox;
    const double * freq;
    int hadamard;
    float * product; // [n]
    float * length;  // [n]
};

// The attention that each cell is expected to get from a query to come, by a log-linear model of what it got so far:
// exp(prior + w0 log r + w1 log of the r before + w2 log of the r after + w3 log age), the sum at most 88, with r =
// rate + least and age = now - position. The first and the last cell are their own neighbours.
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

// Squared distances of a cell's key and value from those of the cell that comes next. Who writes to either forgets
// them.
struct Neighbour {
    int32_t next = -1; // a cell; -1: nothing is known
    float keys = 0, values = 0;
};

// Which cells of a head to drop and which to merge with their neighbours: the cheapest operation again and again, each
// of which leaves a cell less (kvmerge_plan_groups has the prices).
struct PlanGroupsArgs {
    CellView keys, values;
    int head;
    const int32_t * cells; // [n], in position order
    int n;
    const double * rate; // [n], >= 0: attention that each cell is expected to get from a query
    int first;           // cells [first, end) may be touched
    int end;
    int operations;    // 0 .. end - first
    int largest_group; // members, >= 1
    double key_cost;   // >= 0
    int32_t * group;   // [n], written: the first member of the cell's group, -1 for a dropped cell
    double * cost;     // sum of the prices of what was done
    Neighbour * known; // null, or of every cell allocated: what a call before has left, and what this one leaves
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

// Kernels that have a version for each device: they work where the model's backend holds attention, queries and cells.
#define KVMERGE_DEVICE_KERNELS(X)          \
    X(attention_stats, AttentionStatsArgs) \
    X(score_stats, ScoreStatsArgs)         \
    X(query_moments, QueryMomentsArgs)     \
    X(fold_direction, FoldDirectionArgs)   \
    X(merge_cells, MergeCellsArgs)

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

// Plain loops in double precision: what the others are tested against.
const KernelTable & reference_kernels();
// The fast ones: the best that this machine's CPU has, or what the environment's KVMERGE_ISA names. Throws UNSUPPORTED
// at every call where that is not there.
const KernelTable & kernels();

} // namespace kvmerge
