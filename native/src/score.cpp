// The functions of kvmerge.h on rows of numbers: likelihoods, packed log probabilities, KL divergence, entropy, spans.
#include "kernels/kernels.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using namespace kvmerge;

constexpr float PACKED_STEPS = 65535.0f;
// How many nats a packed row may span. In a wider one, single precision could not tell the likeliest token.
constexpr float WIDEST = 1e6f;

// Calls row(i) for every row. row returns false to report a NaN.
template <class Row>
void for_rows(int64_t n, int32_t n_threads, Row && row) {
    parallel_for(n, n_threads, [&](int64_t i) {
        if (!row(i)) {
            throw Error(KVMERGE_E_NUMERIC, text("row %lld has a NaN, an infinity or too wide a range", (long long)i));
        }
    });
}

void require_rows(const void * data, int64_t n_rows, int64_t n_vocab, int32_t n_threads) {
    constexpr int64_t MOST = int64_t(1) << 40; // elements, which is more than any memory holds
    require(data || n_rows == 0, "the rows are null");
    require(n_rows >= 0 && n_vocab > 0 && n_vocab < INT32_MAX,
            "n_rows must not be negative and a row's length 1..2^31 - 2");
    require(n_rows <= MOST / n_vocab, "more than 2^40 elements");
    require(n_threads > 0 && n_threads <= 1024, "n_threads must be 1..1024");
}

// Whether kvmerge_pack_log_probs() may have written a packed row's header: no probability is above 1.
bool is_packed(float scale, float low) {
    return scale >= 0 && scale * PACKED_STEPS <= WIDEST && std::fabs(low) <= 2 * WIDEST &&
           low + scale * PACKED_STEPS <= 1;
}

void require_aligned(const void * packed) {
    require(reinterpret_cast<uintptr_t>(packed) % 2 == 0, "packed rows must lie at an even address");
}

int64_t packed_bytes(int64_t n_vocab) {
    return 8 + 2 * ((n_vocab + 1) / 2 * 2);
}

} // namespace

