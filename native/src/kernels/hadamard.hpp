// How llama.cpp rotates quantised keys before it stores them. Each file that includes this has code of its own, since
// some are compiled for one instruction set alone.
#pragma once

#include <cmath>

// An orthonormal Walsh-Hadamard transform of each run of `size` elements: its own inverse.
static void hadamard_transform(float * x, int n, int size) {
    const float norm = 1 / std::sqrt(float(size));
    for (float * run = x; run < x + n; run += size) {
        for (int half = 1; half < size; half *= 2) {
            for (int i = 0; i < size; i += 2 * half) {
                for (int j = i; j < i + half; j++) {
                    const float a = run[j], b = run[j + half];
                    run[j] = a + b;
                    run[j + half] = a - b;
                }
            }
        }
        for (int i = 0; i < size; i++) {
            run[i] *= norm;
        }
    }
}
