// What the tests ask of the machine that they run on.
#pragma once

#include "kvmerge.h"

#include <cstdio>
#include <cstdlib>

// Ends the program as skipped where this CPU lacks the instruction set that KVMERGE_ISA names.
inline void skip_without_isa() {
    if (!*kvmerge_isa()) {
        std::printf("skipped: %s\n", kvmerge_last_error());
        std::exit(77);
    }
    std::printf("instruction set: %s\n", kvmerge_isa());
}

// How often a test repeats itself with other numbers: fewer times where KVMERGE_TEST_SHARE, 0..1, says so, as under emulation.
inline unsigned test_rounds(unsigned usual) {
    const char * const share = std::getenv("KVMERGE_TEST_SHARE");
    const double rounds = share ? usual * std::atof(share) : usual;
    return rounds < 1 ? 1 : unsigned(rounds);
}
