// Tests of each kernel against the double-precision reference. They are the same for every implementation, of the CPU
// or of CUDA.
#pragma once

#include "check.hpp"
#include "kernels/kernels.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

using namespace kvmerge;

static const float INF = std::numeric_limits<float>::infinity();
static const float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
static const KernelTable & reference = reference_kernels();

// Memory that both the reference and the kernels under test can read: the CPU's, or CUDA's managed memory.
static void * (*test_allocate)(size_t) = std::malloc;
static void (*test_release)(void *) = std::free;

template <class T>
struct TestAllocator {
    using value_type = T;
    TestAllocator() = default;
    template <class U>
    TestAllocator(const TestAllocator<U> &) {}
    T * allocate(size_t n) { return static_cast<T *>(test_allocate(n * sizeof(T))); }
    void deallocate(T * p, size_t) { test_release(p); }
    template <class U>
    bool operator==(const TestAllocator<U> &) const {
        return true;
    }
    template <class U>
    bool operator!=(const TestAllocator<U> &) const {
        return false;
    }
};

template <class T>
using Vec = std::vector<T, TestAllocator<T>>;

inline Vec<float> normals(Random & random, size_t n) {
    const std::vector<float> x = random.normals(n);
    return Vec<float>(x.begin(), x.end());
}

// A buffer with guard values on both sides; the destructor checks that nobody wrote there.
template <class T>
struct Guarded {
    static constexpr int MARGIN = 16;
    Vec<T> data;
    size_t n;
    T guard;
    Guarded(size_t n, T fill = T(0), T guard = T(123)) : data(n + 2 * MARGIN, fill), n(n), guard(guard) {
        for (int i = 0; i < MARGIN; i++) {
            data[i] = data[n + MARGIN + i] = guard;
        }
    }
    ~Guarded() {
        for (int i = 0; i < MARGIN; i++) {
            CHECK(data[i] == guard && data[n + MARGIN + i] == guard);
        }
    }
    operator T *() { return data.data() + MARGIN; }
};

inline void softmax_row(Random & random, int visible, float sharpness, float * p) {
    double sum = 0;
    for (int i = 0; i < visible; i++) {
        sum += p[i] = std::exp(sharpness * random.normal());
    }
    for (int i = 0; i < visible; i++) {
        p[i] = float(p[i] / sum);
    }
}

template <class Table>
inline void test_attention_stats(const Table & fast, Random & random) {
    const int kv_heads = random.integer(1, 3), heads_per_kv = random.integer(1, 4), heads = kv_heads * heads_per_kv,
              rows = random.integer(1, 20);
    const int cells = random.integer(0, 9) == 0 ? 1 : random.integer(1, 700);
    const int row_stride = cells + random.integer(0, 9), head_stride = rows * row_stride + random.integer(0, 5);
    const int mass_stride = cells + random.integer(0, 3);
    const bool entropies = random.integer(0, 3) > 0;
    const int half_powers = random.integer(2, 4);
    Vec<float> p(size_t(heads) * head_stride, 0.0f), inverse(rows);
    for (int r = 0; r < rows; r++) {
        const int visible = random.integer(1, cells);
        inverse[r] = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
        for (int h = 0; h < heads; h++) { // sharpness 0: all tie
            softmax_row(random, visible, 0.1f * float(random.integer(0, 80)),
                        p.data() + h * head_stride + r * row_stride);
        }
    }
    const int case_of = random.integer(0, 9);
    if (case_of == 0) { // all masked
        std::fill(p.begin(), p.end(), 0.0f);
    } else if (case_of == 1) {
        p[random.integer(0, cells - 1)] = NOT_A_NUMBER;
    } else if (case_of == 2) {
        p[random.integer(0, cells - 1)] = INF;
    }
    Guarded<float> mass(size_t(kv_heads) * mass_stride, 0.25f), expected_mass(size_t(kv_heads) * mass_stride, 0.25f),
        entropy(size_t(heads) * rows), expected_entropy(size_t(heads) * rows);
    const bool masses = random.integer(0, 9) > 0;
    AttentionStatsArgs args = {p.data(),
                               head_stride,
                               row_stride,
                               kv_heads,
                               heads_per_kv,
                               rows,
                               cells,
                               half_powers,
                               masses ? (float *)mass : nullptr,
                               mass_stride,
                               entropies ? (float *)entropy : nullptr,
                               rows,
                               inverse.data()};
    fast.attention_stats(args);
    args.mass = masses ? (float *)expected_mass : nullptr;
    args.entropy = entropies ? (float *)expected_entropy : nullptr;
    reference.attention_stats(args);
    for (int c = 0; c < kv_heads * mass_stride; c++) {
        if (std::isfinite(expected_mass[c])) {
            CHECK_NEAR(mass[c], expected_mass[c], 1e-5, 1e-5);
        } else {
            CHECK(!std::isfinite(mass[c])); // which is what the observer looks for
        }
    }
    for (int i = 0; i < heads * rows; i++) {
        if (std::isfinite(expected_entropy[i]) || case_of != 2) { // a row with an infinity in it has no entropy
            CHECK_NEAR(entropy[i], expected_entropy[i], 1e-5, 0);
        }
    }
}

