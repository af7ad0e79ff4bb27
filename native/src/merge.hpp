// What rewriting cells begins with, whoever has the plans.
#pragma once

#include "device.hpp"
#include "observer.hpp"

#include <vector>

namespace kvmerge {

// Looks at what is captured while keys are as they are. Throws STATE where biases cannot be folded or added yet.
void prepare_to_rewrite(kvmerge_observer & o);

// The directions that biases are folded along.
class Directions {
  public:
    explicit Directions(kvmerge_observer & o) : o_(o), made_(o.layers.size()) {}
    // A layer's: [n_head_kv][dim], on the device that handles its cells. Throws NUMERIC for queries that are not
    // finite.
    const float * of(int layer);

  private:
    kvmerge_observer & o_;
    std::vector<DeviceArray<float>> made_; // by layer
};

} // namespace kvmerge