extern "C" {

kvmerge_status kvmerge_score(const float * logits, int64_t n_rows, int64_t n_vocab, const int32_t * target,
                             int32_t n_threads, double * nll) {
    return guarded("kvmerge_score", [&] {
        require_rows(logits, n_rows, n_vocab, n_threads);
        require((target && nll) || n_rows == 0, "target or nll is null");
        for (int64_t i = 0; i < n_rows; i++) {
            require(target[i] >= 0 && target[i] < n_vocab, "a target token is outside the vocabulary");
        }
        for_rows(n_rows, n_threads, [&](int64_t i) {
            const float * x = logits + i * n_vocab;
            float max = x[0];
            for (int64_t j = 1; j < n_vocab; j++) {
                max = std::max(max, x[j]);
            }
            double sum = 0;
            for (int64_t j = 0; j < n_vocab; j++) {
                sum += expf(x[j] - max);
            }
            nll[i] = -(x[target[i]] - max - std::log(sum));
            return !std::isnan(nll[i]);
        });
    });
}

int64_t kvmerge_packed_row_bytes(int64_t n_vocab) {
    return n_vocab > 0 && n_vocab < INT32_MAX ? packed_bytes(n_vocab) : -1;
}

kvmerge_status kvmerge_pack_log_probs(const float * logits, int64_t n_rows, int64_t n_vocab, int32_t n_threads,
                                      void * packed) {
    return guarded("kvmerge_pack_log_probs", [&] {
        require_rows(logits, n_rows, n_vocab, n_threads);
        require(packed || n_rows == 0, "packed is null");
        require_aligned(packed);
        for_rows(n_rows, n_threads, [&](int64_t i) {
            const float * x = logits + i * n_vocab;
            char * out = static_cast<char *>(packed) + i * packed_bytes(n_vocab);
            double lse;
            std::ptrdiff_t top;
            kernels().log_sum_exp({x, n_vocab, &lse, &top});
            const float min = *std::min_element(x, x + n_vocab);
            const float range = (x[top] - min) / PACKED_STEPS,
                        scale = range >= std::numeric_limits<float>::min() ? range : 0;
            const float low = float(min - lse);
            if (std::isnan(range) || !std::isfinite(lse) || !is_packed(scale, low)) {
                return false;
            }
            std::memcpy(out, &scale, 4);
            std::memcpy(out + 4, &low, 4);
            uint16_t * steps = reinterpret_cast<uint16_t *>(out + 8);
            const float inverse = scale > 0 ? 1 / scale : 0;
            for (int64_t j = 0; j < n_vocab; j++) {
                steps[j] = uint16_t(std::min(PACKED_STEPS, (x[j] - min) * inverse + 0.5f));
            }
            if (n_vocab % 2) {
                steps[n_vocab] = 0;
            }
            return true;
        });
    });
}

kvmerge_status kvmerge_kl_divergence(const void * packed, const float * logits, int64_t n_rows, int64_t n_vocab,
                                     int32_t n_threads, double * kl, uint8_t * same_top) {
    return guarded("kvmerge_kl_divergence", [&] {
        require_rows(logits, n_rows, n_vocab, n_threads);
        require((packed && kl && same_top) || n_rows == 0, "packed, kl or same_top is null");
        require_aligned(packed);
        for_rows(n_rows, n_threads, [&](int64_t i) {
            const float * x = logits + i * n_vocab;
            const char * in = static_cast<const char *>(packed) + i * packed_bytes(n_vocab);
            const uint16_t * base = reinterpret_cast<const uint16_t *>(in + 8);
            float scale, low;
            std::memcpy(&scale, in, 4);
            std::memcpy(&low, in + 4, 4);
            if (!is_packed(scale, low)) {
                throw Error(KVMERGE_E_NUMERIC, text("packed row %lld: no row of log probabilities", (long long)i));
            }
            double lse;
            std::ptrdiff_t top;
            kernels().log_sum_exp({x, n_vocab, &lse, &top});
            kernels().kl_row({base, scale, low, x, lse, n_vocab, &kl[i]});
            // At 16 bits the likeliest tokens may tie. The tokens agree if this one is any of them.
            same_top[i] = base[top] == *std::max_element(base, base + n_vocab);
            return std::isfinite(kl[i]);
        });
    });
}

kvmerge_status kvmerge_row_entropy(const float * p, int64_t n_rows, int64_t n, float * entropy) {
    return guarded("kvmerge_row_entropy", [&] {
        require_rows(p, n_rows, n, 1);
        require(entropy || n_rows == 0, "entropy is null");
        for (int64_t i = 0; i < n_rows; i++) {
            const float * row = p + i * n;
            for (int64_t j = 0; j < n; j++) {
                if (!(row[j] >= 0) || std::isinf(row[j])) {
                    throw Error(KVMERGE_E_NUMERIC,
                                text("row %lld has an element that is no probability", (long long)i));
                }
            }
            const int64_t visible = std::count_if(row, row + n, [](float x) { return x != 0; });
            const float inverse = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
            kernels().attention_stats({row, n, n, 1, 1, 1, int(n), 2, nullptr, 0, entropy + i, 1, &inverse});
            if (std::isnan(entropy[i])) {
                throw Error(KVMERGE_E_NUMERIC, text("row %lld has no entropy", (long long)i));
            }
        }
    });
}

kvmerge_status kvmerge_find_spans(const float * value, int64_t n_rows, int32_t n, int32_t first, int32_t end,
                                  float threshold, int32_t longest, int32_t * span) {
    return guarded("kvmerge_find_spans", [&] {
        require_rows(value, n_rows, n, 1);
        require(span || n_rows == 0, "span is null");
        require(first >= 0 && first <= end && end <= n, "first and end must be 0 <= first <= end <= n");
        require(longest >= 1, "longest must be positive");
        require(!std::isnan(threshold), "threshold is NaN");
        for (int64_t i = 0; i < n_rows * n; i++) {
            if (std::isnan(value[i])) {
                throw Error(KVMERGE_E_NUMERIC, text("row %lld has a NaN", (long long)(i / n)));
            }
        }
        std::fill(span, span + n_rows * n, -1);
        for (int64_t row = 0; row < n_rows; row++) { // n_rows may not fit the int of the kernel
            kernels().find_spans({value + row * n, n, 1, first, end, threshold, longest, span + row * n});
        }
    });
}

} // extern "C"
