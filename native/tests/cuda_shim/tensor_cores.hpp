// native/src/cuda/tensor_cores.cuh on the shim's fibers. Lanes hold what they hold on a GPU.
#pragma once

#include "cuda_fp16.h"
#include "cuda_runtime.h"

#include <array>

namespace shim {

inline float ex2(float x) {
    return exp2f(x);
}

// Touches it, so that the sanitizer sees where it is.
inline void prefetch_l2(const void * at) {
    const volatile char touched = *static_cast<const char *>(at);
    (void)touched;
}

// The two numbers in a register of each lane.
inline std::array<std::array<float, 2>, 32> halves_of_all(uint32_t both) {
    const uint64_t * const given = exchange(both);
    std::array<std::array<float, 2>, 32> all;
    for (size_t lane = 0; lane < 32; lane++) {
        all[lane] = {__half2float({uint16_t(given[lane])}), __half2float({uint16_t(given[lane] >> 16)})};
    }
    return all;
}

inline void mma(float (&sum)[4], const uint4 & a, uint32_t b0, uint32_t b1) {
    const std::array<std::array<std::array<float, 2>, 32>, 4> left = {halves_of_all(a.x), halves_of_all(a.y),
                                                                      halves_of_all(a.z), halves_of_all(a.w)};
    const std::array<std::array<std::array<float, 2>, 32>, 2> right = {halves_of_all(b0), halves_of_all(b1)};
    const size_t lane = thread_index.x % 32, row = lane / 4, column = lane % 4 * 2;
    for (size_t i = 0; i < 4; i++) {
        for (size_t k = 0; k < 16; k++) {
            const size_t part = k % 8 / 2;
            sum[i] += left[i / 2 + k / 8 * 2][row * 4 + part][k % 2] * right[k / 8][(column + i % 2) * 4 + part][k % 2];
        }
    }
}

} // namespace shim
