// Query moments, the direction to fold a bias along.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// So many queries are taken at once, into memory that stays in the first cache.
constexpr int QUERIES = 64;

// Adds products of queries [n][stride] to a piece of their second moment: rows i .. i+7, and the columns of one vector
// from j on. The sums stay in registers over all queries.
constexpr int PIECE = 8;

static inline void add_products(const float * q, int n, int stride, int i, int j, int d, float * second) {
    Vector sum[PIECE] = {};
    for (int r = 0; r < n; r++) {
        const float * const row = q + std::ptrdiff_t(r) * stride;
        const Vector y = load(row + j);
        for (int k = 0; k < PIECE; k++) {
            sum[k] += row[i + k] * y;
        }
    }
    for (int k = 0; k < PIECE && i + k < d; k++) {
        float * const out = second + std::ptrdiff_t(i + k) * d + j;
        for (int l = 0; l < std::min(WIDTH, d - j); l++) {
            out[l] += sum[k][l];
        }
    }
}

void query_moments(const QueryMomentsArgs & a) {
    const int d = a.dim, stride = (d + 15) / 16 * 16; // rounded up to whole vectors and pieces; zeros fill the rest
    for (std::ptrdiff_t i = 0; i < std::ptrdiff_t(a.n_kv_heads) * d; i++) {
        a.sum[i] *= a.keep;
    }
    for (std::ptrdiff_t i = 0; i < std::ptrdiff_t(a.n_kv_heads) * d * d; i++) {
        a.second[i] *= a.keep;
    }
    std::vector<float> queries(size_t(QUERIES) * stride, 0.0f);
    for (int h = 0; h < a.n_kv_heads * a.heads_per_kv; h++) {
        float * const sum = a.sum + std::ptrdiff_t(h / a.heads_per_kv) * d;
        float * const second = a.second + std::ptrdiff_t(h / a.heads_per_kv) * d * d;
        for (int r0 = 0; r0 < a.n_rows; r0 += QUERIES) {
            const int n = std::min(QUERIES, a.n_rows - r0);
            for (int r = 0; r < n; r++) {
                const float * const q = a.q + h * a.head_stride + (r0 + r) * a.row_stride;
                std::copy(q, q + d, queries.data() + std::ptrdiff_t(r) * stride);
            }
            int r = 0;
            for (; r + 4 <= n; r += 4) {
                add_rows<4>(queries.data() + std::ptrdiff_t(r) * stride, stride, d, sum);
            }
            for (; r < n; r++) {
                add_rows<1>(queries.data() + std::ptrdiff_t(r) * stride, 0, d, sum);
            }
            for (int i = 0; i < d; i += PIECE) {
                for (int j = i / WIDTH * WIDTH; j < d; j += WIDTH) {
                    add_products(queries.data(), n, stride, i, j, d, second);
                }
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

// Divides a row and its right-hand side by the root of the diagonal element.
static inline void eliminate(double * row, int i, int d, double & x) {
    const double inverse = 1 / std::sqrt(row[i]);
    for (int j = i; j < d; j++) {
        row[j] *= inverse;
    }
    x *= inverse;
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
    // Two columns at a time: each row below is read and written once for both.
    for (int i = 0; i < d; i += 2) {
        double *const row0 = upper.data() + size_t(i) * d, *const row1 = row0 + (i + 1 < d ? d : 0);
        eliminate(row0, i, d, x[i]);
        if (row1 == row0) {
            break;
        }
        const double f = row0[i + 1];
        for (int j = i + 1; j < d; j++) {
            row1[j] -= f * row0[j];
        }
        x[i + 1] -= f * x[i];
        eliminate(row1, i + 1, d, x[i + 1]);
        for (int r = i + 2; r < d; r++) {
            double * const below = upper.data() + size_t(r) * d;
            const double f0 = row0[r], f1 = row1[r];
#pragma omp simd
            for (int j = r; j < d; j++) {
                below[j] -= f0 * row0[j] + f1 * row1[j];
            }
            x[r] -= f0 * x[i] + f1 * x[i + 1];
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
