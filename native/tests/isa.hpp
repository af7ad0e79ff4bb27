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

// Whether a process with threads can fork and start threads: under ThreadSanitizer and in qemu's emulation it cannot.
inline bool threads_can_fork() {
#if defined(__SANITIZE_THREAD__)
    return false;
#elif defined(__has_feature)
#    if __has_feature(thread_sanitizer)
    return false;
#    endif
#endif
    return !std::getenv("KVMERGE_TEST_EMULATED");
}

// How often a test repeats itself with other numbers: fewer times where KVMERGE_TEST_SHARE, 0..1, says so, as under
// emulation.
inline unsigned test_rounds(unsigned usual) {
    const char * const share = std::getenv("KVMERGE_TEST_SHARE");
    const double rounds = share ? usual * std::atof(share) : usual;
    return rounds < 1 ? 1 : unsigned(rounds);
}
