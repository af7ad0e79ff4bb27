// A cache's whole state as bytes.
#include "cache.hpp"
#include "cache_kind.hpp"
#include "decay.hpp"
#include "llama_state.hpp"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

using namespace kvmerge;

namespace {

constexpr char MAGIC[8] = {'k', 'v', 'm', 's', 't', 'a', 't', 'e'};
constexpr uint32_t VERSION = 1;

struct Header {
    char magic[8];
    uint32_t version, n_windows; // cells of sliding windows; 0 where the model has none
    uint64_t bytes;              // of the whole state
    uint64_t sum;                // of what follows this field
    Kind kind;
    int32_t n_used, n_pinned, n_tokens, position;
    uint64_t llama_bytes;
};
constexpr size_t SUMMED = offsetof(Header, kind);

// The query moments of a layer, with their weights.
struct Moments {
    double weight;
    float keep;
    std::vector<float> sum, second, head_sum, head_second;
};

// What the observer and the table hold.
struct Content {
    std::vector<Moments> moments; // by layer; empty where queries are not observed
    std::vector<float> bias;      // [pair][used], of an exact bias; else empty
    CellTable::State table;
    Windows windows;
};

// Visits all of the content in the order of its bytes. `io` takes a pointer and a number of elements.
template <class Io>
void visit(Content & content, Io && io) {
    for (Moments & m : content.moments) {
        io(&m.weight, 1);
        io(&m.keep, 1);
        io(m.sum.data(), m.sum.size());
        io(m.second.data(), m.second.size());
        io(m.head_sum.data(), m.head_sum.size());
        io(m.head_second.data(), m.head_second.size());
    }
    io(content.bias.data(), content.bias.size());
    io(content.table.held.data(), content.table.held.size());
    for (auto & fates : content.table.fates) {
        io(fates.data(), fates.size());
    }
    if (!content.windows.position.empty()) {
        io(content.windows.position.data(), content.windows.position.size());
        io(&content.windows.head, 1);
    }
}

template <class Io>
void visit_columns(CellTable::Columns & c, size_t pairs, size_t stride, size_t used, Io && io) {
    for (size_t pair = 0; pair < pairs; pair++) {
        const size_t at = pair * stride;
        for (auto * column : {&c.cell, &c.position, &c.frame, &c.count}) {
            io(column->data() + at, used);
        }
        for (auto * column : {&c.mass, &c.exposure, &c.entropy, &c.prior}) {
            io(column->data() + at, used);
        }
    }
}

// Content of the right sizes, without what is in it.
Content content_for(const Kind & kind, size_t n_used, size_t n_tokens, size_t n_cells, size_t n_windows) {
    const size_t pairs = size_t(kind.n_layer) * size_t(kind.n_head_kv), dim = size_t(kind.head_dim_k);
    Content content{{}, {}, {std::vector<int32_t>(n_used), 0, CellTable::Columns(pairs * n_cells), {}}, {}};
    content.windows.position.resize(n_windows);
    if (kind.observe & KVMERGE_OBSERVE_QUERIES) {
        const size_t n = size_t(kind.n_head_kv) * dim;
        const size_t of_heads = kind.observe & KVMERGE_OBSERVE_QUERY_HEADS ? size_t(kind.n_head) * dim : 0;
        content.moments.resize(size_t(kind.n_layer),
                               {0, 1, std::vector<float>(n), std::vector<float>(n * dim), std::vector<float>(of_heads),
                                std::vector<float>(of_heads * dim)});
    }
    if (kind.bias == KVMERGE_BIAS_EXACT) {
        content.bias.resize(pairs * n_used);
    }
    if (kind.record_fates) {
        content.table.fates.resize(pairs, std::vector<int32_t>(n_tokens));
    }
    return content;
}

void ok(bool condition) {
    require(condition, "the state's table contradicts itself");
}

// Throws ARGUMENT where the numbers are no table's. Overflows of what follows from them are left out here.
void check(const Header & h, size_t size, const kvmerge_cache_params & params, const CellTable::Shape & shape) {
    const int32_t most = INT32_MAX - shape.n_cells; // restore() fills cells in between behind the last position
    ok(h.n_used > 0 && h.n_used <= shape.n_cells && h.n_pinned >= 0 && h.n_pinned <= h.n_used);
    ok(params.n_cells == 0 || h.n_pinned <= params.n_cells - 2);
    ok(h.n_tokens >= h.position && h.position >= h.n_used && h.n_tokens <= most);
    if (params.position_range > 0) { // a rewriting brings positions into the range, and blocks come after it
        ok(back_of(params, h.position) <= h.n_used - std::min(h.n_used, params.n_cells));
    } else {
        ok(h.position == h.n_tokens);
    }
    if (params.record_fates) { // of each pair and token
        ok(size_t(h.n_tokens) <= size / (sizeof(int32_t) * size_t(shape.pairs())));
    }
}

// Throws ARGUMENT where no windows can be so.
void check(const Windows & windows, const Header & h) {
    const int32_t size = int32_t(windows.position.size());
    ok(size == 0 || (windows.head >= 0 && windows.head <= size));
    ok(std::all_of(windows.position.begin(), windows.position.end(),
                   [&](int32_t at) { return at >= -1 && at < h.position; }));
}

// Throws ARGUMENT where the cells cannot be packed as a rewriting does: see CellTable::begin.
void check_packing(const Header & h, const std::vector<int32_t> & held, const kvmerge_cache_params & params) {
    if (params.n_cells == 0 || h.n_used < params.n_cells || params.keep_newest) {
        return;
    }
    const int32_t last = params.n_cells - 1; // of those that stay, one is not among the first
    ok(held[held.size() - 1 - size_t(back_of(params, h.position))] >= last);
    ok(std::count_if(held.begin(), held.end(), [&](int32_t cell) { return cell < last; }) == last);
}

// Throws ARGUMENT where the table is none.
void check(const Content & content, const Header & h, const CellTable::Shape & shape) {
    const auto finite = [&](const std::vector<float> & x) {
        ok(std::all_of(x.begin(), x.end(), [](float e) { return std::isfinite(e); }));
    };
    for (const Moments & m : content.moments) {
        ok(std::isfinite(m.weight) && m.weight >= 0 && m.keep >= 0 && m.keep <= 1);
        finite(m.sum);
        finite(m.second);
        finite(m.head_sum);
        finite(m.head_second);
    }
    finite(content.bias);
    const CellTable::State & t = content.table;
    std::vector<int32_t> seen(size_t(shape.n_cells), -1); // the last pair that has the cell; -2: it is held
    for (const int32_t cell : t.held) {
        ok(cell >= 0 && cell < shape.n_cells && seen[size_t(cell)] == -1);
        seen[size_t(cell)] = -2;
    }
    for (int pair = 0; pair < shape.pairs(); pair++) {
        const size_t base = size_t(pair) * size_t(shape.n_cells);
        int64_t n_tokens = 0;
        for (size_t i = base; i < base + t.held.size(); i++) {
            const CellTable::Columns & c = t.columns;
            ok(c.cell[i] >= 0 && c.cell[i] < shape.n_cells);
            int32_t & last = seen[size_t(c.cell[i])];
            ok(last == (pair == 0 ? -2 : pair - 1));
            last = pair;
            ok(c.position[i] >= 0 && c.position[i] < h.n_tokens && (i == base || c.position[i - 1] < c.position[i]));
            ok(c.frame[i] >= 0 && c.frame[i] < h.position && c.count[i] > 0);
            ok(c.mass[i] >= 0 && c.exposure[i] > 0 && std::isfinite(c.mass[i]) && std::isfinite(c.exposure[i]));
            ok(std::isfinite(c.entropy[i]) && std::isfinite(c.prior[i]));
            n_tokens += c.count[i];
        }
        ok(n_tokens <= h.n_tokens);
    }
    for (const auto & fates : t.fates) {
        for (const int32_t fate : fates) {
            ok(fate == -1 || (fate >= 0 && fate < h.n_tokens && fates[size_t(fate)] == fate));
        }
    }
}

void take_moments(const kvmerge_observer & o, Content & content) {
    for (size_t i = 0; i < content.moments.size(); i++) {
        const auto & l = o.layers[i];
        Moments & m = content.moments[i];
        m.weight = l.query_weight;
        // What restores begins its next block after none.
        m.keep = float(l.query_keep * decay_over(o.params.query_decay, int(o.token_cell.size())));
        if (l.query_sum.size() == m.sum.size()) {
            l.query_sum.download(m.sum.data(), m.sum.size());
            l.query_second.download(m.second.data(), m.second.size());
            kvmerge::check(*l.stats_device);
            std::copy(l.head_sum.begin(), l.head_sum.end(), m.head_sum.begin());
            std::copy(l.head_second.begin(), l.head_second.end(), m.head_second.begin());
        }
    }
}

void give_moments(kvmerge_observer & o, const Content & content) {
    for (size_t i = 0; i < content.moments.size(); i++) {
        auto & l = o.layers[i];
        const Moments & m = content.moments[i];
        if (l.query_sum.size() == m.sum.size()) {
            l.query_sum.upload(m.sum.data(), m.sum.size());
            l.query_second.upload(m.second.data(), m.second.size());
            kvmerge::check(*l.stats_device);
            l.head_sum = m.head_sum;
            l.head_second = m.head_second;
        }
        l.query_weight = m.weight;
        l.query_keep = m.keep;
        l.direction_known = false;
    }
}

// Bytes of a cell in the layer that has most, of all layers of the cache.
size_t largest_row_of(const kvmerge_observer & o) {
    int64_t largest = 0;
    for (const auto & l : o.layers) {
        largest = std::max({largest, l.k.bytes(), l.v.bytes()});
    }
    largest /= o.layers[0].k.n_cells();
    for (const auto & other : o.other_bytes) {
        largest = std::max(largest, other.second / std::max(int64_t(1), int64_t(o.windows.position().size())));
    }
    return size_t(largest);
}

// What is known of the windows of a sequence of n_tokens. Throws STATE where the observer has not seen all of it.
Windows windows_of(const kvmerge_observer & o, int32_t n_tokens) {
    if (o.windows.position().empty()) {
        throw Error(KVMERGE_E_STATE,
                    "the state cannot be saved: no layer with sliding windows was seen, so keep_newest is "
                    "to be 0");
    }
    if (o.windows.next() != n_tokens) {
        throw Error(KVMERGE_E_STATE,
                    text("the state cannot be saved: %lld of %d tokens were seen written to the layers with sliding "
                         "windows; clear the cache and read the text again",
                         static_cast<long long>(o.windows.next()), n_tokens));
    }
    const std::vector<int64_t> & position = o.windows.position();
    return {std::vector<int32_t>(position.begin(), position.end()), int32_t(o.windows.head())};
}

// What llama.cpp's state in a saved one is of.
SequenceCells cells_of(const kvmerge_observer & o, const Content & content, const Header & h) {
    return {content.table.held, h.position, h.kind.v_transposed != 0, largest_row_of(o),
            h.n_windows > 0 ? &content.windows : nullptr};
}

// Visits exact biases, which the observer keeps by cell.
template <class Body>
void each_bias(const CellTable::Shape & shape, const CellTable::Columns & columns, size_t used, Body && body) {
    for (int pair = 0; pair < shape.pairs(); pair++) {
        const size_t base = size_t(pair) * size_t(shape.n_cells);
        for (size_t i = 0; i < used; i++) {
            body(size_t(pair) * used + i, base + size_t(columns.cell[base + i]));
        }
    }
}

} // namespace

