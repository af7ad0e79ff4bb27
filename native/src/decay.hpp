// Evidence of attention is forgotten by tokens, however they are cut into blocks.
#pragma once

#include <cmath>

namespace kvmerge {

// Tokens that a decay is given for: mass_decay and query_decay are what such a block leaves of what came before.
constexpr int DECAY_TOKENS = 128;

// What n tokens leave.
inline double decay_over(double decay, int n) {
    return n == DECAY_TOKENS ? decay : std::pow(decay, double(n) / DECAY_TOKENS);
}

} // namespace kvmerge
