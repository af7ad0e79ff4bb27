package dev.kvmerge.cache;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvmerge.attention.CellStats;
import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Shape;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.TreeSet;
import java.util.stream.IntStream;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;

/**
 * The table against a plain model of the cells: contents are lists of positions, moved as kvmerge_apply would move
 * them.
 */
@net.jqwik.api.Tag("fast")
class CellTableTest {
    private static final CellTable.Shown ALL = new CellTable.Shown(true, true, true, true);
    private static final Shape SHAPE = Shape.of(2, 4, 2);

    @Property(tries = 50)
    void accountsForEveryCellOverRandomBlocks(@ForAll long seed, @ForAll boolean keepsNewest) {
        Random random = new Random(seed);
        int budget = 4 + random.nextInt(12);
        int block = 1 + random.nextInt(6);
        int cells = budget + block + random.nextInt(5);
        CellTable table = new CellTable(SHAPE, cells, keepsNewest);
        List<List<List<Integer>>> contents = new ArrayList<>(); // [pair][cell]: positions merged into it
        for (int pair = 0; pair < SHAPE.pairs(); pair++) {
            contents.add(new ArrayList<>(
                    IntStream.range(0, cells).mapToObj(c -> List.<Integer>of()).toList()));
        }
        TreeSet<Integer> free =
                new TreeSet<>(IntStream.range(0, cells).boxed().toList()); // llama.cpp's: it fills the first
        int[] llamaPosition = new int[cells];
        int position = 0;
        for (int round = 0; round < 20; round++) { // 50 tries of 20: a thousand blocks
            int n = 1 + random.nextInt(block);
            int[] tokenCell = new int[n];
            for (int t = 0; t < n; t++) {
                tokenCell[t] = free.pollFirst();
                llamaPosition[tokenCell[t]] = position + t;
                for (List<List<Integer>> pair : contents) {
                    pair.set(tokenCell[t], List.of(position + t));
                }
            }
            float[] mass = new float[SHAPE.pairs() * cells];
            for (int i = 0; i < mass.length; i++) {
                mass[i] = random.nextFloat();
            }
            float[][] priors = new float[SHAPE.pairs()][n];
            for (float[] of : priors) {
                for (int t = 0; t < n; t++) {
                    of[t] = position + t;
                }
            }
            table.add(tokenCell, position, position, new Observer.Stats(tokenCell, mass, null, SHAPE.layers(), 0), 0.9);
            for (int pair = 0; pair < priors.length; pair++) {
                table.foresee(pair, priors[pair]);
            }
            position += n;
            if (table.used() > budget) {
                Plan[] plans = new Plan[SHAPE.pairs()];
                for (int pair = 0; pair < plans.length; pair++) {
                    plans[pair] = randomPlan(table.stats(pair, ALL, null, null), budget, random);
                }
                int used = table.used();
                CellTable.Moves moves = rewritten(table, plans, budget, 0);
                for (int pair = 0; pair < plans.length; pair++) {
                    move(contents.get(pair), moves, pair, cells);
                }
                // llama.cpp frees [budget-1, newest): what stays are cells 0..budget-2 and the newest token's own. With
                // sliding windows
                // it frees the oldest positions.
                for (int cell = 0; cell < cells; cell++) {
                    boolean freed = keepsNewest
                            ? llamaPosition[cell] < position - budget
                            : llamaPosition[cell] >= budget - 1 && llamaPosition[cell] < position - 1;
                    if (!free.contains(cell) && freed) {
                        free.add(cell);
                    }
                }
                assertEquals(budget, table.used());
                assertTrue(used > budget);
            }
            assertEquals(cells - free.size(), table.used(), "the table and llama.cpp count the same cells");
            check(table, contents, free, position);
        }
    }