// Cells of random type and layout, with guards around their memory.
struct TestCells {
    int heads, dim, n_cells;
    CellView view = {};
    std::unique_ptr<Guarded<uint8_t>> memory;
    TestCells(Random & random, int heads, int dim_wanted, int n_cells, bool may_transpose, int type = -1)
        : heads(heads), n_cells(n_cells) {
        type = type >= 0 ? type : random.integer(0, CELL_TYPES - 1);
        dim = is_quantised(type) ? (dim_wanted + 31) / 32 * 32 : dim_wanted;
        const bool transposed = may_transpose && !is_quantised(type) && random.integer(0, 1);
        const int row = int(bytes_of(type, size_t(heads) * dim));
        memory = std::make_unique<Guarded<uint8_t>>(size_t(row) * n_cells);
        view = {(uint8_t *)*memory, type, transposed, dim, n_cells, row};
        Vec<int32_t> all(n_cells);
        for (int i = 0; i < n_cells; i++) {
            all[i] = i;
        }
        for (int h = 0; h < heads; h++) {
            const auto x = normals(random, size_t(n_cells) * dim);
            reference.scatter_cells({view, h, all.data(), n_cells, x.data()});
        }
    }
    TestCells(const TestCells & other) : heads(other.heads), dim(other.dim), n_cells(other.n_cells), view(other.view) {
        memory = std::make_unique<Guarded<uint8_t>>(other.memory->n);
        std::memcpy((uint8_t *)*memory, (uint8_t *)*other.memory, memory->n);
        view.data = (uint8_t *)*memory;
    }
    Vec<float> all(int head) const {
        Vec<int32_t> index(n_cells);
        for (int i = 0; i < n_cells; i++) {
            index[i] = i;
        }
        Vec<float> out(size_t(n_cells) * dim);
        reference.gather_cells({view, head, index.data(), n_cells, out.data()});
        return out;
    }
    // How far rounding to the type may move a number of this size: the last place, or a step of the scale.
    double tolerance(double block_max) const {
        return view.type == CELL_F32                              ? 4e-6
               : view.type == CELL_F16                            ? 1e-3 * block_max + 1e-6
               : view.type == CELL_BF16                           ? 8e-3 * block_max
               : view.type == CELL_Q8_0                           ? block_max / 100
               : view.type == CELL_Q5_0 || view.type == CELL_Q5_1 ? block_max / 12
                                                                  : block_max / 4;
    }
    void check_near(const TestCells & expected) const {
        for (int h = 0; h < heads; h++) {
            const auto a = all(h), b = expected.all(h);
            double largest = 0;
            for (float x : b) {
                largest = std::max(largest, std::fabs(double(x)));
            }
            for (size_t i = 0; i < a.size(); i++) {
                const double scale = is_quantised(view.type) ? largest : std::fabs(double(b[i])) + 1e-3;
                CHECK_NEAR(a[i], b[i], tolerance(scale), 0);
            }
        }
    }
};

inline Vec<int32_t> some_cells(Random & random, int n_cells, int n) { // distinct, in any order
    Vec<int32_t> cells(n_cells);
    for (int i = 0; i < n_cells; i++) {
        cells[i] = i;
    }
    std::shuffle(cells.begin(), cells.end(), random.engine);
    cells.resize(n);
    return cells;
}

// Rounds to what half precision holds, by the reference.
inline void round_to_half(Vec<float> & x) {
    Vec<uint16_t> half(x.size());
    const int n = int(x.size());
    const CellView one = {half.data(), CELL_F16, 0, n, 1, std::ptrdiff_t(2 * x.size())};
    const int32_t cell = 0;
    reference.scatter_cells({one, 0, &cell, 1, x.data()});
    reference.gather_cells({one, 0, &cell, 1, x.data()});
}

