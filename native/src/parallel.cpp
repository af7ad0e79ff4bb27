// The pool of threads behind parallel_for. It is made at the first call that wants one, and never ends: its threads
// sleep until the process exits. This library is never unloaded (CMakeLists.txt: nodelete), so that no thread wakes up
// without its code.
#include "parallel.hpp"

#include <condition_variable>
#include <new>
#include <thread>
#if !defined(_WIN32)
#    include <pthread.h>
#endif

namespace kvmerge {

namespace {

// What a caller waits for. It lies on the caller's stack.
struct Job {
    void (*work)(void *);
    void * context;
    int64_t wanted = 0; // helpers that may still join
    int64_t active = 0; // helpers that have not returned
    Job * next = nullptr;
    std::condition_variable returned{};
};

class Pool {
  public:
    void run(int64_t helpers, Job & job) {
        const int64_t wanted = enter(job, helpers);
        for (int64_t i = 0; i < wanted; i++) {
            wake_.notify_one();
        }
        job.work(job.context);
        std::unique_lock<std::mutex> lock(mutex_);
        leave(job); // helpers that have not come yet find nothing left to do
        job.returned.wait(lock, [&] { return job.active == 0; });
    }

    int size() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return size_;
    }
    void set_limit(int limit) {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = limit;
    }

    void before_fork() { mutex_.lock(); }
    void after_fork() { mutex_.unlock(); }

  private:
    int64_t enter(Job & job, int64_t helpers) {
        const std::lock_guard<std::mutex> lock(mutex_);
        grow(helpers);
        job.wanted = std::min<int64_t>(helpers, size_);
        wanted_ += job.wanted;
        if (job.wanted > 0) {
            Job ** end = &first_;
            while (*end) {
                end = &(*end)->next;
            }
            *end = &job;
        }
        return job.wanted;
    }

    void leave(Job & job) {
        if (job.wanted > 0) {
            wanted_ -= job.wanted;
            job.wanted = 0;
            unlink(job);
        }
    }

    void unlink(Job & job) {
        Job ** link = &first_;
        while (*link != &job) {
            link = &(*link)->next;
        }
        *link = job.next;
    }

    // Starts threads until there is a sleeping one for each helper. Where the system starts no more, it goes on with
    // those that there are.
    void grow(int64_t helpers) {
        while (idle_ - wanted_ < helpers && size_ < limit_) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (...) {
                return;
            }
            size_++;
            idle_++;
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return first_ != nullptr; });
            Job & job = *first_;
            idle_--;
            wanted_--;
            job.active++;
            if (--job.wanted == 0) {
                unlink(job);
            }
            lock.unlock();
            job.work(job.context);
            lock.lock();
            idle_++;
            if (--job.active == 0) {
                job.returned.notify_one(); // under the lock: the job is gone as soon as its caller wakes up
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    Job * first_ = nullptr; // jobs that want helpers, in the order they came
    int64_t wanted_ = 0;    // helpers that all jobs together want
    int64_t idle_ = 0;
    int size_ = 0;
    int limit_ = std::max(int(std::thread::hardware_concurrency()), 1) - 1; // more would only take turns
};

// Never destroyed: threads may be using it when the process exits.
Pool & pool() {
    alignas(Pool) static char memory[sizeof(Pool)];
    static Pool * const made = [] {
        Pool * const fresh = new (memory) Pool;
#if !defined(_WIN32)
        // A forked process has a copy of the pool, but none of its threads, so it starts with an empty pool.
        pthread_atfork([] { reinterpret_cast<Pool *>(memory)->before_fork(); },
                       [] { reinterpret_cast<Pool *>(memory)->after_fork(); }, [] { new (memory) Pool; });
#endif
        return fresh;
    }();
    return *made;
}

} // namespace

void run_with_helpers(int64_t helpers, void (*work)(void *), void * context) {
    Job job{work, context};
    pool().run(helpers, job);
}

int pool_size() {
    return pool().size();
}

void set_pool_limit(int threads) {
    pool().set_limit(threads);
}

} // namespace kvmerge
