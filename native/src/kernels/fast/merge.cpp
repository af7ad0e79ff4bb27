// Kernels that rotate keys: merging cells, and what a calibration takes from them.
#include "../hadamard.hpp"
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// Cosine and sine of an angle in turns, error about 1e-7. The angle is reduced in double: in single precision,
// thousands of radians have no good digits left.
static inline void cos_sin_turns(double turns, float & c, float & s) {
    const double magic = 6755399441055744.0; // adding it rounds to an integer
    const double quarter = (turns * 4.0 + magic) - magic;
    const float x = float((turns * 4.0 - quarter) * 1.57079632679489662);
    const double whole = (quarter * 0.25 + magic) - magic;
    const int q = int(quarter - whole * 4.0) & 3;
    const float z = x * x;
    const float sine = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float cosine =
        1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float a = (q & 1) ? sine : cosine;
    const float b = (q & 1) ? cosine : sine;
    c = (q == 1 || q == 2) ? -a : a;
    s = (q >= 2) ? -b : b;
}

namespace {

// Cosines and sines of rotations, [n_rot/2] each, by the number of positions. They are kept for the next member: since
// neighbours merge, few numbers occur.
class Rotations {
  public:
    // The cosines, followed by the sines.
    const float * over(int32_t delta, const double * freq, int half) {
        if (freq != freq_ || half != half_) {
            freq_ = freq;
            half_ = half;
            kept_.assign(SLOTS, 0);
            table_.resize(size_t(SLOTS) * 2 * half);
        }
        const size_t slot = uint32_t(delta) % SLOTS;
        float *const cosine = table_.data() + slot * 2 * half, *const sine = cosine + half;
        if (kept_[slot] != delta) { // an empty slot has 0, which is never asked for
            const double turns = delta * 0.159154943091895336;
#pragma omp simd
            for (int i = 0; i < half; i++) {
                cos_sin_turns(turns * freq[i], cosine[i], sine[i]);
            }
            kept_[slot] = delta;
        }
        return cosine;
    }

  private:
    static constexpr uint32_t SLOTS = 64;
    const double * freq_ = nullptr;
    int half_ = 0;
    std::vector<int32_t> kept_; // the delta in each slot
    std::vector<float> table_;
};

} // namespace

static void add_value(const float * v, float w, int n, float * value) {
#pragma omp simd
    for (int i = 0; i < n; i++) {
        value[i] += w * v[i];
    }
}

// Adds w times the rotated pairs of x and y. Pairs are STRIDE elements apart.
template <int STRIDE>
static void add_turned(const float * x, const float * y, const float * c, const float * s, float w, int half,
                       float * to_x, float * to_y) {
#pragma omp simd
    for (int i = 0; i < half; i++) {
        to_x[STRIDE * i] += w * (x[STRIDE * i] * c[i] - y[STRIDE * i] * s[i]);
        to_y[STRIDE * i] += w * (x[STRIDE * i] * s[i] + y[STRIDE * i] * c[i]);
    }
}

// Adds w times a key, rotated by RoPE over delta positions.
static void add_key(const MergeHead & h, const float * k, float w, int32_t delta, float * key, Rotations & rotations) {
    const int half = h.n_rot / 2;
    const int plain = delta == 0 ? 0 : h.n_rot;
#pragma omp simd
    for (int i = plain; i < h.k.dim; i++) {
        key[i] += w * k[i];
    }
    if (plain == 0) {
        return;
    }
    const float *const c = rotations.over(delta, h.freq, half), *const s = c + half;
    h.neox ? add_turned<1>(k, k + half, c, s, w, half, key, key + half)
           : add_turned<2>(k, k + 1, c, s, w, half, key, key + 1);
}

// So many members are read at a time, into memory that stays in the first caches and is kept from call to call: memory
// that is new to the process costs page faults.
constexpr int MEMBERS = 128;

