// Rows of logits.
#include "fast.hpp"

#include <algorithm>
#include <cmath>

namespace kvmerge {
namespace KVMERGE_ISA {

void log_sum_exp(const LogSumExpArgs & a) {
    float max = a.x[0];
#pragma omp simd reduction(max : max)
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        max = a.x[i] > max ? a.x[i] : max;
    }
    double sum = 0;
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            part += exp_bounded(a.x[i] - max);
        }
        sum += part;
    }
    *a.lse = max + std::log(sum);
    std::ptrdiff_t i = 0;
    while (i < a.n - 1 && a.x[i] != max) {
        i++;
    }
    *a.argmax = i;
}

void kl_row(const KlRowArgs & a) {
    // KL(P||Q) = sum e^b (b - x) / S - log S + lse, with b the stored log probability and S = sum e^b.
    double total = 0, cross = 0;
    // Copies, since the compiler makes no vectors of a loop that reads them through `a`.
    const float lse = float(a.lse), low = a.base_min, scale = a.base_scale;
    const uint16_t * const base = a.base;
    const float * const x = a.x;
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part_total = 0, part_cross = 0;
#pragma omp simd reduction(+ : part_total, part_cross)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            const float log_p = low + scale * float(base[i]);
            const float p = exp_bounded(log_p);
            part_total += p;
            part_cross += p * (log_p - (x[i] - lse));
        }
        total += part_total;
        cross += part_cross;
    }
    *a.kl = cross / total - std::log(total) + (a.lse - double(lse));
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