// Every value that half precision has: read as the reference reads it, and written back to the same bits. The sizes
// leave all remainders of a vector.
template <class Table>
inline void test_every_half(const Table & fast) {
    for (const int dim : {1, 7, 31, 64}) {
        const int n = 65536 / dim;
        std::vector<uint16_t> half(size_t(n) * dim), back(half.size());
        std::vector<int32_t> all(n);
        for (size_t i = 0; i < half.size(); i++) {
            half[i] = uint16_t(i);
            all[i / dim] = int32_t(i / dim);
        }
        std::vector<float> x(half.size()), expected(half.size());
        const CellView from = {half.data(), CELL_F16, 0, dim, n, 2 * dim},
                       to = {back.data(), CELL_F16, 0, dim, n, 2 * dim};
        fast.gather_cells({from, 0, all.data(), n, x.data()});
        reference.gather_cells({from, 0, all.data(), n, expected.data()});
        fast.scatter_cells({to, 0, all.data(), n, x.data()});
        for (size_t i = 0; i < half.size(); i++) {
            CHECK_NEAR(x[i], expected[i], 0, 0);
            CHECK(std::isnan(x[i]) || (back[i] == half[i] && std::signbit(x[i]) == std::signbit(expected[i])));
        }
    }
}

template <class Table>
inline void test_gather_cells(const Table & fast, Random & random) {
    const int n_cells = random.integer(1, 150), n = random.integer(1, n_cells);
    const TestCells cells(random, random.integer(1, 3), random.integer(1, 140), n_cells, true);
    const auto which = some_cells(random, n_cells, n);
    const int head = random.integer(0, cells.heads - 1);
    Guarded<float> out(size_t(n) * cells.dim), expected(size_t(n) * cells.dim);
    fast.gather_cells({cells.view, head, which.data(), n, out});
    reference.gather_cells({cells.view, head, which.data(), n, expected});
    for (int i = 0; i < n * cells.dim; i++) {
        CHECK_NEAR(out[i], expected[i], 0, 0);
    }
}

// Blocks on which quantising has to choose: all zeros, all equal, ties, one sign, and scales that half precision lacks.
inline void spoil_block(Random & random, float * x) {
    const int how = random.integer(0, 9);
    for (int i = 0; i < QUANTS; i++) {
        x[i] = how == 0   ? 0.0f
               : how == 1 ? x[0]
               : how == 2 ? float(random.integer(-8, 8))
               : how == 3 ? std::fabs(x[i])
               : how == 4 ? -std::fabs(x[i])
               : how == 5 ? 1e-6f * x[i]
               : how == 6 ? 1e5f * x[i]
                          : x[i];
    }
}

template <class Table>
inline void test_scatter_cells(const Table & fast, Random & random) {
    const int n_cells = random.integer(1, 150), n = random.integer(1, n_cells);
    const TestCells cells(random, random.integer(1, 3), random.integer(1, 140), n_cells, true);
    const TestCells expected(cells);
    const auto which = some_cells(random, n_cells, n);
    const int head = random.integer(0, cells.heads - 1);
    auto in = normals(random, size_t(n) * cells.dim);
    for (float & x : in) { // all that half precision rounds: ties, subnormals, overflow
        const float special[] = {0.0f,   -0.0f,         INF,           -INF,         65504.0f, 65519.99f, -65520.0f,
                                 1e-30f, 5.9604645e-8f, 2.9802322e-8f, 6.097555e-5f, 2049.0f,  2051.0f};
        if (!is_quantised(cells.view.type) && random.integer(0, 4) == 0) {
            x = random.integer(0, 1) ? special[random.integer(0, 12)] : std::ldexp(x, random.integer(-30, 18));
        }
    }
    if (is_quantised(cells.view.type)) {
        for (size_t block = 0; block < in.size(); block += QUANTS) {
            spoil_block(random, in.data() + block);
        }
    }
    fast.scatter_cells({cells.view, head, which.data(), n, in.data()});
    reference.scatter_cells({expected.view, head, which.data(), n, in.data()});
    CHECK(std::memcmp(cells.view.data, expected.view.data, cells.memory->n) == 0); // all bits, also around them
}