size_t kvmerge_cache::n_windows() const {
    size_t n = 0;
    if (params.keep_newest) {
        in_observer(observer, [&](const kvmerge_observer & o) { n = o.windows.position().size(); });
    }
    return n;
}

void kvmerge::forget_queries(kvmerge_observer & o) {
    for (auto & l : o.layers) {
        l.n_queries = 0;
        l.query_weight = 0;
        l.query_keep = 1;
        l.direction_known = false;
        if (l.query_sum.size()) {
            l.query_sum.zero();
            l.query_second.zero();
        }
        std::fill(l.head_sum.begin(), l.head_sum.end(), 0.0f);
        std::fill(l.head_second.begin(), l.head_second.end(), 0.0f);
        o.distrust(l);
    }
    o.bias.clear();
    o.any_bias = false;
    o.in_sequence.clear();
    o.windows.clear();
}

size_t kvmerge_cache::state_size() {
    require_whole();
    take_pending();
    if (table.used() == 0) {
        throw Error(KVMERGE_E_STATE, "there is no state yet: decode something first");
    }
    size_t size = sizeof(Header) + params.llama.state_seq_get_size(context, seq_id);
    const Kind kind = kind_of(*this);
    Content content =
        content_for(kind, size_t(table.used()), size_t(n_tokens), size_t(table.shape().n_cells), n_windows());
    const auto count = [&](auto * x, size_t n) { size += n * sizeof *x; };
    visit(content, count);
    visit_columns(content.table.columns, size_t(table.shape().pairs()), 0, size_t(table.used()), count);
    return size;
}

