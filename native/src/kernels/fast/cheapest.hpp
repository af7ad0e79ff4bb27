// The cheapest of a few thousand costs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// Finds the cheapest of some costs while single ones change. It keeps the least of each run of them.
class Cheapest {
  public:
    explicit Cheapest(const std::vector<double> & cost) : cost_(cost) {}
    void fill() {
        least_.resize((cost_.size() + RUN - 1) / RUN);
        for (size_t r = 0; r < least_.size(); r++) {
            changed(r * RUN);
        }
    }
    // The first of equals.
    size_t at() const {
        const double least = least_of(least_.data(), least_.size());
        size_t i = size_t(std::find(least_.begin(), least_.end(), least) - least_.begin()) * RUN;
        while (cost_[i] != least) {
            i++;
        }
        return i;
    }
    void changed(size_t i) {
        const size_t first = i / RUN * RUN;
        least_[i / RUN] = least_of(cost_.data() + first, std::min(RUN, cost_.size() - first));
    }

  private:
    static double least_of(const double * x, size_t n) {
        constexpr size_t LANES = 8;
        double least[LANES];
        std::fill(least, least + LANES, x[0]);
        size_t i = 0;
        for (; i + LANES <= n; i += LANES) {
#pragma omp simd
            for (size_t j = 0; j < LANES; j++) {
                least[j] = x[i + j] < least[j] ? x[i + j] : least[j];
            }
        }
        for (; i < n; i++) {
            least[0] = x[i] < least[0] ? x[i] : least[0];
        }
        for (size_t width = LANES / 2; width > 0; width /= 2) {
            for (size_t j = 0; j < width; j++) {
                least[j] = least[j + width] < least[j] ? least[j + width] : least[j];
            }
        }
        return least[0];
    }

    static constexpr size_t RUN = 32;
    const std::vector<double> & cost_; // never NaN
    std::vector<double> least_;
};

} // namespace KVMERGE_ISA
} // namespace kvmerge
