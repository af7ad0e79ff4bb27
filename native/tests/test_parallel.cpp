// The pool of threads: every index once, exceptions, several callers, nesting, fork, unload, and a system that starts
// no more threads.
#include "check.hpp"
#include "isa.hpp"
#include "kvmerge.h"
#include "parallel.hpp"

#include <atomic>
#include <condition_variable>
#include <set>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace kvmerge;

// Every index exactly once, whatever the threads.
static void test_all_indices() {
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
        for (const int threads : {-1, 0, 1, 2, 3, 8, 1024}) {
            std::vector<std::atomic<int>> times(size_t(n) + 1);
            parallel_for(n, threads, [&](int64_t i) { times[size_t(i)]++; });
            for (int64_t i = 0; i < n; i++) {
                CHECK(times[size_t(i)] == 1);
            }
            CHECK(times[size_t(n)] == 0);
        }
    }
}

// Returns once `together` threads are in the loop at the same time: fails by never ending, where they do not run side
// by side.
static void test_runs_side_by_side(int together) {
    std::mutex mutex;
    std::condition_variable all_here;
    int here = 0;
    std::set<std::thread::id> threads;
    parallel_for(together, together, [&](int64_t) {
        std::unique_lock<std::mutex> lock(mutex);
        threads.insert(std::this_thread::get_id());
        if (++here == together) {
            all_here.notify_all();
        }
        all_here.wait(lock, [&] { return here == together; });
    });
    CHECK(int(threads.size()) == together);
    CHECK(threads.count(std::this_thread::get_id()) == 1);
}

// Threads are made once, and no more than asked for.
static void test_threads_stay() {
    const int before = pool_size();
    for (int i = 0; i < 200; i++) {
        parallel_for(64, 4, [](int64_t) {});
    }
    CHECK(pool_size() == before);
}

static void test_exceptions() {
    for (const int threads : {1, 2, 4}) {
        std::atomic<int> calls{0};
        std::string what;
        try {
            parallel_for(100000, threads, [&](int64_t i) {
                calls++;
                if (i == 5) {
                    throw std::runtime_error("five");
                }
            });
        } catch (const std::runtime_error & e) {
            what = e.what();
        }
        CHECK(what == "five");
        CHECK(calls >= 6 && (threads > 1 || calls == 6));
        int64_t sum = 0; // and the next loop is none the worse
        std::mutex mutex;
        parallel_for(10, threads, [&](int64_t i) {
            const std::lock_guard<std::mutex> lock(mutex);
            sum += i;
        });
        CHECK(sum == 45);
    }
}

static void test_concurrent_callers_and_nesting() {
    std::vector<std::thread> callers;
    std::atomic<int64_t> sum{0};
    for (int t = 0; t < 6; t++) {
        callers.emplace_back([&] {
            for (int round = 0; round < 50; round++) {
                parallel_for(8, 4, [&](int64_t i) { parallel_for(4, 3, [&](int64_t j) { sum += i * j; }); });
            }
        });
    }
    for (auto & caller : callers) {
        caller.join();
    }
    CHECK(sum == 6 * 50 * 28 * 6);
}

// Through the C API, and with threads of the host's own.
static int score_with(int32_t n_threads) {
    const int rows = 64, vocab = 100;
    std::vector<float> logits(size_t(rows) * vocab);
    for (size_t i = 0; i < logits.size(); i++) {
        logits[i] = float(i % 7);
    }
    std::vector<int32_t> target(rows, 3);
    std::vector<double> nll(rows), alone(rows);
    if (kvmerge_score(logits.data(), rows, vocab, target.data(), n_threads, nll.data()) != KVMERGE_OK ||
        kvmerge_score(logits.data(), rows, vocab, target.data(), 1, alone.data()) != KVMERGE_OK) {
        std::printf("%s\n", kvmerge_last_error());
        return 1;
    }
    return nll == alone ? 0 : 2;
}

// The exit status of a child that runs body, or -1 where it was ended by a signal, of which a hang is one.
template <class Body>
static int in_child(Body && body) {
    std::fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        const int result = body();
        std::fflush(stdout);
        std::exit(result); // not _exit: static objects go while the pool's threads sleep
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// A forked process has none of its parent's threads.
static void test_fork() {
    parallel_for(64, 4, [](int64_t) {});
    CHECK(pool_size() > 0);
    CHECK(in_child([] {
              if (pool_size() != 0) {
                  return 3;
              }
              set_pool_limit(3);
              test_runs_side_by_side(4);
              return score_with(4);
          }) == 0);
    std::thread busy([] { // while another thread is at it
        for (int i = 0; i < 2000; i++) {
            parallel_for(8, 4, [](int64_t) {});
        }
    });
    for (int i = 0; i < 5; i++) {
        CHECK(in_child([] { return score_with(8); }) == 0);
    }
    busy.join();
}

// Where the system starts no more threads, those that there are do the work.
static void test_no_threads_to_be_had() {
#if !defined(__SANITIZE_ADDRESS__) // whose shadow is larger than any such limit, and which starts a thread itself
    CHECK(in_child([] {
              set_pool_limit(1023);
              const rlimit limit = {rlim_t(512) << 20, rlim_t(512) << 20};
              if (setrlimit(RLIMIT_AS, &limit) != 0) {
                  return 3;
              }
              const int result = score_with(1024);
              std::printf("512 MB of address space: %d threads beside the caller's\n", pool_size());
              // The host still gets memory.
              return result ? result : std::vector<char>(16 << 20, 1)[5] == 1 ? 0 : 4;
          }) == 0);
    CHECK(in_child([] {
              set_pool_limit(1023);
              const rlimit limit = {0, 0};
              // Root's are not counted.
              if (setrlimit(RLIMIT_NPROC, &limit) != 0 || (getuid() == 0 && setuid(65534) != 0)) {
                  return 0;
              }
              const int result = score_with(1024);
              std::printf("no more processes: %d threads beside the caller's\n", pool_size());
              return result ? result : pool_size() == 0 ? 0 : 4;
          }) == 0);
#endif
}

int main() {
    CHECK(in_child([] { return pool_size() == 0 ? score_with(1024) : 3; }) == 0); // with the limit of the machine
    CHECK(in_child([] {
              score_with(1024);
              return pool_size() <= std::max(0, int(std::thread::hardware_concurrency()) - 1) ? 0 : 3;
          }) == 0);
    set_pool_limit(7);
    test_all_indices();
    test_runs_side_by_side(8);
    CHECK(pool_size() == 7);
    test_threads_stay();
    test_exceptions();
    test_concurrent_callers_and_nesting();
    if (threads_can_fork()) {
        test_fork();
        test_no_threads_to_be_had();
    }
    std::printf("ok\n");
}
