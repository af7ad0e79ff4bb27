package dev.kvmerge.cache;

import dev.kvmerge.kernels.Observer;
import dev.kvmerge.llama.Shape;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The table of the cells as plainly as it can be said, to hold the native one against. */
final class ReferenceTable {
    /** What is known of a cell. */
    static final class Entry {
        int cell;
        int position;
        int frame;
        float mass;
        float exposure;
        float entropy;
        int count = 1;
        float prior;
    }

    private final Shape shape;
    private final int cells;
    private final boolean keepsNewest;
    private final List<List<Entry>> pairs = new ArrayList<>(); // in position order
    private final List<List<Integer>> fates = new ArrayList<>();
    private List<Integer> held = new ArrayList<>(); // cells, in the order of llama.cpp's positions
    private int pinned;

    ReferenceTable(Shape shape, int cells, boolean keepsNewest) {
        this.shape = shape;
        this.cells = cells;
        this.keepsNewest = keepsNewest;
        for (int pair = 0; pair < shape.pairs(); pair++) {
            pairs.add(new ArrayList<>());
            fates.add(new ArrayList<>());
        }
    }

    List<Entry> pair(int pair) {
        return pairs.get(pair);
    }

    int used() {
        return held.size();
    }

    void pin() {
        pinned = used();
    }

    int pinned() {
        return pinned;
    }

    /** massDecay: what 128 tokens leave. */
    void add(Observer.Stats stats, int firstPosition, int firstFrame, double massDecay) {
        int tokens = stats.tokenCell().length;
        double keep = Math.pow(massDecay, tokens / 128.0);
        for (int pair = 0; pair < pairs.size(); pair++) {
            List<Entry> entries = pairs.get(pair);
            entries.forEach(e -> e.exposure = (float) (e.exposure * keep + tokens));
            for (int t = 0; t < tokens; t++) {
                Entry e = new Entry();
                e.cell = stats.tokenCell()[t];
                e.position = firstPosition + t;
                e.frame = firstFrame + t;
                e.exposure = tokens - t;
                e.entropy = stats.entropy() == null ? 0 : entropy(stats.entropy(), pair, t, tokens);
                entries.add(e);
                fates.get(pair).add(e.position);
            }
            for (Entry e : entries) {
                if (stats.mass() != null) {
                    e.mass = (float) (e.mass * keep + stats.mass()[pair * cells + e.cell]);
                }
            }
        }
        for (int cell : stats.tokenCell()) {
            held.add(cell);
        }
    }

    /** Mean over the KV head's query heads. */
    private float entropy(float[] entropies, int pair, int token, int tokens) {
        int first = pair / shape.kvHeads() * shape.heads() + pair % shape.kvHeads() * shape.headsPerKvHead();
        float sum = 0;
        for (int h = 0; h < shape.headsPerKvHead(); h++) {
            sum += entropies[(first + h) * tokens + token];
        }
        return sum / shape.headsPerKvHead();
    }

    /** Carries out plans, which are of the cells behind the pinned ones. */
    void compress(List<Plan> plans, int budget, int back) {
        List<Integer> staying = new ArrayList<>();
        if (keepsNewest) {
            staying.addAll(held.subList(held.size() - budget, held.size()));
        } else {
            for (int c = 0; c < budget - 1; c++) {
                staying.add(c);
            }
            staying.add(held.get(held.size() - 1 - back));
        }
        for (int pair = 0; pair < pairs.size(); pair++) {
            pairs.set(pair, compressed(pair, plans.get(pair), staying, back));
        }
        held = staying;
    }

    private List<Entry> compressed(int pair, Plan plan, List<Integer> staying, int back) {
        List<Entry> before = pairs.get(pair);
        List<Entry> after = new ArrayList<>(before.subList(0, pinned));
        List<Entry> planned = before.subList(pinned, before.size());
        for (int p = 0; p < planned.size(); p++) {
            Entry pivot = planned.get(p);
            fates.get(pair).set(pivot.position, plan.target()[p] < 0 ? -1 : planned.get(plan.target()[p]).position);
            if (plan.target()[p] != p) {
                continue;
            }
            Entry group = new Entry();
            group.position = pivot.position;
            group.frame = pivot.frame;
            group.cell = pivot.cell;
            group.mass = pivot.mass;
            group.exposure = pivot.exposure;
            group.count = pivot.count;
            group.entropy = plan.weight()[p] * pivot.entropy;
            group.prior = plan.weight()[p] * pivot.prior;
            for (int i = 0; i < planned.size(); i++) {
                if (i != p && plan.target()[i] == p) {
                    Entry member = planned.get(i);
                    group.mass += member.mass;
                    group.count += member.count;
                    group.entropy += plan.weight()[i] * member.entropy;
                    group.prior += plan.weight()[i] * member.prior;
                }
            }
            after.add(group);
        }
        List<Integer> free = new ArrayList<>(staying);
        after.forEach(e -> free.remove((Integer) e.cell));
        Collections.sort(free);
        for (int g = 0; g < after.size(); g++) {
            Entry e = after.get(g);
            e.cell = staying.contains(e.cell) ? e.cell : free.removeFirst();
            e.frame = Math.max(g, e.frame - back);
        }
        return after;
    }

    /** What became of each token: as {@link CompressedContext#fates}. */
    int[] fates(int pair) {
        List<Integer> next = fates.get(pair);
        return next.stream()
                .mapToInt(fate -> {
                    while (fate >= 0 && next.get(fate) != (int) fate) {
                        fate = next.get(fate);
                    }
                    return fate;
                })
                .toArray();
    }
}
