// The fibers behind cuda_runtime.h, and its queue.
#undef _FORTIFY_SOURCE // takes a jump to another fiber's stack for an error
#include "cuda_runtime.h"

#include <csetjmp>
#include <cstdio>
#include <map>
#include <memory>
#include <ucontext.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

dim3 thread_index, block_index, block_size, grid_size;
void * dynamic_shared;

namespace {

constexpr size_t STACK = 64 << 10;
enum class State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
    ucontext_t context; // where it begins; under the sanitizer, where it is
    jmp_buf at;         // where it is. Unlike a change of contexts, a jump needs no call of the kernel
    bool begun;
    std::unique_ptr<char[]> stack{new char[STACK]};
    State state = State::READY;
    void * fake_stack = nullptr;
};

struct Warp {
    uint64_t slots[2][32] = {}; // two sets, taken in turns: a lane may write the next before another has read the last
    int turn[32] = {};
};

std::vector<std::unique_ptr<Fiber>> fibers; // kept for the next launch
std::vector<Warp> warps;
#if defined(__SANITIZE_ADDRESS__)
ucontext_t scheduler;
const void * scheduler_stack;
size_t scheduler_size;
void * scheduler_fake;
#else
jmp_buf scheduler;
#endif
size_t current;
const std::function<void()> * body;

[[noreturn]] void stop(const char * what) {
    std::printf("cuda shim: block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, what);
    std::exit(1);
}

void to_scheduler(State state) {
    Fiber & f = *fibers[current];
    f.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::DONE ? nullptr : &f.fake_stack, scheduler_stack, scheduler_size);
    swapcontext(&f.context, &scheduler);
    __sanitizer_finish_switch_fiber(f.fake_stack, &scheduler_stack, &scheduler_size);
#else
    if (_setjmp(f.at) == 0) {
        _longjmp(scheduler, 1);
    }
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    (*body)();
    to_scheduler(State::DONE);
    stop("a thread that was done was run again"); // else the process would end here, as if all were well
}

void resume(size_t i) {
    current = i;
    thread_index = dim3(std::ptrdiff_t(i));
    fibers[i]->state = State::READY;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake, fibers[i]->stack.get(), STACK);
    swapcontext(&scheduler, &fibers[i]->context);
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#else
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (std::exchange(fibers[i]->begun, true)) {
        _longjmp(fibers[i]->at, 1);
    }
    setcontext(&fibers[i]->context);
#endif
}

// Runs the lanes of a warp until all of them wait for the block or are done.
void run_warp(size_t first, size_t last) {
    for (;;) {
        size_t at_warp = 0;
        for (size_t i = first; i < last; i++) {
            if (fibers[i]->state == State::READY) {
                resume(i);
            }
            at_warp += fibers[i]->state == State::AT_WARP;
        }
        if (at_warp == 0) {
            return;
        }
        if (at_warp != last - first) {
            stop("lanes of a warp parted at a shuffle");
        }
        for (size_t i = first; i < last; i++) {
            fibers[i]->state = State::READY;
        }
    }
}

void run_block(size_t threads) {
    for (size_t i = 0; i < threads; i++) {
        if (i >= fibers.size()) {
            fibers.push_back(std::make_unique<Fiber>());
        }
        Fiber & f = *fibers[i];
        f.state = State::READY;
        f.begun = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, entry, 0);
    }
    for (size_t done = 0; done < threads;) {
        done = 0;
        for (size_t w = 0; w < threads; w += 32) {
            run_warp(w, std::min(threads, w + 32));
        }
        for (size_t i = 0; i < threads; i++) {
            done += fibers[i]->state == State::DONE;
        }
        if (done != 0 && done != threads) {
            stop("some threads left while others wait at __syncthreads");
        }
        for (size_t i = 0; i < threads && done == 0; i++) {
            fibers[i]->state = State::READY;
        }
    }
}

} // namespace