template <class Table>
inline void test_score_stats(const Table & fast, Random & random) {
    const int kv_heads = random.integer(1, 3), heads_per_kv = random.integer(1, 3), heads = kv_heads * heads_per_kv,
              rows = random.integer(1, random.integer(0, 9) == 0 ? 60 : 20),
              cells = random.integer(0, 9) == 0 ? 1 : random.integer(1, 300), half_powers = random.integer(2, 4);
    // Keys in half precision whose size is a multiple of 8 are for tensor cores.
    const bool halves = random.integer(0, 1);
    const int size = halves && random.integer(0, 9) == 0 ? 8 * random.integer(1, 64)
                     : halves                            ? 8 * random.integer(1, 18)
                                                         : random.integer(1, 70);
    TestCells keys(random, kv_heads + random.integer(0, 1), size, cells + random.integer(0, 4), false,
                   halves && random.integer(0, 3) ? int(CELL_F16) : -1);
    const int dim = keys.dim, first = keys.heads - kv_heads;
    const int row_stride = heads * dim, head_stride = dim, mask_stride = cells + random.integer(0, 5);
    auto q = normals(random, size_t(rows) * row_stride);
    Vec<uint16_t> mask(size_t(rows) * mask_stride, 0);
    Vec<float> inverse(rows, 0.0f);
    for (int r = 0; r < rows; r++) {
        int visible = 0;
        for (int c = 0; c < cells; c++) {
            const bool hidden = random.integer(0, 3) == 0 || (r == 0 && rows > 3); // the first row of some sees nothing
            mask[r * mask_stride + c] = hidden ? 0xfc00 : 0;
            visible += !hidden;
        }
        inverse[r] = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
    }
    const bool masked = random.integer(0, 4) > 0;
    const float scale = 1 / std::sqrt(float(dim)), cap = random.integer(0, 3) == 0 ? 5.0f : 0.0f;
    const float row_weight = random.integer(0, 2) == 0 ? 3.5f : 1.0f;
    const int case_of = random.integer(0, 9);
    if (case_of <= 1) { // one cell takes all, or all tie
        for (float & x : q) {
            x *= case_of == 0 ? 60 : 0;
        }
    }
    round_to_half(q); // what the tensor cores take: queries that half precision holds exactly
    Guarded<float> mass(size_t(kv_heads) * cells, 0.5f), expected_mass(size_t(kv_heads) * cells, 0.5f),
        entropy(size_t(heads) * rows), expected_entropy(size_t(heads) * rows);
    const auto run = [&](const auto & table, float * m, float * e) {
        table.score_stats({q.data(),    head_stride, row_stride, kv_heads,   heads_per_kv,
                           rows,        keys.view,   first,      cells,      masked ? mask.data() : nullptr,
                           mask_stride, scale,       cap,        row_weight, half_powers,
                           m,           cells,       e,          rows,       inverse.data()});
    };
    const bool masses = random.integer(0, 9) > 0;
    run(fast, masses ? (float *)mass : nullptr, entropy);
    run(reference, masses ? (float *)expected_mass : nullptr, expected_entropy);
    for (int c = 0; c < kv_heads * cells; c++) {
        CHECK_NEAR(mass[c], expected_mass[c], 3e-4, 3e-4);
    }
    for (int i = 0; i < heads * rows; i++) {
        CHECK_NEAR(entropy[i], expected_entropy[i], 2e-4, 0);
    }
    Vec<float> spoilt(dim, 0.5f);
    spoilt[0] = NOT_A_NUMBER;
    const Vec<int32_t> any(1, random.integer(0, cells - 1));
    if (!masked && !is_quantised(keys.view.type)) {
        reference.scatter_cells({keys.view, first, any.data(), 1, spoilt.data()});
        run(fast, mass, entropy);
        double sum = 0;
        for (int c = 0; c < cells; c++) {
            sum += mass[c];
        }
        CHECK(std::isnan(sum)); // a NaN is seen in the mass, which is where the observer looks
    }
}

template <class Table>
inline void test_find_spans(const Table & fast, Random & random) {
    const int rows = random.integer(1, 5), n = random.integer(1, 300), stride = n + random.integer(0, 7);
    const int first = random.integer(0, n), end = random.integer(first, n), longest = random.integer(1, 40);
    const float threshold = random.normal();
    Vec<float> value = normals(random, size_t(rows) * stride);
    for (int i = 1; i < rows * stride; i++) { // runs, and values that are the threshold
        value[i] = random.integer(0, 3)         ? value[i - 1]
                   : random.integer(0, 9) == 0  ? threshold
                   : random.integer(0, 30) == 0 ? NOT_A_NUMBER
                                                : value[i];
    }
    Guarded<int32_t> span(size_t(rows) * stride, -7), expected(size_t(rows) * stride, -7);
    fast.find_spans({value.data(), stride, rows, first, end, threshold, longest, span});
    reference.find_spans({value.data(), stride, rows, first, end, threshold, longest, expected});
    for (int i = 0; i < rows * stride; i++) {
        CHECK(span[i] == expected[i]);
    }
}