void kvmerge_cache::save(char * to, size_t size) {
    require(to && size == state_size(), "the bytes must be as many as kvmerge_cache_state_size says");
    finish_rewriting();
    Header h = {};
    std::memcpy(h.magic, MAGIC, sizeof MAGIC);
    h.version = VERSION;
    h.bytes = size;
    h.kind = kind_of(*this);
    h.n_used = table.used(), h.n_pinned = table.pinned(), h.n_tokens = n_tokens, h.position = position;
    h.llama_bytes = params.llama.state_seq_get_size(context, seq_id);
    const CellTable::Shape & shape = table.shape();
    const size_t used = size_t(h.n_used), pairs = size_t(shape.pairs());
    Content content = content_for(h.kind, used, size_t(n_tokens), size_t(shape.n_cells), n_windows());
    h.n_windows = uint32_t(content.windows.position.size());
    content.table.held = table.held();
    content.table.columns = columns();
    for (size_t pair = 0; pair < content.table.fates.size(); pair++) {
        table.fates(int(pair), 0, n_tokens, content.table.fates[pair].data());
    }
    in_observer(observer, [&](kvmerge_observer & o) {
        o.add_captured();
        o.add_waiting_queries();
        take_moments(o, content);
        if (params.keep_newest) {
            content.windows = windows_of(o, n_tokens);
        }
        if (o.any_bias) {
            each_bias(shape, content.table.columns, content.bias.empty() ? 0 : used,
                      [&](size_t i, size_t of_cell) { content.bias[i] = o.bias[of_cell]; });
        }
    });
    char * at = to + sizeof h;
    const auto write = [&](auto * x, size_t n) {
        if (n > 0) {
            std::memcpy(at, x, n * sizeof *x);
            at += n * sizeof *x;
        }
    };
    visit(content, write);
    visit_columns(content.table.columns, pairs, size_t(shape.n_cells), used, write);
    const size_t left = size_t(to + size - at);
    if (left != h.llama_bytes ||
        params.llama.state_seq_get_data(context, reinterpret_cast<uint8_t *>(at), left, seq_id) != left) {
        throw Error(KVMERGE_E_STATE, "llama.cpp does not give the sequence's state");
    }
    if (params.keep_newest) {
        in_observer(observer, [&](const kvmerge_observer & o) { // throws where it could not come back
            with_gaps(at, left, cells_of(o, content, h), std::vector<char>(at, at + left));
        });
    }
    std::memcpy(to, &h, sizeof h);
    h.sum = sum_of(to + SUMMED, size - SUMMED);
    std::memcpy(to, &h, sizeof h);
}

