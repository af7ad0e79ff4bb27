// Query moments, the direction to fold a bias along.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// Adds the products of ROWS queries to two rows of the upper triangle, from a column that is a multiple of the vector on.
template <int ROWS>
static inline void add_products(const float * q, std::ptrdiff_t stride, int i, int d, float * second) {
    constexpr int VECTOR = 16;
    const int pair = i + 1 < d;
    float * const row0 = second + std::ptrdiff_t(i) * d;
    float * const row1 = row0 + (pair ? d : 0);
    float x0[ROWS], x1[ROWS];
    for (int r = 0; r < ROWS; r++) {
        x0[r] = q[r * stride + i];
        x1[r] = pair ? q[r * stride + i + 1] : 0.0f;
    }
#pragma omp simd
    for (int j = i / VECTOR * VECTOR; j < d; j++) {
        float y0 = 0, y1 = 0;
        for (int r = 0; r < ROWS; r++) {
            y0 += x0[r] * q[r * stride + j];
            y1 += x1[r] * q[r * stride + j];
        }
        if (pair) {
            row0[j] += y0;
            row1[j] += y1;
        } else {
            row0[j] += y0;
        }
    }
}

void query_moments(const QueryMomentsArgs & a) {
    const int d = a.dim;
    for (std::ptrdiff_t i = 0; i < std::ptrdiff_t(a.n_kv_heads) * d; i++) {
        a.sum[i] *= a.keep;
    }
    for (std::ptrdiff_t i = 0; i < std::ptrdiff_t(a.n_kv_heads) * d * d; i++) {
        a.second[i] *= a.keep;
    }
    for (int h = 0; h < a.n_kv_heads * a.group; h++) {
        const float * const head = a.q + h * a.head_stride;
        float * const sum = a.sum + std::ptrdiff_t(h / a.group) * d;
        float * const second = a.second + std::ptrdiff_t(h / a.group) * d * d;
        int r = 0;
        for (; r + 4 <= a.n_rows; r += 4) {
            add_rows<4>(head + r * a.row_stride, a.row_stride, d, sum);
            for (int i = 0; i < d; i += 2) {
                add_products<4>(head + r * a.row_stride, a.row_stride, i, d, second);
            }
        }
        for (; r < a.n_rows; r++) {
            add_rows<1>(head + r * a.row_stride, 0, d, sum);
            for (int i = 0; i < d; i += 2) {
                add_products<1>(head + r * a.row_stride, a.row_stride, i, d, second);
            }
        }
    }
    for (int h = 0; h < a.n_kv_heads; h++) {
        float * const second = a.second + std::ptrdiff_t(h) * d * d;
        for (int i = 0; i < d; i++) { // the lower triangle follows the upper
            for (int j = 0; j < i; j++) {
                second[std::ptrdiff_t(i) * d + j] = second[std::ptrdiff_t(j) * d + i];
            }
        }
    }
}

static void fold_one(const float * sum, const float * second, int d, double inverse_weight, double ridge, float * u) {
    double trace = 0;
    for (int i = 0; i < d; i++) {
        trace += second[std::ptrdiff_t(i) * d + i] * inverse_weight;
    }
    std::fill(u, u + d, 0.0f);
    if (!(trace > 0)) {
        return;
    }
    // Right-looking Cholesky on the upper triangle, A = U'U: every inner loop runs along a row.
    std::vector<double> upper(size_t(d) * d), x(d);
    for (int i = 0; i < d; i++) {
        for (int j = i; j < d; j++) {
            upper[size_t(i) * d + j] = second[std::ptrdiff_t(i) * d + j] * inverse_weight;
        }
        upper[size_t(i) * d + i] += ridge * trace / d;
        x[i] = sum[i] * inverse_weight;
    }
    for (int i = 0; i < d; i++) {
        double * const row = upper.data() + size_t(i) * d;
        const double inverse = 1 / std::sqrt(row[i]);
        for (int j = i; j < d; j++) {
            row[j] *= inverse;
        }
        x[i] /= row[i];
        for (int r = i + 1; r < d; r++) {
            double * const below = upper.data() + size_t(r) * d;
            const double f = row[r];
#pragma omp simd
            for (int j = r; j < d; j++) {
                below[j] -= f * row[j];
            }
            x[r] -= f * x[i];
        }
    }
    for (int i = d - 1; i >= 0; i--) {
        const double * const row = upper.data() + size_t(i) * d;
        double rest = x[i];
        for (int j = i + 1; j < d; j++) {
            rest -= row[j] * x[j];
        }
        x[i] = rest / row[i];
        u[i] = float(x[i]);
    }
}

void fold_direction(const FoldDirectionArgs & a) {
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        fold_one(a.sum + i * a.dim, a.second + i * a.dim * a.dim, a.dim, a.inverse_weight, a.ridge, a.u + i * a.dim);
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