template <class Table>
inline void test_query_moments(const Table & fast, Random & random) {
    const int kv_heads = random.integer(1, 3), heads_per_kv = random.integer(1, 4), rows = random.integer(1, 20),
              dim = random.integer(1, 130);
    const int row_stride = dim * kv_heads * heads_per_kv, head_stride = dim; // [token][head][dim], as in llama.cpp
    const auto q = normals(random, size_t(rows) * row_stride);
    const size_t n = size_t(kv_heads) * dim;
    Guarded<float> sum(n, 1), second(n * dim, 2), expected_sum(n, 1), expected_second(n * dim, 2);
    QueryMomentsArgs args = {q.data(),     head_stride, row_stride, kv_heads,
                             heads_per_kv, rows,        dim,        random.integer(0, 1) ? 1.0f : 0.7f,
                             sum,          second};
    fast.query_moments(args);
    args.sum = expected_sum;
    args.second = expected_second;
    reference.query_moments(args);
    for (size_t i = 0; i < n; i++) {
        CHECK_NEAR(sum[i], expected_sum[i], 2e-5, 1e-5);
    }
    for (size_t i = 0; i < n * dim; i++) {
        CHECK_NEAR(second[i], expected_second[i], 2e-5, 1e-5);
    }
}

template <class Table>
inline void test_fold_direction(const Table & fast, Random & random) {
    const int n = random.integer(1, 3), dim = random.integer(1, random.integer(0, 9) == 0 ? 270 : 130),
              samples = random.integer(1, 100);
    Vec<float> sum(size_t(n) * dim, 0.0f), second(size_t(n) * dim * dim, 0.0f);
    const auto center = normals(random, dim);
    for (int k = 0; k < n * samples; k++) {
        const int head = k / samples;
        auto q = normals(random, dim);
        for (int i = 0; i < dim; i++) {
            q[i] += center[i];
        }
        for (int i = 0; i < dim; i++) {
            sum[head * dim + i] += q[i];
            for (int j = 0; j < dim; j++) {
                second[(head * dim + i) * dim + j] += q[i] * q[j];
            }
        }
    }
    if (random.integer(0, 9) == 0) {
        std::fill(second.begin(), second.begin() + dim * dim, 0.0f);
    }
    const double ridge = random.integer(0, 3) == 0 ? 1e-4 : 0.05;
    Guarded<float> u(size_t(n) * dim), expected(size_t(n) * dim);
    fast.fold_direction({sum.data(), second.data(), n, dim, 1.0 / samples, ridge, u});
    reference.fold_direction({sum.data(), second.data(), n, dim, 1.0 / samples, ridge, expected});
    for (int i = 0; i < n * dim; i++) {
        CHECK_NEAR(u[i], expected[i], 1e-5, 1e-4);
    }
}

// Random groups of some heads, with destinations that are members of other groups.
template <class Table>
inline void test_merge_cells(const Table & fast, Random & random) {
    const int n_cells = random.integer(1, 90), n_heads = random.integer(1, 3);
    const bool halves = random.integer(0, 2) == 0;             // as models mostly have them
    const bool rotated = !halves && random.integer(0, 3) == 0; // stored rotated by a Hadamard matrix
    const int type = halves ? int(CELL_F16) : -1;
    const TestCells keys(random, n_heads, rotated ? 64 : 2 * random.integer(1, 70), n_cells, false, type);
    const TestCells values(random, n_heads, (halves ? 2 : 1) * random.integer(1, 65), n_cells, !halves, type);
    const TestCells expected_keys(keys), expected_values(values);
    const int n_rot = 2 * random.integer(0, keys.dim / 2);
    Vec<double> freq(n_rot / 2 + 1);
    for (int i = 0; i < n_rot / 2; i++) {
        freq[i] = std::pow(10000.0, -2.0 * i / n_rot);
    }
    const auto u = normals(random, keys.dim);
    struct Arrays {
        Vec<int32_t> start{0}, member, delta, dest;
        Vec<float> weight, value_weight, bias;
        std::unique_ptr<Guarded<float>> scratch;
    };
    std::vector<Arrays> arrays(n_heads);
    std::vector<MergeHead> heads, expected;
    for (int h = 0; h < n_heads; h++) {
        Arrays & a = arrays[h];
        const auto order = some_cells(random, n_cells, n_cells);
        for (int at = 0; at < n_cells;) {
            const int n = std::min(n_cells - at, random.integer(1, 9));
            float total = 0;
            for (int i = 0; i < n; i++) {
                a.member.push_back(order[at + i]);
                a.delta.push_back(i == 0 ? 0 : random.integer(-100000, 100000));
                a.weight.push_back(std::fabs(random.normal()) + 0.01f);
                total += a.weight.back();
                a.value_weight.push_back(std::fabs(random.normal()));
            }
            for (int i = 0; i < n; i++) {
                a.weight[at + i] /= total;
            }
            at += n;
            a.start.push_back(at);
        }
        const int groups = int(a.start.size()) - 1;
        a.dest = some_cells(random, n_cells, groups);
        a.bias = normals(random, groups);
        a.scratch = std::make_unique<Guarded<float>>(size_t(groups) * (keys.dim + values.dim));
        const bool folds = random.integer(0, 1);
        heads.push_back({keys.view, values.view, h, groups, a.start.data(), a.member.data(), a.delta.data(),
                         a.weight.data(), a.value_weight.data(), a.dest.data(), folds ? a.bias.data() : nullptr,
                         folds ? u.data() : nullptr, *a.scratch, n_rot, random.integer(0, 1), freq.data(),
                         rotated ? random.integer(0, 1) ? 64 : 32 : 0});
        expected.push_back(heads.back());
        expected.back().k = expected_keys.view;
        expected.back().v = expected_values.view;
    }
    fast.merge_cells({heads.data(), n_heads});
    reference.merge_cells({expected.data(), n_heads});
    keys.check_near(expected_keys);
    values.check_near(expected_values);
}

