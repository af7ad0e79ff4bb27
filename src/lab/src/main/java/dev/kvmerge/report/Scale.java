package dev.kvmerge.report;

import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.List;

/**
 * An axis's numbers and their places.
 *
 * @param low the number at {@code from}
 * @param high the number at {@code to}; above low
 */
record Scale(boolean logarithmic, double low, double high, double from, double to) {
    private static final int MOST_TICKS = 9;
    private static final double MARGIN = 0.05; // of the range, left free at both ends
    private static final double[] STEPS = {1, 2, 2.5, 5};

    /** A mark. */
    record Tick(double at, String text) {}

    /** A scale that holds all values that it can show, with a margin. */
    static Scale over(double[] values, boolean logarithmic, boolean fromZero, double from, double to) {
        double low = Double.POSITIVE_INFINITY;
        double high = Double.NEGATIVE_INFINITY;
        for (double value : values) {
            if (shows(value, logarithmic)) {
                low = Math.min(low, value);
                high = Math.max(high, value);
            }
        }
        if (low > high) { // nothing to show
            low = 1;
            high = 1;
        }
        if (logarithmic) {
            double margin = Math.max(Math.pow(high / low, MARGIN), 1.1);
            return new Scale(true, low / margin, high * margin, from, to);
        }
        boolean zero = fromZero && low >= 0;
        double range = high - (zero ? 0 : low);
        double margin = range > 0 ? MARGIN * range : high == 0 ? 1 : Math.abs(high) / 10;
        return new Scale(false, zero ? 0 : low - margin, high + margin, from, to);
    }

    /** Whether a value has a place on such an axis. */
    static boolean shows(double value, boolean logarithmic) {
        return Double.isFinite(value) && Math.abs(value) < 1e100 && (!logarithmic || value > 1e-100);
    }

    /** The place of a value; one beyond an end lies at the end. */
    double place(double value) {
        double share = logarithmic
                ? Math.log(Math.max(value, low) / low) / Math.log(high / low)
                : (value - low) / (high - low);
        return from + Math.clamp(share, 0, 1) * (to - from);
    }

    /** Marks at round numbers, lowest first. */
    List<Tick> ticks() {
        return logarithmic && high / low >= 10 ? decades() : even(0);
    }

    /** Marks at whole numbers. */
    List<Tick> wholeTicks() {
        return even(1);
    }

    private List<Tick> decades() {
        int first = (int) Math.floor(Math.log10(low));
        int last = (int) Math.ceil(Math.log10(high));
        int[] parts = last - first <= 3 ? new int[] {1, 2, 5} : new int[] {1};
        int every = Math.max(1, (last - first) / MOST_TICKS + (last - first > MOST_TICKS ? 1 : 0));
        List<Tick> ticks = new ArrayList<>();
        for (int decade = first; decade <= last; decade += every) {
            for (int part : parts) {
                BigDecimal at = BigDecimal.valueOf(part).scaleByPowerOfTen(decade);
                if (at.doubleValue() >= low && at.doubleValue() <= high) {
                    ticks.add(new Tick(at.doubleValue(), text(at)));
                }
            }
        }
        return ticks;
    }

    private List<Tick> even(double smallestStep) {
        double step = step((high - low) / MOST_TICKS, smallestStep);
        List<Tick> ticks = new ArrayList<>();
        BigDecimal exact = BigDecimal.valueOf(step);
        for (long i = (long) Math.ceil(low / step); i * step <= high + 1e-9 * step && ticks.size() <= MOST_TICKS; i++) {
            ticks.add(new Tick(i * step, text(exact.multiply(BigDecimal.valueOf(i)))));
        }
        return ticks;
    }

    /** The smallest round number that is no smaller. */
    private static double step(double least, double smallest) {
        double power = Math.pow(10, Math.floor(Math.log10(least)));
        for (double step : STEPS) {
            double candidate = step * power;
            if (candidate >= least && candidate >= smallest && (smallest == 0 || candidate == Math.rint(candidate))) {
                return candidate;
            }
        }
        return Math.max(10 * power, smallest);
    }

    private static String text(BigDecimal x) {
        BigDecimal shortest = x.stripTrailingZeros();
        int digits = shortest.precision() - shortest.scale();
        return digits > 7 || digits < -4 ? shortest.toString() : shortest.toPlainString();
    }
}