    @Property(tries = 50)
    void keysAreRotatedBackAndPileUpAtTheStart(@ForAll long seed) {
        Random random = new Random(seed);
        int budget = 4 + random.nextInt(8);
        int block = 1 + random.nextInt(5);
        int span = budget + random.nextInt(20);
        CellTable table = new CellTable(SHAPE, budget + block, false);
        TreeSet<Integer> free =
                new TreeSet<>(IntStream.range(0, budget + block).boxed().toList());
        int position = 0; // in the text
        int next = 0; // llama.cpp's
        List<Integer> held = new ArrayList<>(); // cells, in the order of llama.cpp's positions
        int[][] carried = new int[SHAPE.pairs()][0]; // positions whose rotation the keys carry, in order
        for (int round = 0; round < 15; round++) {
            int[] tokenCell = new int[block];
            java.util.Arrays.setAll(tokenCell, t -> free.pollFirst());
            table.add(tokenCell, position, next, new Observer.Stats(tokenCell, null, null, SHAPE.layers(), 0), 1);
            Arrays.stream(tokenCell).forEach(held::add);
            position += block;
            for (int pair = 0; pair < SHAPE.pairs(); pair++) {
                int[] more = Arrays.copyOf(carried[pair], carried[pair].length + block);
                for (int t = 0; t < block; t++) {
                    more[carried[pair].length + t] = next + t;
                }
                carried[pair] = more;
            }
            next += block;
            if (table.used() <= budget) {
                continue;
            }
            Plan[] plans = new Plan[SHAPE.pairs()];
            int[][] orders = new int[plans.length][];
            for (int pair = 0; pair < plans.length; pair++) {
                plans[pair] = randomPlan(table.stats(pair, ALL, null, null), budget, random);
                orders[pair] = table.order(pair);
            }
            int back = Math.max(0, next - span);
            CellTable.Moves moves = rewritten(table, plans, budget, back);
            for (int pair = 0; pair < plans.length; pair++) {
                int[] left = new int[budget];
                int group = 0;
                for (int i = 0; i < orders[pair].length; i++) {
                    int cell = pair * (budget + block) + orders[pair][i];
                    assertEquals(carried[pair][i], moves.positions()[cell], "what the key carries");
                    if (plans[pair].target()[i] != i) {
                        continue;
                    }
                    left[group] = Math.max(group, carried[pair][i] - back);
                    if (back > 0) {
                        assertEquals(left[group], moves.newPositions()[cell]);
                    }
                    group++;
                }
                carried[pair] = left;
                assertTrue(left[budget - 1] < span);
            }
            next -= back;
            int last = held.remove(held.size() - 1 - back); // whose position is the newest that stays
            for (int cell : held.subList(budget - 1, held.size())) {
                assertTrue(cell >= budget - 1);
                free.add(cell);
            }
            held = new ArrayList<>(held.subList(0, budget - 1));
            held.add(last);
        }
    }

    private static CellTable.Moves rewritten(CellTable table, Plan[] plans, int budget, int back) {
        CellTable.Rewrite rewrite = table.rewrite(budget, back);
        for (int pair = 0; pair < plans.length; pair++) {
            rewrite.stage(pair, plans[pair]);
        }
        CellTable.Moves moves = rewrite.moves();
        rewrite.commit();
        return moves;
    }

    private static Plan randomPlan(CellStats cells, int budget, Random random) {
        int n = cells.size();
        Plan.Builder plan = Plan.builder(n);
        int excess = n - budget;
        List<Integer> left = new ArrayList<>(IntStream.range(0, n - 1).boxed().toList());
        while (excess > 0) {
            int i = random.nextInt(left.size());
            if (random.nextBoolean()
                    || i + 1 >= left.size()
                    || left.size() <= excess) { // a merge takes one more than it saves
                plan.evict(left.remove(i));
                excess--;
            } else {
                int length = Math.min(2 + random.nextInt(3), Math.min(excess + 1, left.size() - i));
                List<Integer> group = left.subList(i, i + length);
                plan.merge(
                        group.stream().mapToInt(x -> x).toArray(),
                        random.doubles(length).toArray());
                group.clear(); // a group is not touched again
                excess -= length - 1;
            }
        }
        return plan.build();
    }

    private static void move(List<List<Integer>> contents, CellTable.Moves moves, int pair, int cells) {
        List<List<Integer>> next = new ArrayList<>(
                IntStream.range(0, cells).mapToObj(c -> List.<Integer>of()).toList());
        for (int pivot = 0; pivot < cells; pivot++) {
            if (moves.targets()[pair * cells + pivot] == pivot) {
                List<Integer> merged = new ArrayList<>();
                for (int c = 0; c < cells; c++) {
                    if (moves.targets()[pair * cells + c] == pivot) {
                        merged.addAll(contents.get(c));
                    }
                }
                int to = moves.destinations()[pair * cells + pivot];
                assertTrue(next.get(to).isEmpty(), "two groups in one cell");
                next.set(to, merged);
            }
        }
        for (int c = 0; c < cells; c++) {
            contents.set(c, next.get(c));
        }
    }

    private static void check(
            CellTable table, List<List<List<Integer>>> contents, TreeSet<Integer> free, int position) {
        for (int pair = 0; pair < SHAPE.pairs(); pair++) {
            int[] order = table.order(pair);
            CellStats stats = table.stats(pair, ALL, null, null);
            assertEquals(order.length, Arrays.stream(order).distinct().count());
            assertEquals(position - 1, stats.newest());
            assertEquals(
                    List.of(position - 1),
                    contents.get(pair).get(order[order.length - 1]),
                    "the newest token is in its own cell, alone");
            for (int i = 0; i < order.length; i++) {
                assertTrue(!free.contains(order[i]), "a cell in use that llama.cpp thinks free");
                List<Integer> content = contents.get(pair).get(order[i]);
                assertTrue(content.contains(stats.position()[i]), "the cell's position is one of its tokens'");
                assertTrue(
                        stats.prior()[i] >= java.util.Collections.min(content) - 1e-3
                                && stats.prior()[i] <= java.util.Collections.max(content) + 1e-3,
                        "a merged cell's prior is a mean of its tokens'");
                assertEquals(content.size(), stats.count()[i]);
                assertTrue(i == 0 || stats.position()[i - 1] < stats.position()[i], "position order");
            }
        }
    }
}