void block_barrier() {
    to_scheduler(State::AT_BLOCK);
    thread_index = dim3(std::ptrdiff_t(current));
}

void warp_barrier() {
    to_scheduler(State::AT_WARP);
    thread_index = dim3(std::ptrdiff_t(current));
}

uint64_t * exchange(uint64_t value) {
    Warp & w = warps[current / 32];
    const size_t lane = current % 32;
    const int turn = w.turn[lane];
    w.turn[lane] = 1 - turn;
    w.slots[turn][lane] = value;
    warp_barrier();
    return w.slots[turn];
}

void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()> & kernel) {
    if (block.x == 0 || block.x > 1024 || block.y != 1 || block.z != 1 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535 || shared > (48 << 10)) {
        stop("a grid, block or shared memory that CUDA refuses");
    }
    body = &kernel;
    block_size = block;
    grid_size = grid;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = dim3(x, y, z);
                const std::unique_ptr<char[]> memory(new char[shared + 1]); // exact, so that the sanitizer sees its end
                dynamic_shared = memory.get();
                warps.assign((block.x + 31) / 32, Warp());
                run_block(block.x);
            }
        }
    }
}

namespace {

std::vector<std::function<void()>> queued;
int current_gpu = 0;
std::map<const char *, size_t> & pinned() { // there until the very end
    static auto & memory = *new std::map<const char *, size_t>();
    return memory;
}
cudaError_t allocate(void ** p, size_t n) {
    counts().allocations++;
    *p = failing() ? nullptr : std::malloc(n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
struct AtTheEnd { // memory whose release is queued is released
    ~AtTheEnd() { run_queue(); }
} at_the_end;

} // namespace

Counts & counts() {
    static Counts all = {};
    return all;
}

int & failing() {
    static int status = 0;
    return status;
}

int & gpus() {
    static int n = 1;
    return n;
}

bool & slow() {
    static bool is = false;
    return is;
}

bool & asked_too_early() {
    static bool was = false;
    return was;
}

bool is_pinned(const void * memory) {
    const char * const at = static_cast<const char *>(memory);
    const auto after = pinned().upper_bound(at);
    return after != pinned().begin() && at < std::prev(after)->first + std::prev(after)->second;
}

bool is_idle() {
    return queued.empty();
}

std::map<const char *, int> & second_gpu() {
    static auto & memory = *new std::map<const char *, int>(); // there until the very end
    return memory;
}

int gpu_of(const void * memory) {
    const char * const at = static_cast<const char *>(memory);
    const auto after = second_gpu().upper_bound(at);
    return after != second_gpu().begin() && at < std::prev(after)->first + std::prev(after)->second ? 1 : 0;
}

void queue(std::function<void()> work) {
    queued.push_back(std::move(work));
}

void run_queue() {
    std::vector<std::function<void()>> now;
    now.swap(queued);
    for (const auto & work : now) {
        work();
    }
}

} // namespace shim

cudaError_t cudaGetDevice(int * d) {
    *d = shim::current_gpu;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int d) {
    shim::current_gpu = d;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void ** p, size_t n, unsigned) {
    const cudaError_t status = shim::allocate(p, n);
    if (*p) {
        shim::pinned()[static_cast<char *>(*p)] = n;
    }
    return status;
}

cudaError_t cudaFreeHost(void * p) {
    shim::run_queue();
    shim::pinned().erase(static_cast<char *>(p));
    std::free(p);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void ** p, size_t n, cudaStream_t) {
    const cudaError_t status = shim::allocate(p, n);
    if (*p && shim::current_gpu == 1) {
        shim::second_gpu()[static_cast<char *>(*p)] = int(n);
    }
    return status;
}

cudaError_t cudaFreeAsync(void * p, cudaStream_t) {
    shim::queue([p] {
        shim::second_gpu().erase(static_cast<char *>(p));
        std::free(p);
    });
    return cudaSuccess;
}