// A rotation to another position and back, and equality with rotating from scratch: the law that the merge rests on.
template <class Table>
inline void test_rotation_composes(const Table & fast) {
    const int dim = 64;
    Random random(7);
    const TestCells key(random, 1, dim, 1, false, CELL_F32), value(random, 1, 1, 1, false, CELL_F32);
    Vec<double> freq(dim / 2);
    for (int i = 0; i < dim / 2; i++) {
        freq[i] = std::pow(100000.0, -2.0 * i / dim);
    }
    const auto rotate = [&](const TestCells & k, int32_t by) {
        const TestCells out(k);
        const Vec<int32_t> start = {0, 1}, zero = {0}, delta = {by};
        const Vec<float> one = {1.0f};
        Vec<float> scratch(dim + 1);
        const MergeHead head = {out.view,
                                value.view,
                                0,
                                1,
                                start.data(),
                                zero.data(),
                                delta.data(),
                                one.data(),
                                one.data(),
                                zero.data(),
                                nullptr,
                                nullptr,
                                scratch.data(),
                                dim,
                                1,
                                freq.data(),
                                0};
        fast.merge_cells({&head, 1});
        return out;
    };
    const auto there = rotate(rotate(key, 4000), 37).all(0), direct = rotate(key, 4037).all(0),
               back = rotate(rotate(key, 4037), -4037).all(0), before = key.all(0);
    for (int i = 0; i < dim; i++) {
        CHECK_NEAR(there[i], direct[i], 3e-6, 0);
        CHECK_NEAR(back[i], before[i], 3e-6, 0);
    }
}

// Cells that only move keep their values, also where a quantised block is quantised again.
template <class Table>
inline void test_moved_cells_keep_bits(const Table & fast) {
    Random random(8);
    for (int type = 0; type < CELL_TYPES; type++) {
        for (const bool transposed : {false, true}) {
            if (transposed && is_quantised(type)) {
                continue;
            }
            const int n = 40, dim = is_quantised(type) ? 64 : 24;
            TestCells keys(random, 1, dim, n, false, type), values(random, 1, dim, n, false, type);
            values.view.transposed = transposed;
            const TestCells before_k(keys), before_v(values);
            const auto from = some_cells(random, n, n), to = some_cells(random, n, n);
            Vec<int32_t> start(n + 1), delta(n, 0);
            std::iota(start.begin(), start.end(), 0);
            const Vec<float> one(n, 1.0f);
            Vec<float> scratch(size_t(n) * 2 * dim);
            const MergeHead head = {
                keys.view,  values.view, 0,         n,       start.data(), from.data(),    delta.data(),
                one.data(), one.data(),  to.data(), nullptr, nullptr,      scratch.data(), 0,
                0,          nullptr,     0};
            Vec<MergeHead> heads(1, head);
            fast.merge_cells({heads.data(), 1});
            const auto k = keys.all(0), v = values.all(0), k0 = before_k.all(0), v0 = before_v.all(0);
            for (int i = 0; i < n * dim; i++) {
                CHECK(k[to[i / dim] * dim + i % dim] == k0[from[i / dim] * dim + i % dim]);
                CHECK(v[to[i / dim] * dim + i % dim] == v0[from[i / dim] * dim + i % dim]);
            }
        }
    }
}

template <class Table>
inline void test_entropy_of_known_rows(const Table & fast) {
    const int n = 1000;
    Vec<float> uniform(n, 1.0f / n), one_hot(n, 0.0f), mass(n, 0.0f), entropy(1, -1.0f);
    one_hot[17] = 1;
    const Vec<float> inverse(1, float(1 / std::log(double(n))));
    fast.attention_stats({uniform.data(), n, n, 1, 1, 1, n, 2, mass.data(), n, entropy.data(), 1, inverse.data()});
    CHECK_NEAR(entropy[0], 1, 1e-5, 0);
    fast.attention_stats({one_hot.data(), n, n, 1, 1, 1, n, 2, mass.data(), n, entropy.data(), 1, inverse.data()});
    CHECK_NEAR(entropy[0], 0, 1e-6, 0);
}