static void merge_head(const MergeHead & h, Rotations & rotations, std::vector<float> & members) {
    const int n_members = h.n_groups ? h.start[h.n_groups] : 0, dim_k = h.k.dim, dim_v = h.v.dim;
    members.resize(std::max(members.size(), size_t(MEMBERS) * (dim_k + dim_v)));
    float *const keys = members.data(), *const values = keys + size_t(MEMBERS) * dim_k;
    float * const out_keys = h.scratch;
    float * const out_values = h.scratch + size_t(h.n_groups) * dim_k;
    std::fill(out_keys, out_values + size_t(h.n_groups) * dim_v, 0.0f);
    int g = 0;
    for (int first = 0; first < n_members; first += MEMBERS) {
        const int count = std::min(MEMBERS, n_members - first);
        gather_cells({h.k, h.head, h.member + first, count, keys});
        gather_cells({h.v, h.head, h.member + first, count, values});
        if (h.hadamard) {
            hadamard_transform(keys, count * dim_k, h.hadamard);
        }
        for (int i = 0; i < count; i++) {
            const int m = first + i;
            while (m >= h.start[g + 1]) {
                g++;
            }
            add_key(h, keys + size_t(i) * dim_k, h.weight[m], h.delta[m], out_keys + size_t(g) * dim_k, rotations);
            add_value(values + size_t(i) * dim_v, h.value_weight[m], dim_v, out_values + size_t(g) * dim_v);
        }
    }
    if (h.hadamard) {
        hadamard_transform(out_keys, h.n_groups * dim_k, h.hadamard);
    }
    for (int b = 0; h.bias && b < h.n_groups; b++) {
        add_value(h.u, h.bias[b], dim_k, out_keys + size_t(b) * dim_k);
    }
    scatter_cells({h.k, h.head, h.dest, h.n_groups, out_keys});
    scatter_cells({h.v, h.head, h.dest, h.n_groups, out_values});
}

void merge_cells(const MergeCellsArgs & a) {
    Rotations rotations;
    std::vector<float> members;
    for (int i = 0; i < a.n_heads; i++) {
        merge_head(a.heads[i], rotations, members);
    }
}

namespace {

// Cosines and sines of some positions, kept for the next head: all heads of a layer have the same, and in most models
// all layers.
class Angles {
  public:
    // The cosines of position i are at [i][half]; all sines follow all cosines.
    const float * of(const int32_t * position, int n, const double * freq, int half) {
        if (int(position_.size()) != n || int(freq_.size()) != half ||
            !std::equal(position, position + n, position_.begin()) || !std::equal(freq, freq + half, freq_.begin())) {
            position_.assign(position, position + n);
            freq_.assign(freq, freq + half);
            table_.resize(size_t(n) * 2 * half);
            for (int i = 0; i < n; i++) {
                float *const c = table_.data() + size_t(i) * half, *const s = c + size_t(n) * half;
                const double turns = position[i] * 0.159154943091895336;
#pragma omp simd
                for (int j = 0; j < half; j++) {
                    cos_sin_turns(turns * freq[j], c[j], s[j]);
                }
            }
        }
        return table_.data();
    }

  private:
    std::vector<int32_t> position_;
    std::vector<double> freq_;
    std::vector<float> table_;
};

} // namespace

static float dot(const float * x, const float * y, int n) {
    Vector sum = {};
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        sum += load(x + i) * load(y + i);
    }
    float rest = 0;
    for (; i < n; i++) {
        rest += x[i] * y[i];
    }
    return added_up(sum) + rest;
}

// Undoes RoPE. Pairs are elements of x and y, STRIDE apart.
template <int STRIDE>
static void turn_back(float * x, float * y, const float * c, const float * s, int half) {
#pragma omp simd
    for (int j = 0; j < half; j++) {
        const float a = x[STRIDE * j], b = y[STRIDE * j];
        x[STRIDE * j] = a * c[j] + b * s[j];
        y[STRIDE * j] = b * c[j] - a * s[j];
    }
}

void project_cells(const ProjectCellsArgs & a) {
    thread_local Angles angles;
    const int half = a.n_rot / 2, dim = a.keys.dim;
    const float *const cosine = angles.of(a.position, a.n, a.freq, half), *const sine = cosine + size_t(a.n) * half;
    std::vector<float> rows(size_t(MEMBERS) * std::max(dim, a.values.dim));
    for (int i0 = 0; i0 < a.n; i0 += MEMBERS) {
        const int count = std::min(MEMBERS, a.n - i0);
        gather_cells({a.keys, a.head, a.cells + i0, count, rows.data()});
        if (a.hadamard) {
            hadamard_transform(rows.data(), count * dim, a.hadamard);
        }
        for (int i = 0; i < count; i++) {
            float * const k = rows.data() + std::ptrdiff_t(i) * dim;
            const float * const c = cosine + std::ptrdiff_t(i0 + i) * half;
            const float * const s = sine + std::ptrdiff_t(i0 + i) * half;
            a.neox ? turn_back<1>(k, k + half, c, s, half) : turn_back<2>(k, k + 1, c, s, half);
            a.product[i0 + i] = dot(k, a.weight, dim);
        }
        gather_cells({a.values, a.head, a.cells + i0, count, rows.data()});
        for (int i = 0; i < count; i++) {
            const float * const v = rows.data() + std::ptrdiff_t(i) * a.values.dim;
            a.length[i0 + i] = std::sqrt(dot(v, v, a.values.dim));
        }
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
