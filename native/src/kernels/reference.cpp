// Every kernel as its definition reads, in double precision. Slow on purpose: this is the ruler.
#include "kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace kvmerge {
namespace reference {

static void attention_stats(const AttentionStatsArgs & a) {
    std::vector<double> mass(a.n_cells, 0.0);
    for (int h = 0; h < a.n_heads; h++) {
        for (int r = 0; r < a.n_rows; r++) {
            const float * p = a.p + h * a.head_stride + r * a.row_stride;
            double entropy = 0;
            for (int c = 0; c < a.n_cells; c++) {
                mass[c] += p[c];
                if (p[c] != 0) {
                    entropy -= double(p[c]) * std::log(double(p[c]));
                }
            }
            if (a.entropy) {
                const double normalised = entropy * a.inv_log_visible[r];
                a.entropy[h * a.entropy_stride + r] =
                    std::isnan(normalised) ? std::numeric_limits<float>::quiet_NaN() : float(std::clamp(normalised, 0.0, 1.0));
            }
        }
    }
    for (int c = 0; c < a.n_cells; c++) {
        a.mass[c] = float(a.mass[c] + mass[c]);
    }
}

static void score_stats(const ScoreStatsArgs & a) {
    std::vector<double> mass(a.n_cells, 0.0);
    for (int h = 0; h < a.n_heads; h++) {
        for (int r = 0; r < a.n_rows; r++) {
            const float * q = a.q + h * a.head_stride + r * a.row_stride;
            std::vector<double> score(a.n_cells, -std::numeric_limits<double>::infinity());
            double max = -std::numeric_limits<double>::infinity(), sum = 0, entropy = 0;
            for (int c = 0; c < a.n_cells; c++) {
                if (a.mask && a.mask[r * a.mask_stride + c] == 0xfc00) {
                    continue;
                }
                double dot = 0;
                for (int i = 0; i < a.dim; i++) {
                    dot += double(q[i]) * a.keys[size_t(c) * a.dim + i];
                }
                score[c] = a.cap != 0 ? a.cap * std::tanh(a.scale * dot / a.cap) : a.scale * dot;
                max = std::isnan(score[c]) || score[c] > max ? score[c] : max;
            }
            for (int c = 0; c < a.n_cells; c++) {
                sum += std::isinf(score[c]) ? 0 : std::exp(score[c] - max);
            }
            for (int c = 0; c < a.n_cells; c++) {
                const double p = std::isinf(score[c]) ? 0 : std::exp(score[c] - max) / sum;
                mass[c] += p;
                entropy -= p != 0 ? p * std::log(p) : 0;
            }
            if (a.entropy) {
                const double normalised = entropy * a.inv_log_visible[r];
                a.entropy[h * a.entropy_stride + r] =
                    std::isnan(normalised) ? std::numeric_limits<float>::quiet_NaN() : float(std::clamp(normalised, 0.0, 1.0));
            }
        }
    }
    for (int c = 0; c < a.n_cells; c++) {
        a.mass[c] = float(a.mass[c] + mass[c]);
    }
}

static void query_moments(const QueryMomentsArgs & a) {
    for (int i = 0; i < a.dim; i++) {
        double sum = 0;
        std::vector<double> second(a.dim, 0.0);
        for (int h = 0; h < a.n_heads; h++) {
            for (int r = 0; r < a.n_rows; r++) {
                const float * q = a.q + h * a.head_stride + r * a.row_stride;
                sum += q[i];
                for (int j = 0; j < a.dim; j++) {
                    second[j] += double(q[i]) * q[j];
                }
            }
        }
        a.sum[i] = float(a.sum[i] + sum);
        for (int j = 0; j < a.dim; j++) {
            a.second[i * a.dim + j] = float(a.second[i * a.dim + j] + second[j]);
        }
    }
}

static void fold_direction(const FoldDirectionArgs & a) {
    // Gauss-Jordan with pivoting: another method than the fast one's.
    const int d = a.dim;
    double trace = 0;
    for (int i = 0; i < d; i++) {
        trace += a.second[size_t(i) * d + i];
    }
    std::fill(a.u, a.u + d, 0.0f);
    if (!(trace > 0)) {
        return;
    }
    std::vector<std::vector<double>> m(d, std::vector<double>(d + 1));
    for (int i = 0; i < d; i++) {
        for (int j = 0; j < d; j++) {
            m[i][j] = a.second[size_t(i) * d + j] + (i == j ? a.ridge * trace / d : 0.0);
        }
        m[i][d] = a.mean[i];
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
        a.u[i] = float(m[i][d] / m[i][i]);
    }
}

static void merge_group(const MergeGroupArgs & a) {
    std::vector<double> key(a.dim_k, 0.0), value(a.dim_v, 0.0);
    for (int m = 0; m < a.n; m++) {
        const float * k = a.keys + size_t(m) * a.dim_k;
        const double w = a.weight[m];
        for (int i = a.n_rot; i < a.dim_k; i++) {
            key[i] += w * k[i];
        }
        for (int i = 0; i < a.n_rot / 2; i++) {
            const double angle = a.delta[m] * a.freq[i];
            const int x = a.neox ? i : 2 * i;
            const int y = a.neox ? i + a.n_rot / 2 : 2 * i + 1;
            key[x] += w * (k[x] * std::cos(angle) - k[y] * std::sin(angle));
            key[y] += w * (k[x] * std::sin(angle) + k[y] * std::cos(angle));
        }
        for (int i = 0; i < a.dim_v; i++) {
            value[i] += w * a.values[size_t(m) * a.dim_v + i];
        }
    }
    for (int i = 0; i < a.dim_k; i++) {
        a.key[i] = float(key[i]);
    }
    for (int i = 0; i < a.dim_v; i++) {
        a.value[i] = float(value[i]);
    }
}

static void step_distance(const StepDistanceArgs & a) {
    for (int i = 0; i + 1 < a.n; i++) {
        double sum = 0;
        for (int j = 0; j < a.dim; j++) {
            const double d = double(a.rows[size_t(i) * a.dim + j]) - a.rows[size_t(i + 1) * a.dim + j];
            sum += d * d;
        }
        a.out[i] = float(sum);
    }
}

static void half_to_float(const HalfToFloatArgs & a) {
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        const int sign = a.in[i] >> 15, exponent = (a.in[i] >> 10) & 31, mantissa = a.in[i] & 1023;
        double x;
        if (exponent == 31) {
            x = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
        } else if (exponent == 0) {
            x = std::ldexp(double(mantissa), -24);
        } else {
            x = std::ldexp(double(1024 + mantissa), exponent - 25);
        }
        a.out[i] = float(sign ? -x : x);
    }
}

static void float_to_half(const FloatToHalfArgs & a) {
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        const double x = std::fabs(double(a.in[i]));
        uint16_t bits;
        if (std::isnan(x)) {
            bits = 0x7e00;
        } else if (x >= 65520) {
            bits = 0x7c00;
        } else if (x < std::ldexp(1.0, -14)) {
            bits = uint16_t(std::nearbyint(std::ldexp(x, 24))); // carries into the smallest normal by itself
        } else {
            const int e = std::ilogb(x);
            bits = uint16_t((e + 15) * 1024 + int(std::nearbyint(std::ldexp(x, 10 - e))) - 1024);
        }
        a.out[i] = uint16_t(bits | (std::signbit(a.in[i]) ? 0x8000 : 0));
    }
}

static void log_sum_exp(const LogSumExpArgs & a) {
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

static void kl_row(const KlRowArgs & a) {
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
