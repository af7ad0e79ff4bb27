// Writes llama.cpp's state of a sequence anew, so that each cell comes back to its own number.
#include "llama_state.hpp"

#include "status.hpp"

#include <algorithm>
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
    // A row of one element of n bytes, at most `most`, for each cell in use becomes one for every cell up to the last;
    // new ones are zero.
    void spread(uint64_t n, uint64_t most, const std::vector<int32_t> & held) {
        if (n == 0 || n > most || n > left_ / held.size()) {
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

// held: ascending. position: gets theirs.
void rewrite_cells(Rewriter & r, const std::vector<int32_t> & held, const SequenceCells & cells, size_t extra,
                   std::vector<int32_t> & position) {
    int32_t gap = cells.end;
    size_t next = 0;
    const std::vector<char> none(extra);
    for (int32_t cell = 0; cell <= held.back(); cell++) {
        const bool used = held[next] == cell;
        const int32_t at = used ? r.read<int32_t>() : gap++;
        if (used) {
            position.push_back(at);
        }
        r.write<int32_t>(at);
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
    if (transposed != uint32_t(cells.transposed) || n_layer == 0 || n_layer > 65536) {
        throw Unknown();
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>(); // the type
        r.spread(r.copy<uint64_t>(), cells.largest_row, held);
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>();
        if (!transposed) {
            r.spread(r.copy<uint64_t>(), cells.largest_row, held);
            continue;
        }
        const uint32_t element = r.copy<uint32_t>(), n = r.copy<uint32_t>();
        for (uint32_t j = 0; j < n; j++) {
            r.spread(element, cells.largest_row, held);
        }
    }
}

struct Start { // of every state
    uint32_t magic;
    int32_t seq_id;
    uint32_t n_stream;
};

// extra: bytes of a cell beside its position, where the model needs some. False: they are others.
bool rewrite(const char * state, size_t size, const std::vector<int32_t> & held, const SequenceCells & cells,
             const Start & start, size_t extra, std::vector<char> & to, std::vector<int32_t> & position) {
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
            rewrite_cells(r, held, cells, extra, position);
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

// Throws ARGUMENT where positions, by ascending cells, are not in the cells' own order. llama.cpp is to free some by
// their positions, and the table says which those are.
void check_positions(const std::vector<int32_t> & position, const std::vector<int32_t> & held,
                     const SequenceCells & cells) {
    int32_t last = -1;
    for (const int32_t cell : cells.held) {
        const auto i = std::lower_bound(held.begin(), held.end(), cell) - held.begin();
        require(position[size_t(i)] > last, "llama.cpp's positions in the state are not in its table's order");
        last = position[size_t(i)];
    }
    require(last == cells.end - 1, "llama.cpp's last position in the state is not its table's");
}

} // namespace

SequenceState with_gaps(const char * state, size_t size, const SequenceCells & cells, const std::vector<char> & like) {
    SequenceState made;
    std::vector<int32_t> held = cells.held, position;
    std::sort(held.begin(), held.end());
    made.gaps = held.back() + 1 - int32_t(held.size());
    Start start = {};
    if (like.size() >= sizeof start) {
        std::memcpy(&start, like.data(), sizeof start);
        constexpr size_t EXTRAS[] = {0, 12}; // llama_kv_cell_ext: two coordinates and a token
        for (const size_t extra : EXTRAS) {
            made.bytes.clear();
            position.clear();
            if (rewrite(state, size, held, cells, start, extra, made.bytes, position)) {
                check_positions(position, held, cells);
                return made;
            }
        }
    }
    throw Error(KVMERGE_E_STATE, "llama.cpp's state of the sequence has a layout that is not known: this llama.cpp is "
                                 "not the one that was saved with, or too new");
}

} // namespace kvmerge
