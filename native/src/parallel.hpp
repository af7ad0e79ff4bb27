// A loop over independent work on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace kvmerge {

// Calls work(context) on this thread and, as far as there are threads, on up to `helpers` of the pool's at the same
// time. Returns when all have returned from it. work must not throw, and must be right however few threads run it.
void run_with_helpers(int64_t helpers, void (*work)(void *), void * context);

// The pool: threads it has started, and the most it starts, which is as many as there are processors less the caller's.
// Tests raise that.
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
