// A loop over independent work on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace kvmerge {

// Calls body(i) for 0..n-1 on up to n_threads threads, the caller's among them. The first exception is thrown again at the end.
template <class Body>
void parallel_for(int64_t n, int32_t n_threads, Body && body) {
    std::atomic<int64_t> next{0};
    std::exception_ptr first;
    std::mutex mutex;
    const auto work = [&] {
        try {
            for (int64_t i; (i = next++) < n;) {
                body(i);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!first) {
                first = std::current_exception();
            }
            next = n;
        }
    };
    std::vector<std::thread> threads;
    for (int64_t t = 1; t < std::min<int64_t>(n_threads, n); t++) {
        threads.emplace_back(work);
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }
    if (first) {
        std::rethrow_exception(first);
    }
}

} // namespace kvmerge
