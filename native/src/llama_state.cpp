// Writes llama.cpp's state of a sequence anew, so that each cell comes back to its own number.
#include "llama_state.hpp"

#include "status.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace kvmerge {

namespace {

struct Unknown {}; // the bytes are not laid out as this reader expects

// The cells of one of llama.cpp's caches as they are to come back, from the first on.
struct Layout {
    static constexpr int32_t HELD = -1;
    std::vector<int32_t> made; // by cell: HELD, as in the state; else the position that a cell without content gets
    std::vector<int32_t> held; // those that the state has, ascending
};

// Of the layers without windows: up to the last cell in use, and those in between are freed afterwards.
Layout layout_of(const SequenceCells & cells) {
    Layout layout{{}, cells.held};
    std::sort(layout.held.begin(), layout.held.end());
    int32_t gap = cells.end;
    size_t next = 0;
    for (int32_t cell = 0; cell <= layout.held.back(); cell++) {
        const bool held = layout.held[next] == cell;
        layout.made.push_back(held ? Layout::HELD : gap++);
        next += held;
    }
    return layout;
}

// Of the layers with windows, n of whose positions the state has: all cells. llama.cpp looks for cells from the one
// that is freed first. So cells before the one that it came to are none of those: where they hold nothing that is seen,
// they get a position that no window sees any more. `after`: what the cells hold when the others are freed.
Layout layout_of_windows(const SequenceCells & cells, uint32_t n, Windows & after) {
    const Windows & windows = *cells.windows;
    const int32_t size = int32_t(windows.position.size()), first = cells.end - int32_t(n);
    require(n > 0 && int64_t(n) <= std::min(cells.end, size), "llama.cpp's state has other windows than its table");
    const auto is_seen = [&](int32_t cell) { return windows.position[size_t(cell)] >= first; };
    int32_t head = windows.head % size;
    for (int32_t tried = 0; tried < size && is_seen(head); tried++) {
        head = (head + 1) % size;
    }
    Layout layout;
    after.position = windows.position;
    after.head = head;
    int32_t gap = cells.end;
    for (int32_t cell = 0; cell < size; cell++) {
        int32_t & position = after.position[size_t(cell)];
        if (is_seen(cell)) {
            layout.held.push_back(cell);
        } else if (cell == head) {
            position = -1;
        } else if (position < 0 && cell < head && first > 0) {
            position = first - 1;
        }
        layout.made.push_back(position < 0 ? gap++ : is_seen(cell) ? Layout::HELD : position);
    }
    require(layout.held.size() == n, "llama.cpp's state has other windows than its table");
    return layout;
}

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
    // A row of one element of n bytes, at most `most`, for each cell of the state becomes one for every cell of the
    // layout; new ones are zero.
    void spread(uint64_t n, uint64_t most, const Layout & layout) {
        if (n == 0 || n > most || n > left_ / layout.held.size()) {
            throw Unknown();
        }
        const size_t base = to_.size();
        to_.resize(base + n * layout.made.size());
        for (const int32_t cell : layout.held) {
            const char * const row = skip(n);
            if (layout.made[size_t(cell)] == Layout::HELD) {
                std::memcpy(to_.data() + base + n * size_t(cell), row, n);
            }
        }
    }

  private:
    const char * from_;
    size_t left_;
    std::vector<char> & to_;
};

// position: gets those of the state's cells.
void rewrite_cells(Rewriter & r, const Layout & layout, const SequenceCells & cells, size_t extra,
                   std::vector<int32_t> & position) {
    size_t next = 0;
    const std::vector<char> none(extra);
    for (size_t cell = 0; cell < layout.made.size(); cell++) {
        const int32_t made = layout.made[cell];
        const char * of_cell = none.data();
        if (next < layout.held.size() && size_t(layout.held[next]) == cell) {
            next++;
            position.push_back(r.read<int32_t>());
            if (r.read<uint32_t>() != 1) {
                throw Unknown(); // it is of several sequences
            }
            of_cell = r.skip(extra);
            r.read<int32_t>(); // of the sequence, which llama.cpp does not look at
        }
        r.write<int32_t>(made == Layout::HELD ? position.back() : made);
        r.write<uint32_t>(1);
        for (size_t i = 0; i < extra; i++) {
            r.write(of_cell[i]);
        }
        r.write<int32_t>(0);
    }
    const uint32_t transposed = r.copy<uint32_t>(), n_layer = r.copy<uint32_t>();
    if (transposed != uint32_t(cells.transposed) || n_layer == 0 || n_layer > 65536) {
        throw Unknown();
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>(); // the type
        r.spread(r.copy<uint64_t>(), cells.largest_row, layout);
    }
    for (uint32_t layer = 0; layer < n_layer; layer++) {
        r.copy<int32_t>();
        if (!transposed) {
            r.spread(r.copy<uint64_t>(), cells.largest_row, layout);
            continue;
        }
        const uint32_t element = r.copy<uint32_t>(), n = r.copy<uint32_t>();
        for (uint32_t j = 0; j < n; j++) {
            r.spread(element, cells.largest_row, layout);
        }
    }
}

