// A test is a function; a failed check prints where, with what, and ends the program.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                             \
        }                                                                             \
    } while (0)

// |a - b| <= absolute + relative * |b|; NaN equals NaN, infinity equals infinity.
#define CHECK_NEAR(a, b, absolute, relative)                                                            \
    do {                                                                                                \
        const double check_a = (a), check_b = (b);                                                      \
        const bool same = check_a == check_b || (std::isnan(check_a) && std::isnan(check_b));           \
        if (!same && !(std::fabs(check_a - check_b) <= (absolute) + (relative) * std::fabs(check_b))) { \
            std::printf("%s:%d: %s = %.9g, expected %.9g\n", __FILE__, __LINE__, #a, check_a, check_b); \
            std::exit(1);                                                                               \
        }                                                                                               \
    } while (0)

struct Random {
    std::mt19937 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
    float normal() { return std::normal_distribution<float>()(engine); }
    std::vector<float> normals(size_t n) {
        std::vector<float> x(n);
        for (float & v : x) {
            v = normal();
        }
        return x;
    }
};
