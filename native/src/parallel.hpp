// Loops over independent work on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace kvmerge {

// Calls work(context) on this thread and at the same time on up to `helpers` threads of the pool, fewer where there are
// fewer. Returns when all calls have. work must not throw, and its result must not depend on how many threads run it.
void run_with_helpers(int64_t helpers, void (*work)(void *), void * context);

// How many threads the pool has started, and how many it starts at most: one for each processor but the caller's. Tests
// raise the limit.
int pool_size();
void set_pool_limit(int threads);

// Calls body(i) for 0..n-1 on up to n_threads threads, the caller's among them. The first exception is thrown again at
// the end.
template <class Body>
void parallel_for(int64_t n, int32_t n_threads, Body && body) {
    if (n_threads <= 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++) {
            body(i);
        }
        return;
    }
    struct Loop {
        Body & body;
        const int64_t n;
        std::atomic<int64_t> next{0};
        std::mutex mutex{};
        std::exception_ptr first{};
    } loop{body, n};
    run_with_helpers(
        std::min<int64_t>(n_threads, n) - 1,
        [](void * context) {
            Loop & l = *static_cast<Loop *>(context);
            try {
                for (int64_t i; (i = l.next++) < l.n;) {
                    l.body(i);
                }
            } catch (...) {
                const std::lock_guard<std::mutex> lock(l.mutex);
                if (!l.first) {
                    l.first = std::current_exception();
                }
                l.next = l.n;
            }
        },
        &loop);
    if (loop.first) {
        std::rethrow_exception(loop.first);
    }
}

} // namespace kvmerge