struct Start { // of every state
    uint32_t magic;
    int32_t seq_id;
};

// One of llama.cpp's caches, for n_stream streams. layout_for: given the number of cells that the state has of it.
template <class LayoutFor>
void rewrite_cache(Rewriter & r, uint32_t n_stream, const SequenceCells & cells, size_t extra, LayoutFor && layout_for,
                   std::vector<int32_t> & position) {
    const uint32_t n_from = r.read<uint32_t>();
    bool found = false;
    r.write(n_stream);
    for (uint32_t s = 0; s < n_from; s++) {
        const uint32_t n = r.read<uint32_t>();
        if (n == 0) {
            continue;
        }
        if (found) {
            throw Unknown();
        }
        found = true;
        const Layout layout = layout_for(n);
        if (layout.held.size() != n) {
            throw Unknown();
        }
        r.write(uint32_t(layout.made.size()));
        rewrite_cells(r, layout, cells, extra, position);
    }
    if (!found || n_stream == 0) {
        throw Unknown();
    }
    for (uint32_t s = 1; s < n_stream; s++) { // the first gives its cells to whichever stream is the sequence's
        r.write<uint32_t>(0);
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

// Throws ARGUMENT where cells of windows have other positions than they were seen to get.
void check_windows(const std::vector<int32_t> & position, const Windows & windows, int32_t first) {
    std::vector<int32_t> seen;
    std::copy_if(windows.position.begin(), windows.position.end(), std::back_inserter(seen),
                 [&](int32_t at) { return at >= first; });
    require(position == seen, "llama.cpp's positions of windows in the state are not its table's");
}

// extra: bytes of a cell beside its position, where the model needs some. False: they are others.
bool rewrite(const char * state, size_t size, const SequenceCells & cells, const std::vector<char> & like, size_t extra,
             SequenceState & made) {
    const Layout layout = layout_of(cells);
    std::vector<int32_t> position, in_windows;
    try {
        Rewriter r(state, size, made.bytes);
        Start own;
        uint32_t n_stream;
        std::memcpy(&own, like.data(), sizeof own);
        std::memcpy(&n_stream, like.data() + sizeof own, sizeof n_stream);
        if (r.read<Start>().magic != own.magic) {
            return false;
        }
        r.write(own);
        rewrite_cache(r, n_stream, cells, extra, [&](uint32_t) { return layout; }, position);
        if (cells.windows) {
            rewrite_cache(
                r, n_stream, cells, extra, [&](uint32_t n) { return layout_of_windows(cells, n, made.windows); },
                in_windows);
        }
        if (!r.done()) {
            return false;
        }
    } catch (const Unknown &) {
        return false;
    }
    check_positions(position, layout.held, cells);
    made.gaps = int(layout.made.size() - layout.held.size());
    if (cells.windows) {
        check_windows(in_windows, *cells.windows, cells.end - int32_t(in_windows.size()));
        made.gaps =
            std::max(made.gaps, int(std::count(made.windows.position.begin(), made.windows.position.end(), -1)));
    }
    return true;
}

} // namespace

SequenceState with_gaps(const char * state, size_t size, const SequenceCells & cells, const std::vector<char> & like) {
    if (like.size() >= sizeof(Start) + sizeof(uint32_t)) {
        constexpr size_t EXTRAS[] = {0, 12}; // llama_kv_cell_ext: two coordinates and a token
        for (const size_t extra : EXTRAS) {
            SequenceState made;
            if (rewrite(state, size, cells, like, extra, made)) {
                return made;
            }
        }
    }
    throw Error(KVMERGE_E_STATE, "llama.cpp's state of the sequence has a layout that is not known: this llama.cpp is "
                                 "not the one that was saved with, or too new");
}

} // namespace kvmerge
