// Quantised cells: ggml's blocks, byte for byte. Compiled without fused multiply-adds, which round otherwise.
#include "fast.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

namespace kvmerge {
namespace KVMERGE_ISA {

static float half_at(const uint8_t * at) {
    Half half;
    std::memcpy(&half, at, sizeof half);
    return value_of(half);
}

static void put_half(uint8_t * at, float x) {
    const uint16_t half = one_to_half(x);
    std::memcpy(at, &half, sizeof half);
}

namespace {

constexpr int PAIRS = QUANTS / 2; // a byte holds the low four bits of elements i and i + PAIRS

// The element that is largest without its sign, the first of equals.
float extreme(const float * x) {
    float most = 0, at_most = 0;
    for (int i = 0; i < QUANTS; i++) {
        if (most < std::fabs(x[i])) {
            most = std::fabs(x[i]);
            at_most = x[i];
        }
    }
    return at_most;
}

struct Q8_0 {
    static void read(const uint8_t * in, float * out) {
        const float factor = half_at(in);
        const int8_t * const codes = reinterpret_cast<const int8_t *>(in + 2);
        for (int i = 0; i < QUANTS; i++) {
            out[i] = factor * codes[i];
        }
    }
    static void write(const float * x, uint8_t * out) {
        const float factor = std::fabs(extreme(x)) / 127;
        const float inverse = factor != 0 ? 1 / factor : 0;
        put_half(out, factor);
        for (int i = 0; i < QUANTS; i++) {
            const float rounded = std::round(x[i] * inverse);
            out[2 + i] = uint8_t(int8_t(std::fabs(rounded) <= 127 ? rounded : 0)); // 0 for NaN, and beside an infinity
        }
    }
};

// Q4_0 and Q5_0: factor * (code - middle). Q4_1 and Q5_1: factor * code + least. A fifth bit of all codes comes first.
template <int BITS, bool HAS_LEAST>
struct Coded {
    static constexpr int FIFTH = HAS_LEAST ? 4 : 2, CODES = BITS == 5 ? FIFTH + 4 : FIFTH;
    static constexpr int MOST = (1 << BITS) - 1, MIDDLE = 1 << (BITS - 1);

    static void read(const uint8_t * in, float * out) {
        const float factor = half_at(in), least = HAS_LEAST ? half_at(in + 2) : 0;
        const int middle = HAS_LEAST ? 0 : MIDDLE;
        uint32_t fifth = 0;
        if (BITS == 5) {
            std::memcpy(&fifth, in + FIFTH, sizeof fifth);
        }
#pragma omp simd
        for (int i = 0; i < PAIRS; i++) {
            const int a = int(in[CODES + i] & 15) | int((fifth >> i & 1) << 4);
            const int b = int(in[CODES + i] >> 4) | int((fifth >> (i + PAIRS) & 1) << 4);
            out[i] = factor * float(a - middle) + least; // the product is exact, so that there is one rounding
            out[i + PAIRS] = factor * float(b - middle) + least;
        }
    }
    static void write(const float * x, uint8_t * out) {
        float least = 0, factor;
        if (HAS_LEAST) {
            float most = -FLT_MAX;
            least = FLT_MAX;
            for (int i = 0; i < QUANTS; i++) {
                least = x[i] < least ? x[i] : least;
                most = x[i] > most ? x[i] : most;
            }
            factor = (most - least) / MOST;
            put_half(out + 2, least);
        } else {
            factor = extreme(x) / -MIDDLE;
        }
        put_half(out, factor);
        const float inverse = factor != 0 ? 1 / factor : 0;
        uint32_t fifth = 0;
        for (int i = 0; i < PAIRS; i++) {
            const uint32_t a = code(x[i] - least, inverse), b = code(x[i + PAIRS] - least, inverse);
            out[CODES + i] = uint8_t((a & 15) | (b & 15) << 4);
            fifth |= a >> 4 << i | b >> 4 << (i + PAIRS);
        }
        if (BITS == 5) {
            std::memcpy(out + FIFTH, &fifth, sizeof fifth);
        }
    }

  private:
    static uint32_t code(float x, float inverse) {
        const int zero = HAS_LEAST ? 0 : MIDDLE;
        const float rounded = x * inverse + (float(zero) + .5f);
        return uint32_t(rounded >= 0 && rounded < 2 * MOST ? std::min(int(rounded), MOST) : zero); // as in Q8_0
    }
};

// Codes of values that are closer together around zero, and the factor of least squared error for them.
struct IQ4_NL {
    static void read(const uint8_t * in, float * out) {
        const float factor = half_at(in);
        for (int i = 0; i < PAIRS; i++) {
            out[i] = factor * IQ4_NL_VALUES[in[2 + i] & 15];
            out[i + PAIRS] = factor * IQ4_NL_VALUES[in[2 + i] >> 4];
        }
    }
    static void write(const float * x, uint8_t * out) {
        const float at_most = extreme(x);
        std::memset(out, 0, 2 + PAIRS);
        if (std::fabs(at_most) < 1e-15f) {
            return;
        }
        const float inverse = 1 / (at_most / IQ4_NL_VALUES[0]);
        float products = 0, squares = 0;
        for (int i = 0; i < QUANTS; i++) {
            const int nearest = code(inverse * x[i]);
            const float weight = x[i] * x[i], q = IQ4_NL_VALUES[nearest];
            products += weight * q * x[i];
            squares += weight * q * q;
            out[2 + i % PAIRS] = uint8_t(out[2 + i % PAIRS] | nearest << (i < PAIRS ? 0 : 4));
        }
        put_half(out, products / squares);
    }

  private:
    static int code(float x) {
        int below = 0, above = 15;
        if (x <= IQ4_NL_VALUES[below] || x >= IQ4_NL_VALUES[above]) {
            return x <= IQ4_NL_VALUES[below] ? below : above;
        }
        while (above - below > 1) {
            const int middle = (below + above) / 2;
            (x < IQ4_NL_VALUES[middle] ? above : below) = middle;
        }
        return x - IQ4_NL_VALUES[above - 1] < IQ4_NL_VALUES[above] - x ? above - 1 : above;
    }
};

template <class Body>
void with_type(int32_t type, Body && body) {
    switch (type) {
    case CELL_Q8_0:
        return body(Q8_0());
    case CELL_Q4_0:
        return body(Coded<4, false>());
    case CELL_Q4_1:
        return body(Coded<4, true>());
    case CELL_Q5_0:
        return body(Coded<5, false>());
    case CELL_Q5_1:
        return body(Coded<5, true>());
    default:
        return body(IQ4_NL());
    }
}

} // namespace

void quants_to_float(int32_t type, const void * in, std::ptrdiff_t n, float * out) {
    const uint8_t * const from = static_cast<const uint8_t *>(in);
    const std::ptrdiff_t bytes = std::ptrdiff_t(bytes_of(type, QUANTS));
    with_type(type, [&](auto block) {
        for (std::ptrdiff_t b = 0; b < n / QUANTS; b++) {
            block.read(from + b * bytes, out + b * QUANTS);
        }
    });
}

void float_to_quants(int32_t type, const float * in, std::ptrdiff_t n, void * out) {
    uint8_t * const to = static_cast<uint8_t *>(out);
    const std::ptrdiff_t bytes = std::ptrdiff_t(bytes_of(type, QUANTS));
    with_type(type, [&](auto block) {
        for (std::ptrdiff_t b = 0; b < n / QUANTS; b++) {
            block.write(in + b * QUANTS, to + b * bytes);
        }
    });
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