template <class Table>
inline void test_project_cells(const Table & fast, Random & random) {
    const int n_cells = random.integer(1, 300), heads = random.integer(1, 3), n = random.integer(0, n_cells);
    const bool rotated = random.integer(0, 3) == 0;
    const TestCells keys(random, heads, rotated ? 64 : random.integer(1, 140), n_cells, true);
    const TestCells values(random, heads, random.integer(1, 140), n_cells, true);
    const int head = random.integer(0, heads - 1), n_rot = 2 * random.integer(0, keys.dim / 2);
    const auto weight = normals(random, keys.dim);
    Vec<double> freq(n_rot / 2 + 1);
    for (int i = 0; i < n_rot / 2; i++) {
        freq[i] = std::pow(10000.0, -2.0 * i / n_rot);
    }
    for (int again = 0; again < 2; again++) { // other positions at the same place
        const auto which = some_cells(random, n_cells, n);
        Vec<int32_t> position(n);
        for (int32_t & p : position) {
            p = random.integer(0, 100000);
        }
        Guarded<float> product(n), length(n), expected_product(n), expected_length(n);
        ProjectCellsArgs args = {
            keys.view, values.view,          head,        which.data(),     position.data(), n,     weight.data(),
            n_rot,     random.integer(0, 1), freq.data(), rotated ? 64 : 0, product,         length};
        fast.project_cells(args);
        args.product = expected_product, args.length = expected_length;
        reference.project_cells(args);
        for (int i = 0; i < n; i++) {
            CHECK_NEAR(product[i], expected_product[i], 1e-4, 1e-4);
            CHECK_NEAR(length[i], expected_length[i], 1e-5, 1e-5);
        }
    }
}

template <class Table>
inline void test_expected_attention(const Table & fast, Random & random) {
    const int n = random.integer(1, 300);
    Vec<double> rate(n);
    for (double & r : rate) {
        r = random.integer(0, 5) == 0 ? 0.0 : std::exp(3.0 * random.normal() - 6);
    }
    Vec<float> prior = normals(random, n), weight = normals(random, 4);
    Vec<int32_t> position(n);
    const int now = random.integer(n, 1000000);
    for (int i = 0; i < n; i++) {
        position[i] = now - (n - i) * random.integer(1, now / n);
    }
    if (random.integer(0, 3) == 0) { // more or less than a float holds
        prior[0] = random.integer(0, 1) ? 1000.0f : -1000.0f;
    }
    Guarded<double> expected(n), exact(n);
    ExpectedAttentionArgs args = {n, rate.data(), prior.data(), position.data(), now, 1e-6, weight.data(), expected};
    fast.expected_attention(args);
    args.expected = exact;
    reference.expected_attention(args);
    for (int i = 0; i < n; i++) {
        CHECK_NEAR(expected[i], exact[i], 1e-30, 1e-4); // 1e-7 of logarithms that may be tens
    }
    prior[0] = NOT_A_NUMBER;
    args.expected = expected;
    fast.expected_attention(args);
    CHECK(std::isnan(expected[0]) && (n == 1 || !std::isnan(expected[1])));
}

