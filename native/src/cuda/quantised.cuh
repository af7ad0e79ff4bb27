// Quantised cells on the GPU: ggml's blocks, byte for byte as the CPU's kernels write them
// (kernels/fast/quantised.cpp).
#pragma once

#include "kernels/kernels.hpp"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace kvmerge {
namespace cuda {

constexpr unsigned WHOLE_WARP = 0xffffffffu;

__device__ inline float half_at(const char * at) {
    return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t *>(at)));
}

__device__ inline void put_half(char * at, float x) {
    *reinterpret_cast<uint16_t *>(at) = __half_as_ushort(__float2half_rn(x));
}

__device__ inline int block_bytes(int type) {
    switch (type) {
    case CELL_Q8_0:
        return 34;
    case CELL_Q4_1:
        return 20;
    case CELL_Q5_0:
        return 22;
    case CELL_Q5_1:
        return 24;
    default:
        return 18; // Q4_0, IQ4_NL
    }
}

__device__ inline bool has_least(int type) {
    return type == CELL_Q4_1 || type == CELL_Q5_1;
}

__device__ inline bool has_fifth_bit(int type) {
    return type == CELL_Q5_0 || type == CELL_Q5_1;
}

__device__ inline int iq4_nl_value(int code) {
    const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return values[code];
}

// Element i of a block, 0 .. 31.
__device__ inline float load_quantised(int type, const char * block, int i) {
    const float factor = half_at(block);
    if (type == CELL_Q8_0) {
        return factor * float(reinterpret_cast<const int8_t *>(block)[2 + i]);
    }
    const uint8_t * codes = reinterpret_cast<const uint8_t *>(block) + (has_least(type) ? 4 : 2);
    int code = 0;
    if (has_fifth_bit(type)) {
        code = (codes[i / 8] >> (i % 8) & 1) << 4;
        codes += 4;
    }
    code |= codes[i % 16] >> (i < 16 ? 0 : 4) & 15;
    if (type == CELL_IQ4_NL) {
        return factor * float(iq4_nl_value(code));
    }
    return has_least(type) ? factor * float(code) + half_at(block + 2)
                           : factor * float(code - (has_fifth_bit(type) ? 16 : 8));
}

// The element of the warp that is largest without its sign, the first of equals.
__device__ inline float extreme(float x) {
    float most = fabsf(x);
    for (int o = 16; o > 0; o /= 2) {
        most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, o));
    }
    const unsigned there = __ballot_sync(WHOLE_WARP, fabsf(x) == most);
    return __shfl_sync(WHOLE_WARP, x, there ? 31 - __clz(int(there & (0u - there))) : 0);
}

// The sum of all lanes' terms, in order, as the CPU adds them.
__device__ inline float sum_in_order(float term) {
    float sum = 0;
    for (int lane = 0; lane < QUANTS; lane++) {
        sum += __shfl_sync(WHOLE_WARP, term, lane);
    }
    return sum;
}

__device__ inline int nearest_iq4_nl(float x) {
    int nearest = 0;
    while (nearest < 15 && !(x - float(iq4_nl_value(nearest)) < float(iq4_nl_value(nearest + 1)) - x)) { // of equals,
                                                                                                         // the larger
        nearest++;
    }
    return nearest;
}

// Writes a block; each lane of the warp has an element.
__device__ inline void store_quantised(int type, char * block, int lane, float x) {
    float factor, least = 0;
    int code;
    if (type == CELL_Q8_0) {
        factor = fabsf(extreme(x)) / 127;
        const float rounded = roundf(x * (factor != 0 ? 1 / factor : 0));
        reinterpret_cast<int8_t *>(block)[2 + lane] = int8_t(fabsf(rounded) <= 127 ? rounded : 0);
        if (lane == 0) {
            put_half(block, factor);
        }
        return;
    }
    if (type == CELL_IQ4_NL) {
        const float most = extreme(x);
        const bool zero = fabsf(most) < 1e-15f;
        code = zero ? 0 : nearest_iq4_nl(1 / (most / -127) * x);
        const float weight = x * x, value = float(iq4_nl_value(code));
        const float products = sum_in_order(weight * value * x), squares = sum_in_order(weight * value * value);
        factor = zero ? 0 : products / squares;
    } else {
        const int most_code = has_fifth_bit(type) ? 31 : 15, zero = has_least(type) ? 0 : (most_code + 1) / 2;
        if (has_least(type)) {
            float most = x, least_of = x;
            for (int o = 16; o > 0; o /= 2) {
                most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, o));
                least_of = fminf(least_of, __shfl_xor_sync(WHOLE_WARP, least_of, o));
            }
            least = least_of;
            factor = (most - least) / float(most_code);
        } else {
            factor = extreme(x) / float(-zero);
        }
        const float inverse = factor != 0 ? 1 / factor : 0;
        // Not fused, which would round otherwise.
        const float rounded = __fadd_rn(__fmul_rn(x - least, inverse), float(zero) + .5f);
        code = rounded >= 0 && rounded < 64 ? min(int(rounded), most_code) : zero;
    }
    const unsigned fifth = __ballot_sync(WHOLE_WARP, (code & 16) != 0);
    const int other = __shfl_xor_sync(WHOLE_WARP, code, 16);
    uint8_t * const codes = reinterpret_cast<uint8_t *>(block) + block_bytes(type) - 16;
    if (lane < 16) {
        codes[lane] = uint8_t((code & 15) | (other & 15) << 4);
    }
    if (lane < 4 && has_fifth_bit(type)) {
        codes[lane - 4] = uint8_t(fifth >> (8 * lane));
    }
    if (lane == 0) {
        put_half(block, factor);
        if (has_least(type)) {
            put_half(block + 2, least);
        }
    }
}

} // namespace cuda
} // namespace kvmerge
