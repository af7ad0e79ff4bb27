package dev.kvmerge.strategy;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import java.util.TreeSet;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;

class IndexedHeapTest {
    @Property(tries = 300)
    void agreesWithASortedSetUnderChangesAndRemovals(@ForAll long seed) {
        Random random = new Random(seed);
        int n = 1 + random.nextInt(60);
        int first = random.nextInt(n);
        double[] key = random.doubles(n).map(x -> Math.floor(8 * x)).toArray(); // many ties
        IndexedHeap heap = new IndexedHeap(key, first, n);
        TreeSet<Integer> expected =
                new TreeSet<>((a, b) -> key[a] != key[b] ? Double.compare(key[a], key[b]) : Integer.compare(a, b));
        for (int i = first; i < n; i++) {
            expected.add(i);
        }
        while (!expected.isEmpty()) {
            assertEquals(expected.first(), heap.smallest());
            Integer[] left = expected.toArray(new Integer[0]);
            int chosen = left[random.nextInt(left.length)];
            expected.remove(chosen);
            if (random.nextBoolean()) {
                heap.remove(chosen);
            } else {
                key[chosen] = random.nextInt(8);
                expected.add(chosen);
                heap.changed(chosen);
            }
        }
    }
}
