// The list of kernels. Each is one line in KVMERGE_KERNELS and one descriptor struct; the reference, the fast versions, the
// dispatcher and the tests are all generated from that line, so none can lack one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmerge {

// Attention received and row entropy of one KV head, from the probabilities of its query heads.
struct AttentionStatsArgs {
    const float * p;            // probabilities: element (head h, row r, cell c) at h*head_stride + r*row_stride + c
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_heads;                // query heads that share the KV head
    int n_rows;                 // queries
    int n_cells;
    float * mass;    // [n_cells], added to: sum of p over heads and rows
    float * entropy; // null, or element (h, r) at h*entropy_stride + r: H(row) * inv_log_visible[r], clamped to 0..1
    std::ptrdiff_t entropy_stride; // elements
    const float * inv_log_visible; // [n_rows]: 1 / ln(cells the row sees), 0 where it sees one
};

// The same statistics without a matrix of probabilities, from the queries and the cached keys: what flash attention leaves to see.
// Score of a query and a cell: scale * q.k, or cap * tanh(scale * q.k / cap) where cap is not 0; hidden cells count as absent.
struct ScoreStatsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_heads;
    int n_rows;
    int dim;
    const float * keys; // [n_cells][dim]
    int n_cells;
    const uint16_t * mask;      // half precision, row r at r*mask_stride: minus infinity (0xfc00) hides a cell; null hides none
    std::ptrdiff_t mask_stride; // elements
    float scale;
    float cap;
    float * mass;                  // as above
    float * entropy;               // as above
    std::ptrdiff_t entropy_stride; // elements
    const float * inv_log_visible; // as above
};

// First and second moment of the roped queries of one KV head, summed over its query heads and rows.
struct QueryMomentsArgs {
    const float * q;            // element (head h, row r, dimension i) at h*head_stride + r*row_stride + i
    std::ptrdiff_t head_stride; // elements
    std::ptrdiff_t row_stride;  // elements
    int n_heads;
    int n_rows;
    int dim;
    float * sum;    // [dim], added to
    float * second; // [dim][dim], added to; both triangles
};

// Weighted mean of one group's keys and values. Keys are rotated by RoPE to the pivot's position first (delta 0 leaves
// them). Rotation pairs are (i, i + n_rot/2) for NEOX order and (2i, 2i+1) for normal order. Su et al. 2021.
struct MergeGroupArgs {
    const float * keys;    // [n][dim_k]
    const float * values;  // [n][dim_v]
    const float * weight;  // [n], sums to 1
    const int32_t * delta; // [n]: pivot's position - own position
    int n;
    int dim_k;
    int dim_v;
    int n_rot;           // rotated dimensions of a key, even; 0 for none
    bool neox;           // order of the rotation pairs
    const double * freq; // [n_rot/2]: radians a position
    float * key;         // [dim_k], written
    float * value;       // [dim_v], written
};

// The direction u along which a bias is folded into a key: u = (C + ridge * tr(C)/d * I)^-1 mean, so that u.q is as near to 1
// as a ridge regression over the queries makes it. Solved by Cholesky, C a second moment.
struct FoldDirectionArgs {
    const float * mean;   // [dim]
    const float * second; // [dim][dim], symmetric positive semidefinite
    int dim;
    double ridge; // > 0
    float * u;    // [dim], written; zeros when C is zero
};

// Squared distance of each row from the next: what merging neighbours would cost.
struct StepDistanceArgs {
    const float * rows; // [n][dim]
    int n;
    int dim;
    float * out; // [n - 1], written
};

// Half precision to and from single, IEEE 754 round to nearest even. Overflow gives infinity.
struct HalfToFloatArgs {
    const uint16_t * in;
    float * out;
    std::ptrdiff_t n;
};
struct FloatToHalfArgs {
    const float * in;
    uint16_t * out;
    std::ptrdiff_t n;
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

#define KVMERGE_KERNELS(X)                 \
    X(attention_stats, AttentionStatsArgs) \
    X(score_stats, ScoreStatsArgs)         \
    X(query_moments, QueryMomentsArgs)     \
    X(fold_direction, FoldDirectionArgs)   \
    X(merge_group, MergeGroupArgs)         \
    X(step_distance, StepDistanceArgs)     \
    X(half_to_float, HalfToFloatArgs)      \
    X(float_to_half, FloatToHalfArgs)      \
    X(log_sum_exp, LogSumExpArgs)          \
    X(kl_row, KlRowArgs)

struct KernelTable {
    const char * isa;
#define KVMERGE_MEMBER(name, Args) void (*name)(const Args &);
    KVMERGE_KERNELS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
};

// Plain loops in double precision: what the others are tested against.
const KernelTable & reference_kernels();
// Every fast table that this machine can run, best first; ends with a null pointer. Never empty.
const KernelTable * const * runnable_kernels();
// The best of them.
const KernelTable & kernels();

} // namespace kvmerge
