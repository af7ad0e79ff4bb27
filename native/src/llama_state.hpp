// llama.cpp's state of one sequence, as bytes (llama_state_seq_get_data of v0.5.0).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvmerge {

// llama.cpp writes the cells of a sequence in the order of their numbers but not the numbers, and reads them back into
// the first free cells. So the bytes are written anew with a cell in each gap, which is freed afterwards.
struct SequenceState {
    std::vector<char> bytes;
    int gaps; // cells to free again, at positions [first_gap, first_gap + gaps)
};

// state: of a sequence with the cells `held` (ascending numbers). like: the state of the sequence that it is meant for,
// which has the number of streams. Throws STATE where the layout is not the known one.
SequenceState with_gaps(const char * state, size_t size, const std::vector<int32_t> & held, int32_t first_gap,
                        const std::vector<char> & like);

} // namespace kvmerge
