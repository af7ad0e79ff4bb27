// Writes llama.cpp's state of a sequence anew, so that each cell comes back to its own number.
#include "llama_state.hpp"

#include "status.hpp"

#include <cstring>

namespace kvmerge {

namespace {

struct Unknown {}; // the bytes are not laid out as this reader expects

// Reads the old bytes and writes the new ones at the same time.
class Rewriter {
  public:
    Rewriter(const char * from, size_t size, std::vector<char> & to) : from_(from), left_(size), to_(to) {}
    bool done() const { return left_ == 0; }

    const char * skip(size_t n) {
        if (n > left_) {
            throw Unknown();
        }
        const char * const at = from_;
        from_ += n;
        left_ -= n;
        return at;
    }
    template <class T>
    T read() {
        T value;
        std::memcpy(&value, skip(sizeof value), sizeof value);
        return value;
    }
    template <class T>
    T copy() {
        const T value = read<T>();
        write(value);
        return value;
    }
    template <class T>
    void write(T value) {
        const char * const at = reinterpret_cast<const char *>(&value);
        to_.insert(to_.end(), at, at + sizeof value);
    }
    // A row of one element of n bytes for each cell in use becomes one for every cell up to the last; new ones are
    // zero.
    void spread(size_t n, const std::vector<int32_t> & held) {
        if (n > left_ / held.size()) {
            throw Unknown();
        }
        const size_t base = to_.size();
        to_.resize(base + n * size_t(held.back() + 1));
        for (const int32_t cell : held) {
            std::memcpy(to_.data() + base + n * size_t(cell), skip(n), n);
        }
    }

  private:
    const char * from_;
    size_t left_;
    std::vector<char> & to_;
};

void rewrite_cells(Rewriter & r, const std::vector<int32_t> & held, int32_t first_gap, size_t extra) {
    int32_t gap = first_gap;
    size_t next = 0;
    const std::vector<char> none(extra);
    for (int32_t cell = 0; cell <= held.back(); cell++) {
        const bool used = held[next] == cell;
        r.write<int32_t>(used ? r.read<int32_t>() : gap++); // its position
        if (used && r.read<uint32_t>() != 1) {
            throw Unknown(); // it is of several sequences
        }
        r.write<uint32_t>(1);
        const char * const of_cell = used ? r.skip(extra) : none.data();
        for (size_t i = 0; i < extra; i++) {
            r.write(of_cell[i]);
        }
        r.write<int32_t>(used ? r.read<int32_t>() : 0); // of the sequence, which llama.cpp does not look at
        next += used;
    }
    const uint32_t transposed = r.copy<uint32_t>(), n_layer = r.copy<uint32_t>();
    if (transposed > 1 || n_layer == 0 || n_layer > 65536) {
        throw Unknown();
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>(); // the type
        r.spread(size_t(r.copy<uint64_t>()), held);
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>();
        if (!transposed) {
            r.spread(size_t(r.copy<uint64_t>()), held);
            continue;
        }
        const uint32_t element = r.copy<uint32_t>(), n = r.copy<uint32_t>();
        for (uint32_t j = 0; j < n; j++) {
            r.spread(element, held);
        }
    }
}

struct Start { // of every state
    uint32_t magic;
    int32_t seq_id;
    uint32_t n_stream;
};

// extra: bytes of a cell beside its position, where the model needs some. False: they are others.
bool rewrite(const char * state, size_t size, const std::vector<int32_t> & held, int32_t first_gap, const Start & start,
             size_t extra, std::vector<char> & to) {
    try {
        Rewriter r(state, size, to);
        const Start from = r.read<Start>();
        if (from.magic != start.magic || from.n_stream == 0 || start.n_stream == 0) {
            return false;
        }
        r.write(start);
        bool found = false;
        for (uint32_t s = 0; s < from.n_stream; s++) {
            const uint32_t n = r.read<uint32_t>();
            if (n == 0) {
                continue;
            }
            if (found || n != held.size()) {
                return false;
            }
            found = true;
            r.write(uint32_t(held.back()) + 1);
            rewrite_cells(r, held, first_gap, extra);
        }
        for (uint32_t s = 1; s < start.n_stream; s++) { // the first gives its cells to whichever stream is the
                                                        // sequence's
            r.write<uint32_t>(0);
        }
        return found && r.done();
    } catch (const Unknown &) {
        return false;
    }
}

} // namespace

SequenceState with_gaps(const char * state, size_t size, const std::vector<int32_t> & held, int32_t first_gap,
                        const std::vector<char> & like) {
    SequenceState made;
    made.gaps = held.back() + 1 - int32_t(held.size());
    Start start = {};
    if (like.size() >= sizeof start) {
        std::memcpy(&start, like.data(), sizeof start);
        constexpr size_t EXTRAS[] = {0, 12}; // llama_kv_cell_ext: two coordinates and a token
        for (const size_t extra : EXTRAS) {
            made.bytes.clear();
            if (rewrite(state, size, held, first_gap, start, extra, made.bytes)) {
                return made;
            }
        }
    }
    throw Error(KVMERGE_E_STATE, "llama.cpp's state of the sequence has a layout that is not known: this llama.cpp is "
                                 "not the one that was saved with, or too new");
}

} // namespace kvmerge
