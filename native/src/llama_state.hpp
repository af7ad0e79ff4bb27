// llama.cpp's state of one sequence, as bytes (llama_state_seq_get_data of v0.5.0).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvmerge {

// What the cells of sliding windows held, and how llama.cpp goes on in them: see WindowCells.
struct Windows {
    std::vector<int32_t> position; // by cell; -1: it is free
    int32_t head = 0;
};

// llama.cpp writes the cells of a sequence in the order of their numbers but not the numbers, and reads them back into
// the first free cells. So the bytes are written anew with a cell in each gap, which is freed afterwards.
struct SequenceState {
    std::vector<char> bytes;
    int gaps = 0;    // cells to free again, at positions [end, end + gaps)
    Windows windows; // what they hold when those are freed
};

// What a state has to be of.
struct SequenceCells {
    const std::vector<int32_t> & held; // their numbers, in the order of their positions
    int32_t end;                       // 1 + the last position
    bool transposed;                   // V is
    size_t largest_row;                // bytes of a cell in a layer, at most
    const Windows * windows;           // of a model that has them; else null
};

// like: the state of the sequence that it is meant for, which has the number of streams. Throws STATE where the layout
// is not the known one, and ARGUMENT where the positions are not those of the cells.
SequenceState with_gaps(const char * state, size_t size, const SequenceCells & cells, const std::vector<char> & like);

} // namespace kvmerge