// Lets the observer see where the cells lie. The token that this takes is forgotten.
void kvmerge_cache::become_known() {
    bool known = false;
    in_observer(observer, [&](const kvmerge_observer & o) { known = o.layers[0].v.tensor() != nullptr; });
    if (known) {
        return;
    }
    const int32_t token = 0;
    pass(kvmerge_observer_begin(observer));
    decode_batch(&token, 1, false);
    clear();
}

void kvmerge_cache::restore(const char * from, size_t size) {
    Header h;
    require(from && size >= sizeof h, "there are no bytes, or fewer than a state has");
    std::memcpy(&h, from, sizeof h);
    require(std::memcmp(h.magic, MAGIC, sizeof MAGIC) == 0, "the bytes are no state of a cache");
    if (h.version != VERSION) {
        throw Error(KVMERGE_E_ARGUMENT,
                    text("the state has version %u, and this library reads %u", h.version, VERSION));
    }
    if (h.bytes != size) {
        throw Error(KVMERGE_E_ARGUMENT, text("the state is cut short, or goes on: it has %zu bytes of %llu", size,
                                             static_cast<unsigned long long>(h.bytes)));
    }
    require(sum_of(from + SUMMED, size - SUMMED) == h.sum, "the state is damaged: its bytes do not have their sum");
    if (broken.empty()) {
        finish_rewriting();
        become_known();
    }
    require_same(h.kind, kind_of(*this));
    if (h.n_windows != n_windows()) {
        throw Error(KVMERGE_E_ARGUMENT,
                    text("the state is of another kind of cache: its sliding windows have %u cells, this one's %zu. A "
                         "window, the sequences and an ubatch make them: give the same -np, --block and --prompt-block "
                         "(n_seq_max and n_ubatch)",
                         h.n_windows, n_windows()));
    }
    place();
    const CellTable::Shape & shape = table.shape();
    const size_t used = size_t(h.n_used), pairs = size_t(shape.pairs());
    check(h, size, params, shape);
    require(params.n_cells == 0 || h.n_used <= params.n_cells + most_pending(),
            "the state has more cells in use than this cache has: use a larger n_block or n_prompt_block");
    Content content = content_for(h.kind, used, size_t(h.n_tokens), size_t(shape.n_cells), h.n_windows);
    content.table.pinned = h.n_pinned;
    const char * at = from + sizeof h;
    const auto read = [&](auto * x, size_t n) {
        require(n * sizeof *x <= size_t(from + size - at), "the state is shorter than its table");
        if (n > 0) {
            std::memcpy(x, at, n * sizeof *x);
            at += n * sizeof *x;
        }
    };
    visit(content, read);
    visit_columns(content.table.columns, pairs, size_t(shape.n_cells), used, read);
    check(content, h, shape);
    check(content.windows, h);
    check_packing(h, content.table.held, params);
    require(size_t(from + size - at) == h.llama_bytes, "the state is longer than its table");
    std::vector<char> own(params.llama.state_seq_get_size(context, seq_id));
    own.resize(params.llama.state_seq_get_data(context, reinterpret_cast<uint8_t *>(own.data()), own.size(), seq_id));
    SequenceState state;
    in_observer(observer, [&](const kvmerge_observer & o) {
        state = with_gaps(at, size_t(h.llama_bytes), cells_of(o, content, h), own);
    });
    std::vector<float> biases(content.bias.empty() ? 0 : pairs * size_t(shape.n_cells));
    each_bias(shape, content.table.columns, content.bias.empty() ? 0 : used,
              [&](size_t i, size_t of_cell) { biases[of_cell] = content.bias[i]; });

    clear(); // from here on, what fails leaves the cache broken
    broken = "a state was restored by half";
    const auto data = reinterpret_cast<const uint8_t *>(state.bytes.data());
    llama_memory_i * const memory = params.llama.get_memory(context);
    const auto put = [&] {
        return params.llama.state_seq_set_data(context, data, state.bytes.size(), seq_id) == state.bytes.size();
    };
    // Windows go on from where they were. Once all of their cells were filled and freed, that is the first.
    const bool at_first = !params.keep_newest || (put() && params.llama.memory_seq_rm(memory, seq_id, -1, -1));
    if (!at_first || !put() || !params.llama.memory_seq_rm(memory, seq_id, h.position, h.position + state.gaps) ||
        params.llama.memory_seq_pos_max(memory, seq_id) != h.position - 1) {
        throw Error(KVMERGE_E_STATE, "llama.cpp does not take the state: is it of this model?");
    }
    in_observer(observer, [&](kvmerge_observer & o) {
        give_moments(o, content);
        for (auto & l : o.layers) {
            o.distrust(l);
        }
        if (params.keep_newest) {
            const Windows & left = state.windows;
            o.windows.replace({left.position.begin(), left.position.end()}, left.head, h.position);
        }
        o.any_bias = std::any_of(biases.begin(), biases.end(), [](float b) { return b != 0; });
        o.bias.swap(biases);
    });
    table.replace(std::move(content.table));
    if (there) {
        there->replace(table);
    }
    n_tokens = h.n_tokens;
    position = h.position;
    expect_plans();
    broken.clear();
}
