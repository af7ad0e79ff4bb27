// A fuzzer's bytes, as choices: what to call next, and with what.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <vector>

class Choices {
  public:
    Choices(const uint8_t * data, size_t size) : data_(data), end_(data + size) {}
    bool done() const { return data_ == end_; }
    uint8_t byte() { return done() ? 0 : *data_++; }
    uint32_t word() {
        uint32_t x = 0;
        for (int i = 0; i < 4; i++) {
            x = x << 8 | byte();
        }
        return x;
    }
    // 0 .. n-1
    int below(int n) { return int(n <= 256 ? byte() : word() % uint32_t(INT_MAX)) % n; }
    int between(int low, int high) { return low + below(high - low + 1); }
    bool one_in(int n) { return below(n) == n - 1; } // false once the bytes are used up
    template <class T>
    T of(std::initializer_list<T> values) {
        return values.begin()[below(int(values.size()))];
    }
    // Mostly small numbers of either sign, now and then anything.
    int32_t wild_int() {
        return one_in(4) ? int32_t(word())
                         : of<int32_t>({0, -1, 1, 2, 7, INT_MAX, INT_MIN, -2, 1 << 27, (1 << 27) + 1});
    }
    float number() { return float(int(byte()) - 128) / 32; }
    float wild_float() {
        constexpr float INF = std::numeric_limits<float>::infinity();
        if (one_in(4)) {
            const uint32_t bits = word();
            float x;
            std::memcpy(&x, &bits, sizeof x);
            return x;
        }
        return of<float>({0, -0.0f, 1, -1, NAN, INF, -INF, 3e38f, -3e38f, 1e-40f, 1e-30f, 1e30f, 0.5f});
    }
    std::vector<float> floats(size_t n, bool wild) {
        std::vector<float> x(n);
        for (float & e : x) {
            e = wild && one_in(3) ? wild_float() : number();
        }
        return x;
    }
    std::vector<int32_t> ints(size_t n, int32_t low, int32_t high, bool wild) {
        std::vector<int32_t> x(n);
        for (int32_t & e : x) {
            e = wild && one_in(3) ? wild_int() : between(low, high);
        }
        return x;
    }

  private:
    const uint8_t *data_, *const end_;
};
