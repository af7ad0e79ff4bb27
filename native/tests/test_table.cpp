// The table against a plain model of the cells: contents are lists of positions, moved as kvmerge_apply would move
// them.
#include "check.hpp"
#include "decay.hpp"
#include "table.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

using kvmerge::CellTable;
using kvmerge::decay_over;
using kvmerge::DECAY_TOKENS;

namespace {

constexpr int LAYERS = 2, HEADS = 4, KV_HEADS = 2, PAIRS = LAYERS * KV_HEADS;

using Contents = std::vector<std::vector<int>>; // [cell]: positions merged into it

struct Plan {
    std::vector<int32_t> target;
    std::vector<float> weight;
};

// Drops and merges at random until `budget` groups are left; the newest stays alone.
Plan random_plan(int n, int budget, Random & random) {
    Plan plan{std::vector<int32_t>(size_t(n)), std::vector<float>(size_t(n), 1.0f)};
    std::vector<int> left;
    for (int i = 0; i < n; i++) {
        plan.target[size_t(i)] = i;
        if (i < n - 1) {
            left.push_back(i);
        }
    }
    for (int excess = n - budget; excess > 0;) {
        const int i = random.integer(0, int(left.size()) - 1);
        const int length = std::min({2 + random.integer(0, 2), excess + 1, int(left.size()) - i});
        if (random.integer(0, 1) || length < 2 || int(left.size()) <= excess) { // a merge takes one more than it saves
            plan.target[size_t(left[size_t(i)])] = -1;
            left.erase(left.begin() + i);
            excess--;
            continue;
        }
        const std::vector<int> group(left.begin() + i, left.begin() + i + length);
        const int pivot = group[size_t(random.integer(0, length - 1))];
        for (const int member : group) {
            plan.target[size_t(member)] = pivot;
            plan.weight[size_t(member)] = 1.0f / float(length);
        }
        left.erase(left.begin() + i, left.begin() + i + length); // a group is not touched again
        excess -= length - 1;
    }
    return plan;
}

void move(Contents & contents, const kvmerge_moves & moves, size_t base) {
    Contents next(contents.size());
    for (size_t pivot = 0; pivot < contents.size(); pivot++) {
        if (moves.target[base + pivot] != int32_t(pivot)) {
            continue;
        }
        std::vector<int> & to = next[size_t(moves.dest[base + pivot])];
        CHECK(to.empty()); // no two groups in one cell
        for (size_t c = 0; c < contents.size(); c++) {
            if (moves.target[base + c] == int32_t(pivot)) {
                to.insert(to.end(), contents[c].begin(), contents[c].end());
            }
        }
    }
    contents = next;
}

void check(const CellTable & table, const std::vector<Contents> & contents, const std::set<int> & free, int position,
           int pinned) {
    for (int pair = 0; pair < PAIRS; pair++) {
        const CellTable::Columns & of = table.columns();
        const size_t base = table.row(pair);
        std::set<int> seen;
        for (int i = 0; i < table.used(); i++) {
            const size_t at = base + size_t(i);
            CHECK(seen.insert(of.cell[at]).second && free.count(of.cell[at]) == 0);
            const std::vector<int> & content = contents[size_t(pair)][size_t(of.cell[at])];
            CHECK(std::count(content.begin(), content.end(), of.position[at]) == 1);
            CHECK(of.count[at] == int(content.size()));
            CHECK(i == 0 || of.position[at - 1] < of.position[at]);
            const auto range = std::minmax_element(content.begin(), content.end());
            CHECK(of.prior[at] >= float(*range.first) - 1e-3f && of.prior[at] <= float(*range.second) + 1e-3f);
            CHECK(i >= pinned || (content == std::vector<int>{i}));
            std::vector<int32_t> fates(content.size());
            for (const int token : content) { // every token knows the cell that it is in
                int32_t fate;
                table.fates(pair, token, 1, &fate);
                CHECK(fate == of.position[at]);
            }
        }
        std::vector<int32_t> fates(static_cast<size_t>(position));
        table.fates(pair, 0, position, fates.data());
        int alive = 0;
        for (int i = 0; i < table.used(); i++) {
            alive += of.count[base + size_t(i)];
        }
        CHECK(std::count(fates.begin(), fates.end(), -1) == position - alive); // and the others are dropped
        CHECK(of.position[base + size_t(table.used()) - 1] == position - 1);
        const std::vector<int> newest = {position - 1};
        CHECK(contents[size_t(pair)][size_t(of.cell[base + size_t(table.used()) - 1])] == newest);
    }
}

void accounts_for_every_cell(unsigned seed, bool keeps_newest) {
    Random random(seed);
    const int budget = random.integer(5, 16), block = random.integer(1, 6);
    const int cells = budget + block + random.integer(0, 4);
    CellTable table({LAYERS, HEADS, KV_HEADS, cells}, keeps_newest, false, true);
    std::vector<Contents> contents(PAIRS, Contents(size_t(cells)));
    std::set<int> free; // llama.cpp's: it fills the first
    for (int c = 0; c < cells; c++) {
        free.insert(c);
    }
    std::vector<int> llama_position(size_t(cells), -1);
    int position = 0, pinned = 0;
    for (int round = 0; round < 20; round++) {
        const int n = random.integer(1, block);
        std::vector<int32_t> token_cell;
        for (int t = 0; t < n; t++) {
            token_cell.push_back(*free.begin());
            free.erase(free.begin());
            llama_position[size_t(token_cell.back())] = position + t;
            for (Contents & of : contents) {
                of[size_t(token_cell.back())] = {position + t};
            }
        }
        std::vector<float> mass = random.normals(size_t(PAIRS * cells)), prior(size_t(PAIRS * n));
        for (size_t i = 0; i < prior.size(); i++) {
            prior[i] = float(position + int(i) % n);
        }
        table.add({n, token_cell.data(), mass.data(), nullptr, 0, prior.data()}, position, position, .9);
        position += n;
        if (table.used() > budget) {
            table.begin(budget, 0);
            for (int pair = 0; pair < PAIRS; pair++) {
                const Plan plan = random_plan(table.used() - pinned, budget - pinned, random);
                const int m = int(plan.target.size());
                table.stage(pair, {m, plan.target.data(), plan.weight.data(), nullptr});
            }
            const kvmerge_moves moves = table.moves(true);
            for (int pair = 0; pair < PAIRS; pair++) {
                move(contents[size_t(pair)], moves, table.row(pair));
            }
            table.commit();
            for (int c = 0; c < cells; c++) {
                const int at = llama_position[size_t(c)];
                const bool freed = keeps_newest ? at < position - budget : at >= budget - 1 && at < position - 1;
                if (freed) {
                    free.insert(c);
                }
            }
            CHECK(table.used() == budget);
        } else if (pinned == 0 && table.used() <= budget - 3 && random.integer(0, 3) == 0) {
            table.pin();
            pinned = table.used();
        }
        CHECK(cells - int(free.size()) == table.used());
        check(table, contents, free, position, pinned);
    }
}

// What is forgotten goes by tokens, in blocks of any lengths: the columns are those of sums in double precision. A
// block of DECAY_TOKENS forgets the decay itself.
void forgets_by_tokens(unsigned seed) {
    Random random(seed);
    constexpr int CELLS = 3000;
    const double decay = std::vector<double>{0, .5, .7, .9, .97, 1}[seed % 6];
    CHECK(decay_over(decay, DECAY_TOKENS) == decay);
    CellTable table({1, 1, 1, CELLS}, false, false, false);
    std::vector<double> mass, exposure;
    for (const int n : {random.integer(1, 300), DECAY_TOKENS, 1, random.integer(2, 127), 4 * DECAY_TOKENS, 7}) {
        const std::vector<float> before = table.columns().mass, seen = table.columns().exposure;
        std::vector<int32_t> token_cell(static_cast<size_t>(n));
        std::iota(token_cell.begin(), token_cell.end(), table.used());
        std::vector<float> more = random.normals(CELLS);
        for (float & m : more) {
            m = std::fabs(m);
        }
        table.add({n, token_cell.data(), more.data(), nullptr, 0, nullptr}, int(mass.size()), int(mass.size()), decay);
        const double keep = std::exp(std::log(decay) * n / 128);
        for (size_t i = 0; i < mass.size(); i++) {
            mass[i] = mass[i] * keep + double(more[i]);
            exposure[i] = exposure[i] * keep + n;
        }
        for (int t = 0; t < n; t++) {
            mass.push_back(double(more[mass.size()]));
            exposure.push_back(n - t);
        }
        for (size_t i = 0; i < mass.size(); i++) {
            CHECK_NEAR(table.columns().mass[i], mass[i], 1e-6, 1e-5);
            CHECK_NEAR(table.columns().exposure[i], exposure[i], 1e-6, 1e-5);
            if (n == DECAY_TOKENS && i + size_t(n) < mass.size()) {
                CHECK(table.columns().mass[i] == float(before[i] * decay + more[i]));
                CHECK(table.columns().exposure[i] == float(seen[i] * decay + n));
            }
        }
    }
}

// Statistics of a head, by the text of the header: mass over exposure is a mean over queries, and merging adds masses.
void adds_up_statistics() {
    CellTable table({1, 2, 1, 8}, false, false, false);
    const int32_t first[] = {0, 1, 2}, second[] = {3};
    const float mass[] = {3, 2, 1, 9, 9, 9, 9, 9}, more[] = {1, 1, 1, 1, 9, 9, 9, 9};
    const float entropy[] = {0, .5f, 1, 9, .5f, .5f, 0, 9}; // [head][4]
    const float prior[] = {1, 2, 3};
    const double half = std::ldexp(1.0, -128); // is what 128 tokens leave, and a token leaves a half
    table.add({3, first, mass, entropy, 4, prior}, 0, 0, half);
    table.add({1, second, more, nullptr, 0, nullptr}, 3, 3, half);
    const CellTable::Columns & of = table.columns();
    const float masses[] = {2.5f, 2, 1.5f, 1}, exposures[] = {2.5f, 2, 1.5f, 1}, entropies[] = {.25f, .5f, .5f, 0};
    for (size_t i = 0; i < 4; i++) {
        CHECK(of.mass[i] == masses[i] && of.exposure[i] == exposures[i] && of.entropy[i] == entropies[i]);
        CHECK(of.count[i] == 1 && of.prior[i] == (i < 3 ? prior[i] : 0));
    }
    table.begin(2, 0);
    const int32_t target[] = {1, 1, -1, 3};
    const float weight[] = {.25f, .75f, 0, 1};
    table.stage(0, {4, target, weight, nullptr});
    const kvmerge_moves moves = table.moves(true);
    CHECK(moves.dest[1] == 0 && moves.dest[3] == 3 && moves.target[2] == -1 && !moves.value_weight);
    table.commit();
    CHECK(of.mass[0] == 4.5f && of.exposure[0] == 2 && of.count[0] == 2 && of.position[0] == 1);
    CHECK(of.entropy[0] == .25f * .25f + .75f * .5f && of.prior[0] == .25f * 1 + .75f * 2);
}

void refuses(CellTable & table, std::vector<int32_t> target, std::vector<float> weight, const char * why) {
    try {
        table.stage(1, {int(target.size()), target.data(), weight.data(), nullptr});
    } catch (const std::exception & e) {
        const std::string message = e.what();
        CHECK(message.find("layer 0, KV head 1: ") != std::string::npos);
        if (message.find(why) == std::string::npos) {
            std::printf("'%s' where '%s' was expected\n", e.what(), why);
            std::exit(1);
        }
        return;
    }
    std::printf("a plan was taken that should have been refused: %s\n", why);
    std::exit(1);
}

void refuses_plans_that_break_the_rules() {
    CellTable table({1, 2, 2, 8}, false, false, false);
    const int32_t cells[] = {0, 1, 2, 3};
    table.add({4, cells, nullptr, nullptr, 0, nullptr}, 0, 0, 1);
    table.begin(3, 0);
    refuses(table, {0, 1, 3}, {1, 1, 1}, "a plan for 3 cells where there are 4");
    refuses(table, {0, 1, 2, 3}, {1, 1, 1, 1}, "leaves 4 cells where the budget is 3");
    refuses(table, {0, -1, -1, 3}, {1, 1, 1, 1}, "leaves 2 cells where the budget is 3");
    refuses(table, {1, -1, 2, 3}, {1, 1, 1, 1}, "cell 0 goes to 1, which is not a pivot");
    refuses(table, {4, 1, 2, 3}, {1, 1, 1, 1}, "cell 0 goes to 4");
    refuses(table, {-2, 1, 2, 3}, {1, 1, 1, 1}, "cell 0 goes to -2");
    refuses(table, {0, 0, 2, 3}, {.5f, .4f, 1, 1}, "group sum to 0.9");
    refuses(table, {0, 0, 2, 3}, {1.5f, -.5f, 1, 1}, "cell 0 has weight 1.5");
    refuses(table, {0, 0, 2, 3}, {NAN, 1, 1, 1}, "cell 0 has weight nan");
    refuses(table, {0, 1, 3, 3}, {1, 1, .5f, .5f}, "the newest cell must stay, alone");
    refuses(table, {0, 1, 2, -1}, {1, 1, 1, 1}, "the newest cell must stay, alone");
}

template <class Body>
void throws(const char * why, Body && body) {
    try {
        body();
    } catch (const std::exception & e) {
        if (std::string(e.what()).find(why) == std::string::npos) {
            std::printf("'%s' where '%s' was expected\n", e.what(), why);
            std::exit(1);
        }
        return;
    }
    std::printf("this should have been refused: %s\n", why);
    std::exit(1);
}

void refuses_cells_that_are_in_use() {
    CellTable table({1, 2, 1, 8}, false, false, true);
    const int32_t cells[] = {0, 1, 2, 3}, held[] = {4, 2}, twice[] = {5, 5}, outside[] = {8};
    table.add({4, cells, nullptr, nullptr, 0, nullptr}, 0, 0, 1);
    for (const auto & block : {CellTable::Block{4, cells, nullptr, nullptr, 0, nullptr},
                               {2, held, nullptr, nullptr, 0, nullptr},
                               {2, twice, nullptr, nullptr, 0, nullptr},
                               {1, outside, nullptr, nullptr, 0, nullptr}}) {
        throws("in a cell that is in use", [&] { table.add(block, 4, 4, 1); });
        CHECK(table.used() == 4 && table.fates()[0].size() == 4 && table.columns().exposure[3] == 1);
    }
}

void survives_tables_that_contradict_themselves() {
    const int32_t cells[] = {0, 1, 2, 3}, target[] = {-1, 1, 2, 3};
    const float weight[] = {1, 1, 1, 1};
    CellTable table({1, 2, 1, 8}, false, false, false);
    table.add({4, cells, nullptr, nullptr, 0, nullptr}, 0, 0, 1);
    CellTable::State state{{3, 1, 2, 0}, 0, table.columns(), {}}; // the newest is in one of the first cells
    table.replace(std::move(state));
    table.begin(3, 0);
    throws("fewer cells stay than the plan fills", [&] { table.stage(0, {4, target, weight, nullptr}); });
    throws("has no plan yet", [&] { table.moves(true); });
    table.pin();
    throws("no cells to plan with", [&] { table.stage(0, {0, target + 1, weight, nullptr}); });
}

} // namespace

int main() {
    for (unsigned seed = 0; seed < 200; seed++) {
        accounts_for_every_cell(seed, seed % 2 == 1);
    }
    for (unsigned seed = 0; seed < 60; seed++) {
        forgets_by_tokens(seed);
    }
    adds_up_statistics();
    refuses_plans_that_break_the_rules();
    refuses_cells_that_are_in_use();
    survives_tables_that_contradict_themselves();
    std::printf("ok\n");
}