// Rounding may turn a choice between two operations of nearly the same price. So the plans may differ, and what has to
// agree is the sum of the prices.
template <class Table>
inline void test_plan_groups(const Table & fast, Random & random) {
    const int n = random.integer(1, random.integer(0, 3) ? 60 : 150), heads = random.integer(1, 3),
              n_cells = n + random.integer(0, 20);
    const TestCells keys(random, heads, random.integer(1, 70), n_cells, true);
    const TestCells values(random, heads, random.integer(1, 70), n_cells, true);
    const auto which = some_cells(random, n_cells, n);
    const int head = random.integer(0, heads - 1);
    const int first = random.integer(0, n), end = random.integer(first, n), operations = random.integer(0, end - first);
    const int largest = random.integer(1, 5);
    Vec<double> rate(n);
    for (double & r : rate) {
        r = random.integer(0, 5) == 0 ? 0.0 : std::exp(double(random.normal()));
    }
    const double key_cost = random.integer(0, 4) == 0 ? 0.0 : 0.3;
    Guarded<int32_t> group(n), expected(n);
    Vec<double> costs(3);
    double &cost = costs[0], &expected_cost = costs[1], &same_cost = costs[2];
    PlanGroupsArgs args = {keys.view, values.view, head,    which.data(), n,     rate.data(), first,
                           end,       operations,  largest, key_cost,     group, &cost,       nullptr};
    fast.plan_groups(args);
    args.group = expected, args.cost = &expected_cost;
    reference.plan_groups(args);
    CHECK_NEAR(cost, expected_cost, 1e-5, 2e-3);
    int groups = 0;
    for (int i = 0; i < n; i++) {
        groups += group[i] == i;
        const bool touchable = i >= first && i < end;
        CHECK(touchable || group[i] == i);
        if (group[i] >= 0) {
            const int lead = group[i];
            CHECK(lead <= i && group[lead] == lead && (lead == i || (lead >= first && touchable)));
            CHECK(std::count(&group[0], &group[0] + n, lead) <= largest);
            for (int j = lead; j < i; j++) { // neighbours: whoever lies between is in the group or dropped
                CHECK(group[j] == lead || group[j] == -1);
            }
        }
    }
    CHECK(groups == n - operations);

    // What a call remembers for the next one is true, and does not change the plan.
    Vec<Neighbour> known(n_cells);
    for (int again = 0; again < 2; again++) {
        Guarded<int32_t> same(n);
        args.group = same, args.cost = &same_cost, args.known = known.data();
        fast.plan_groups(args);
        CHECK(std::equal(&group[0], &group[0] + n, &same[0]) && same_cost == cost);
    }
    const auto k = keys.all(head), v = values.all(head);
    const auto apart = [](const Vec<float> & x, int dim, int a, int b) {
        double sum = 0;
        for (int i = 0; i < dim; i++) {
            sum += std::pow(double(x[size_t(a) * dim + i]) - x[size_t(b) * dim + i], 2);
        }
        return sum;
    };
    for (int c = 0; c < n_cells; c++) {
        if (known[c].next >= 0) {
            CHECK_NEAR(known[c].keys, apart(k, keys.dim, c, known[c].next), 1e-6, 1e-4);
            CHECK_NEAR(known[c].values, apart(v, values.dim, c, known[c].next), 1e-6, 1e-4);
        }
    }
    // A call believes what it is given: cells that are said to be alike merge at no cost.
    if (operations > 0 && end - first > 1 && largest > 1) {
        for (int i = first; i + 1 < end; i++) {
            known[which[i]] = {which[i + 1], 0, 0};
            rate[i] = rate[i + 1] = 1;
        }
        args.operations = 1, args.group = expected, args.cost = &expected_cost;
        fast.plan_groups(args);
        CHECK(expected_cost == 0);
    }
}

template <class Table>
inline void test_log_sum_exp(const Table & fast, Random & random) {
    const int n = random.integer(1, 5000);
    auto x = random.normals(n);
    for (float & v : x) {
        v = random.integer(0, 20) == 0 ? -INF : 12 * v;
    }
    x[random.integer(0, n - 1)] = 30;
    x[random.integer(0, n - 1)] = 30; // a tie
    double lse, expected_lse;
    std::ptrdiff_t top, expected_top;
    fast.log_sum_exp({x.data(), n, &lse, &top});
    reference.log_sum_exp({x.data(), n, &expected_lse, &expected_top});
    CHECK_NEAR(lse, expected_lse, 2e-6, 1e-7);
    CHECK(top == expected_top);
}

template <class Table>
inline void test_kl_row(const Table & fast, Random & random) {
    const int n = random.integer(1, 5000);
    auto x = random.normals(n);
    std::vector<uint16_t> base(n);
    const float low = -20, scale = 18.0f / 65535;
    for (int i = 0; i < n; i++) {
        base[i] = uint16_t(random.integer(0, 65535));
        x[i] = low + scale * base[i] + (random.integer(0, 1) ? 0.1f * x[i] : x[i]);
    }
    double lse, kl, expected;
    std::ptrdiff_t top;
    reference.log_sum_exp({x.data(), n, &lse, &top});
    fast.kl_row({base.data(), scale, low, x.data(), lse, n, &kl});
    reference.kl_row({base.data(), scale, low, x.data(), lse, n, &expected});
    CHECK_NEAR(kl, expected, 1e-5, 1e-5);
    CHECK(expected >= -1e-12);
}

// Runs the tests of a list of kernels: KVMERGE_KERNELS(KVMERGE_TEST) in a function with `table`, `isa`, `seed`,
// `times`.
#define KVMERGE_TEST(name, Args)                 \
    {                                            \
        std::printf("  %-16s %s\n", #name, isa); \
        std::fflush(stdout);                     \
        for (unsigned i = 0; i < times; i++) {   \
            Random random(seed + i);             \
            test_##name(table, random);          \
        }                                        \
    }

static unsigned seed_of(int argc, char ** argv) {
    const unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : std::random_device{}();
    std::printf("seed %u (pass it to repeat)\n", seed);
    return seed;
}
