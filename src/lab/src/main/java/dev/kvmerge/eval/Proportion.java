package dev.kvmerge.eval;

/** How many of how many, with Wilson's interval (1927), which holds for few and for none, too. */
public record Proportion(int hits, int of) {
    private static final double Z = 1.959964; // 95 %

    public Proportion {
        if (of < 0 || hits < 0 || hits > of) {
            throw new IllegalArgumentException(hits + " of " + of);
        }
    }

    /** 0..1; NaN of none. */
    public double share() {
        return (double) hits / of;
    }

    /** The least share that the hits do not speak against, at 95 %. */
    public double low() {
        return hits == 0 ? 0 : Math.max(0, center() - half());
    }

    /** The largest such share. */
    public double high() {
        return hits == of ? 1 : Math.min(1, center() + half());
    }

    private double center() {
        return (share() + Z * Z / (2 * of)) / (1 + Z * Z / of);
    }

    private double half() {
        return Z / (1 + Z * Z / of) * Math.sqrt(share() * (1 - share()) / of + Z * Z / (4.0 * of * of));
    }
}
