// Handles that are no addresses: each is a place in a table and a generation. A handle that was freed, or never given,
// is recognised without following it.
#pragma once

#include "status.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace kvmerge {

// SHARED: several threads may be inside the object at once. ALONE: this one only.
enum class Access { SHARED, ALONE };

// The live objects behind one kind of handle. Nobody waits to enter one: a thread that may not gets an error.
template <class T>
class Handles {
    static_assert(sizeof(void *) == 8, "a handle holds a generation of 31 bits beside its place");

    struct Slot {
        // Upper half: the generation, odd while an object lives here. Lower half: how many threads are inside, or ALL.
        std::atomic<uint64_t> state{0};
        std::atomic<uint64_t> missed{0}; // a handle that a callback could not enter
        T * object = nullptr;
    };

  public:
    // `tag` is 1 or 3: no object's address is odd. `kind`, 0..3, tells apart kinds of handles with the same tag. `name`
    // is for messages.
    constexpr Handles(uint64_t tag, uint64_t kind, const char * name) : tag_(kind << 14 | tag), name_(name) {}

    // A new handle. Throws MEMORY when there is no room.
    T * add(std::unique_ptr<T> object) {
        const std::lock_guard<std::mutex> lock(changing_);
        for (uint64_t tried = 0; tried < SLOTS; tried++) {
            const uint64_t place = next_++ % SLOTS; // taken in turns: a handle comes back after 2^42 others
            Slot & slot = slots_[place];
            const uint64_t generation = (slot.state.load(std::memory_order_relaxed) >> 32) + 1;
            if (generation % 2 == 1) {
                slot.object = object.release();
                slot.state.store(generation << 32, std::memory_order_release);
                return reinterpret_cast<T *>((generation & GENERATION) << 16 | place << 2 | tag_);
            }
        }
        throw Error(KVMERGE_E_MEMORY, text("%u of them are alive: free some", unsigned(SLOTS)));
    }

    // A thread's stay inside an object, if it may enter.
    class Use {
      public:
        Use(Handles & handles, T * handle, Access access)
            : slot_(handles.slot_of(handle)), access_(access), status_(handles.enter(handle, access)) {}
        Use(const Use &) = delete;
        ~Use() {
            if (status_ == KVMERGE_OK) {
                slot_.state.fetch_sub(access_ == Access::ALONE ? ALL : 1, std::memory_order_release);
            }
        }
        // OK, ARGUMENT: no live object's handle, or STATE: another thread is inside.
        kvmerge_status status() const { return status_; }
        T & object() const { return *slot_.object; }

      private:
        friend class Handles;
        Slot & slot_;
        const Access access_;
        kvmerge_status status_;
    };

    // Takes an object out of the table that this thread is alone inside of.
    std::unique_ptr<T> remove(Use & use) {
        const std::lock_guard<std::mutex> lock(changing_);
        use.status_ = KVMERGE_E_ARGUMENT;
        std::unique_ptr<T> object(std::exchange(use.slot_.object, nullptr));
        const uint64_t generation = use.slot_.state.load(std::memory_order_relaxed) >> 32;
        use.slot_.state.store((generation + 1) << 32, std::memory_order_release);
        return object;
    }
    // The same. Throws as entered() does, and STATE while a thread is inside.
    std::unique_ptr<T> remove(T * handle) {
        Use use(*this, handle, Access::ALONE);
        entered(use);
        return remove(use);
    }

    // The object of a stay. Throws what kept the thread out.
    T & entered(const Use & use) const {
        if (use.status() != KVMERGE_OK) {
            refuse(use.status());
        }
        return use.object();
    }

    // For a callback that can neither enter nor report it: remembers that until somebody asks.
    void miss(T * handle) noexcept { slot_of(handle).missed.store(bits_of(handle), std::memory_order_relaxed); }
    bool missed(T * handle) noexcept {
        return slot_of(handle).missed.load(std::memory_order_relaxed) == bits_of(handle);
    }
    void forget_missed(T * handle) noexcept { slot_of(handle).missed.store(0, std::memory_order_relaxed); }

  private:
    static constexpr uint64_t SLOTS = 4096, TAG = 3 << 14 | 3, ALL = 0xffffffff, GENERATION = 0x7fffffff;
    static uint64_t bits_of(T * handle) { return reinterpret_cast<uint64_t>(handle); }
    Slot & slot_of(T * handle) { return slots_[(bits_of(handle) >> 2) % SLOTS]; }

    kvmerge_status enter(T * handle, Access access) noexcept {
        const uint64_t bits = bits_of(handle);
        if ((bits & TAG) != tag_) {
            return KVMERGE_E_ARGUMENT;
        }
        std::atomic<uint64_t> & state = slot_of(handle).state;
        uint64_t now = state.load(std::memory_order_relaxed), inside;
        do {
            const uint64_t generation = now >> 32;
            if (generation % 2 == 0 || (generation & GENERATION) != bits >> 16) {
                return KVMERGE_E_ARGUMENT;
            }
            inside = now & ALL;
            if (access == Access::ALONE ? inside != 0 : inside >= ALL - 1) {
                return KVMERGE_E_STATE;
            }
        } while (!state.compare_exchange_weak(now, now + (access == Access::ALONE ? ALL : 1), std::memory_order_acquire,
                                              std::memory_order_relaxed));
        return KVMERGE_OK;
    }

    [[noreturn]] void refuse(kvmerge_status status) const {
        throw Error(status, status == KVMERGE_E_STATE ? text("another thread is inside a call with this %s", name_)
                                                      : text("this is no %s, or one that was freed", name_));
    }

    const uint64_t tag_;
    const char * const name_;
    std::mutex changing_; // held while an object comes or goes
    uint64_t next_ = 0;
    Slot slots_[SLOTS];
};

} // namespace kvmerge
