package dev.kvmerge.strategy;

/** A binary min-heap over indices, whose keys can change: the cheapest first, equal ones by index. */
final class IndexedHeap {
    private final double[] key;
    private final int[] heap;
    private final int[] place; // of an index in the heap, -1 when it is not in it
    private int size;

    /** A heap of the indices [first, end), ordered by key[index]. Tell it of changes with {@link #changed}. */
    IndexedHeap(double[] key, int first, int end) {
        this.key = key;
        heap = new int[end - first];
        place = new int[key.length];
        java.util.Arrays.fill(place, -1);
        for (int i = first; i < end; i++) {
            heap[size] = i;
            place[i] = size++;
        }
        for (int i = size / 2 - 1; i >= 0; i--) {
            down(i);
        }
    }

    /** The index with the smallest key; there must be one. */
    int smallest() {
        return heap[0];
    }

    boolean contains(int index) {
        return place[index] >= 0;
    }

    void remove(int index) {
        int at = place[index];
        place[index] = -1;
        int last = heap[--size];
        if (at < size) {
            put(last, at);
            restore(at);
        }
    }

    /** The key of an index in the heap was changed. */
    void changed(int index) {
        restore(place[index]);
    }

    private void restore(int at) {
        int index = heap[at];
        up(at);
        down(place[index]);
    }

    private boolean before(int a, int b) {
        return key[a] < key[b] || (key[a] == key[b] && a < b);
    }

    private void put(int index, int at) {
        heap[at] = index;
        place[index] = at;
    }

    private void up(int at) {
        int index = heap[at];
        while (at > 0 && before(index, heap[(at - 1) / 2])) {
            put(heap[(at - 1) / 2], at);
            at = (at - 1) / 2;
        }
        put(index, at);
    }

    private void down(int at) {
        int index = heap[at];
        while (2 * at + 1 < size) {
            int child = 2 * at + 1;
            if (child + 1 < size && before(heap[child + 1], heap[child])) {
                child++;
            }
            if (!before(heap[child], index)) {
                break;
            }
            put(heap[child], at);
            at = child;
        }
        put(index, at);
    }
}
