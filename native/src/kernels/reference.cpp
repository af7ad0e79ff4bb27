// Every kernel as its definition reads, in double precision. It is slow on purpose: all others are measured against it.
#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kvmerge {
namespace reference {

// Clamps to 0..1. NaN stays.
static float clamped(double x) {
    return std::isnan(x) ? std::numeric_limits<float>::quiet_NaN() : float(std::clamp(x, 0.0, 1.0));
}

static void add_to(float * mass, std::ptrdiff_t stride, const std::vector<std::vector<double>> & sums) {
    for (size_t h = 0; h < sums.size(); h++) {
        for (size_t c = 0; c < sums[h].size(); c++) {
            float & m = mass[std::ptrdiff_t(h) * stride + std::ptrdiff_t(c)];
            m = float(m + sums[h][c]);
        }
    }
}

void attention_stats(const AttentionStatsArgs & a) {
    std::vector<std::vector<double>> mass(a.n_kv_heads, std::vector<double>(a.n_cells, 0.0));
    for (int h = 0; h < a.n_kv_heads * a.heads_per_kv; h++) {
        for (int r = 0; r < a.n_rows; r++) {
            const float * p = a.p + h * a.head_stride + r * a.row_stride;
            double entropy = 0;
            for (int c = 0; c < a.n_cells; c++) {
                mass[h / a.heads_per_kv][c] += std::pow(double(p[c]), a.half_powers / 2.0);
                if (p[c] != 0) {
                    entropy -= double(p[c]) * std::log(double(p[c]));
                }
            }
            if (a.entropy) {
                const double normalised = entropy * a.inv_log_visible[r];
                a.entropy[h * a.entropy_stride + r] = clamped(normalised);
            }
        }
    }
    if (a.mass) {
        add_to(a.mass, a.mass_stride, mass);
    }
}

void score_stats(const ScoreStatsArgs & a) {
    const int dim = a.keys.dim;
    std::vector<std::vector<double>> mass(a.n_kv_heads, std::vector<double>(a.n_cells, 0.0));
    for (int h = 0; h < a.n_kv_heads * a.heads_per_kv; h++) {
        for (int r = 0; r < a.n_rows; r++) {
            const float * q = a.q + h * a.head_stride + r * a.row_stride;
            std::vector<double> score(a.n_cells, -std::numeric_limits<double>::infinity());
            double max = -std::numeric_limits<double>::infinity(), sum = 0, entropy = 0;
            for (int c = 0; c < a.n_cells; c++) {
                if (a.mask && a.mask[r * a.mask_stride + c] == HIDDEN) {
                    continue;
                }
                double dot = 0;
                for (int i = 0; i < dim; i++) {
                    dot += double(q[i]) * element(a.keys, a.first_kv_head + h / a.heads_per_kv, c, i);
                }
                score[c] = a.cap != 0 ? a.cap * std::tanh(a.scale * dot / a.cap) : a.scale * dot;
                max = std::isnan(score[c]) || score[c] > max ? score[c] : max;
            }
            for (int c = 0; c < a.n_cells; c++) {
                sum += std::isinf(score[c]) ? 0 : std::exp(score[c] - max);
            }
            for (int c = 0; c < a.n_cells; c++) {
                const double p = std::isinf(score[c]) ? 0 : std::exp(score[c] - max) / sum;
                mass[h / a.heads_per_kv][c] += a.row_weight * std::pow(p, a.half_powers / 2.0);
                entropy -= p != 0 ? p * std::log(p) : 0;
            }
            if (a.entropy) {
                const double normalised = entropy * a.inv_log_visible[r];
                a.entropy[h * a.entropy_stride + r] = clamped(normalised);
            }
        }
    }
    if (a.mass) {
        add_to(a.mass, a.mass_stride, mass);
    }
}

void find_spans(const FindSpansArgs & a) {
    for (int row = 0; row < a.n_rows; row++) {
        const float * value = a.value + row * a.stride;
        for (int i = a.first; i < a.end; i++) {
            int run = i; // where i's run of neighbours above starts
            while (run > a.first && value[run - 1] > a.threshold) {
                run--;
            }
            a.span[row * a.stride + i] = value[i] > a.threshold ? run + (i - run) / a.longest * a.longest : -1;
        }
    }
}

void query_moments(const QueryMomentsArgs & a) {
    for (int k = 0; k < a.n_kv_heads; k++) {
        for (int i = 0; i < a.dim; i++) {
            double sum = 0;
            std::vector<double> second(a.dim, 0.0);
            for (int h = k * a.heads_per_kv; h < (k + 1) * a.heads_per_kv; h++) {
                for (int r = 0; r < a.n_rows; r++) {
                    const float * q = a.q + h * a.head_stride + r * a.row_stride;
                    sum += q[i];
                    for (int j = 0; j < a.dim; j++) {
                        second[j] += double(q[i]) * q[j];
                    }
                }
            }
            float & total = a.sum[k * a.dim + i];
            total = float(double(a.keep) * total + sum);
            for (int j = 0; j < a.dim; j++) {
                float & product = a.second[(size_t(k) * a.dim + i) * a.dim + j];
                product = float(double(a.keep) * product + second[j]);
            }
        }
    }
}

static void fold_one(const FoldDirectionArgs & a, const float * sum_of, const float * second, float * u) {
    // Gauss-Jordan with pivoting: another method than the fast one's.
    const int d = a.dim;
    double trace = 0;
    for (int i = 0; i < d; i++) {
        trace += second[size_t(i) * d + i] * a.inverse_weight;
    }
    std::fill(u, u + d, 0.0f);
    if (!(trace > 0)) {
        return;
    }
    std::vector<std::vector<double>> m(d, std::vector<double>(d + 1));
    for (int i = 0; i < d; i++) {
        for (int j = 0; j < d; j++) {
            m[i][j] = second[size_t(i) * d + j] * a.inverse_weight + (i == j ? a.ridge * trace / d : 0.0);
        }
        m[i][d] = sum_of[i] * a.inverse_weight;
    }
    for (int i = 0; i < d; i++) {
        int best = i;
        for (int r = i; r < d; r++) {
            best = std::fabs(m[r][i]) > std::fabs(m[best][i]) ? r : best;
        }
        std::swap(m[i], m[best]);
        for (int r = 0; r < d; r++) {
            const double f = r == i ? 0 : m[r][i] / m[i][i];
            for (int j = i; j <= d; j++) {
                m[r][j] -= f * m[i][j];
            }
        }
    }
    for (int i = 0; i < d; i++) {
        u[i] = float(m[i][d] / m[i][i]);
    }
}

void fold_direction(const FoldDirectionArgs & a) {
    for (size_t i = 0; i < size_t(a.n); i++) {
        fold_one(a, a.sum + i * a.dim, a.second + i * a.dim * a.dim, a.u + i * a.dim);
    }
}

// Multiplies each run of `size` elements by the Hadamard matrix. Its element (i, j) is (-1)^(number of bits that i and
// j share) / sqrt(size).
static std::vector<double> hadamard(const std::vector<double> & x, int size) {
    std::vector<double> y(x.size(), 0.0);
    for (size_t i = 0; i < x.size(); i++) {
        for (int j = 0; j < size; j++) {
            int shared = 0;
            for (int bits = int(i % size_t(size)) & j; bits; bits &= bits - 1) {
                shared++;
            }
            y[i] += (shared % 2 ? -1 : 1) * x[i / size_t(size) * size_t(size) + size_t(j)] / std::sqrt(double(size));
        }
    }
    return y;
}

static void merge_head(const MergeHead & h) {
    const int dim_k = h.k.dim, dim_v = h.v.dim;
    for (int g = 0; g < h.n_groups; g++) {
        std::vector<double> key(dim_k, 0.0), value(dim_v, 0.0);
        for (int32_t m = h.start[g]; m < h.start[g + 1]; m++) {
            std::vector<double> k(dim_k);
            for (int i = 0; i < dim_k; i++) {
                k[i] = element(h.k, h.head, h.member[m], i);
            }
            k = h.hadamard ? hadamard(k, h.hadamard) : k;
            const double w = h.weight[m];
            for (int i = h.n_rot; i < dim_k; i++) {
                key[i] += w * k[i];
            }
            for (int i = 0; i < h.n_rot / 2; i++) {
                const double angle = h.delta[m] * h.freq[i];
                const int x = h.neox ? i : 2 * i;
                const int y = h.neox ? i + h.n_rot / 2 : 2 * i + 1;
                key[x] += w * (k[x] * std::cos(angle) - k[y] * std::sin(angle));
                key[y] += w * (k[x] * std::sin(angle) + k[y] * std::cos(angle));
            }
            for (int i = 0; i < dim_v; i++) {
                value[i] += double(h.value_weight[m]) * element(h.v, h.head, h.member[m], i);
            }
        }
        key = h.hadamard ? hadamard(key, h.hadamard) : key;
        float * out = h.scratch + size_t(g) * (dim_k + dim_v);
        for (int i = 0; i < dim_k; i++) {
            out[i] = float(key[i] + (h.bias ? double(h.bias[g]) * h.u[i] : 0.0));
        }
        std::copy(value.begin(), value.end(), out + dim_k);
    }
    for (int g = 0; g < h.n_groups; g++) {
        const float * out = h.scratch + size_t(g) * (dim_k + dim_v);
        store(h.k, h.head, h.dest[g], out);
        store(h.v, h.head, h.dest[g], out + dim_k);
    }
}

void merge_cells(const MergeCellsArgs & a) {
    for (int i = 0; i < a.n_heads; i++) {
        merge_head(a.heads[i]);
    }
}

void project_cells(const ProjectCellsArgs & a) {
    for (int c = 0; c < a.n; c++) {
        std::vector<double> k(a.keys.dim);
        for (int i = 0; i < a.keys.dim; i++) {
            k[i] = element(a.keys, a.head, a.cells[c], i);
        }
        k = a.hadamard ? hadamard(k, a.hadamard) : k;
        double product = 0, square = 0;
        for (int i = a.n_rot; i < a.keys.dim; i++) {
            product += a.weight[i] * k[i];
        }
        for (int i = 0; i < a.n_rot / 2; i++) {
            const double angle = a.position[c] * a.freq[i];
            const int x = a.neox ? i : 2 * i;
            const int y = a.neox ? i + a.n_rot / 2 : 2 * i + 1;
            product += a.weight[x] * (k[x] * std::cos(angle) + k[y] * std::sin(angle));
            product += a.weight[y] * (k[y] * std::cos(angle) - k[x] * std::sin(angle));
        }
        for (int i = 0; i < a.values.dim; i++) {
            square += std::pow(element(a.values, a.head, a.cells[c], i), 2);
        }
        a.product[c] = float(product);
        a.length[c] = float(std::sqrt(square));
    }
}

void log_sum_exp(const LogSumExpArgs & a) {
    std::ptrdiff_t best = 0;
    for (std::ptrdiff_t i = 1; i < a.n; i++) {
        if (a.x[i] > a.x[best]) {
            best = i;
        }
    }
    double sum = 0;
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        sum += std::exp(double(a.x[i]) - a.x[best]);
    }
    *a.lse = a.x[best] + std::log(sum);
    *a.argmax = best;
}

void kl_row(const KlRowArgs & a) {
    double total = 0, kl = 0;
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        total += std::exp(double(a.base_min) + double(a.base_scale) * a.base[i]);
    }
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        const double log_p = double(a.base_min) + double(a.base_scale) * a.base[i] - std::log(total);
        kl += std::exp(log_p) * (log_p - (a.x[i] - a.lse));
    }
    *a.kl = kl;
}

} // namespace reference

const KernelTable & reference_kernels() {
    static const KernelTable table = {"reference",
#define KVMERGE_ENTRY(name, Args) reference::name,
                                      KVMERGE_KERNELS(KVMERGE_ENTRY)
#undef KVMERGE_ENTRY
    };
    return table;
}

} // namespace kvmerge
