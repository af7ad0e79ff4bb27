package dev.kvmerge.strategy;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.kernels.Bias;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/** The strategies by name. */
public final class Strategies {
    /** The name of keeping everything, which all are compared with. */
    public static final String FULL = "full";

    /**
     * What the command line sets; a strategy takes what it has a use for.
     *
     * @param sinks first tokens that always stay
     * @param recentShare share of the budget that entropy-merged leaves to the newest tokens
     * @param signal "column" or "row", of entropy-merged
     * @param threshold of the row signal
     * @param bias how merged cells keep their mass
     * @param calibration of the model, or null
     */
    public record Settings(
            int sinks, double recentShare, String signal, double threshold, Bias bias, Calibration calibration) {
        public static final Settings DEFAULT = new Settings(4, 0.25, "column", 0.5, Bias.FOLDED, null);

        /** The same with other sinks. */
        public Settings withSinks(int n) {
            return new Settings(n, recentShare, signal, threshold, bias, calibration);
        }

        /** The same with another share for the newest tokens. */
        public Settings withRecentShare(double share) {
            return new Settings(sinks, share, signal, threshold, bias, calibration);
        }

        /** The same with another signal. */
        public Settings withSignal(String name) {
            return new Settings(sinks, recentShare, name, threshold, bias, calibration);
        }

        /** The same with another threshold. */
        public Settings withThreshold(double entropy) {
            return new Settings(sinks, recentShare, signal, entropy, bias, calibration);
        }

        /** The same with another bias. */
        public Settings withBias(Bias other) {
            return new Settings(sinks, recentShare, signal, threshold, other, calibration);
        }

        /** The same for a model with this calibration; null for none. */
        public Settings with(Calibration of) {
            return new Settings(sinks, recentShare, signal, threshold, bias, of);
        }
    }

    private static final Map<String, Function<Settings, Method>> BY_NAME = new LinkedHashMap<>();

    static {
        BY_NAME.put(FULL, s -> new Full());
        BY_NAME.put("entropy-merged", s -> switch (s.signal) {
            case "column" -> EntropyMerged.of(s.sinks, s.recentShare, s.bias, s.calibration);
            case "row" -> new RowEntropyMerged(s.threshold, s.sinks, s.recentShare, s.bias);
            default -> throw new KvmergeException.Usage("--signal is column or row, not '" + s.signal + "'");
        });
        BY_NAME.put("entropy-merged-row", s -> new RowEntropyMerged(s.threshold, s.sinks, s.recentShare, s.bias));
        BY_NAME.put("entropy-merged-ib", s -> new InformationBottleneck(s.sinks, s.recentShare, 0.9, s.bias));
        BY_NAME.put("h2o", s -> new H2o(0.5));
        BY_NAME.put("tova", s -> new Tova());
        BY_NAME.put("streaming-llm", s -> new StreamingLlm(s.sinks));
        BY_NAME.put("snapkv", s -> new SnapKv(32, 7));
        BY_NAME.put("average-mass", s -> new AverageMass(s.sinks, s.recentShare, 0.9));
        BY_NAME.put("knorm", s -> new KeyNorm());
        BY_NAME.put("keydiff", s -> new KeyDiff());
        BY_NAME.put("expected-attention", s -> new ExpectedAttention(s.sinks, 0, 512));
        BY_NAME.put("cam", s -> new Cam(s.sinks, 32, 1));
        BY_NAME.put("d2o", s -> new D2o(0.5));
        BY_NAME.put("weighted-kv", s -> new WeightedKv(s.sinks, s.recentShare));
        BY_NAME.put("keepkv", s -> new KeepKv(0.5, 0.8));
        BY_NAME.put("zsmerge", s -> new ZsMerge(0.4, 0.2));
        BY_NAME.put("kvmerger", s -> new KvMerger(s.sinks, s.recentShare));
        BY_NAME.put(Oracle.NAME, s -> new Oracle());
        BY_NAME.put(OracleMerged.NAME, s -> new OracleMerged(s.sinks, s.bias));
        BY_NAME.put(QuantisedCells.NAME, s -> new QuantisedCells());
        BY_NAME.put(QuantisedWeights.NAME, s -> new QuantisedWeights("q4_0"));
        BY_NAME.put("random", s -> new RandomEviction(1));
    }

    private Strategies() {}

    /** All names, "full" first. */
    public static List<String> names() {
        return List.copyOf(BY_NAME.keySet());
    }

    /**
     * Makes a strategy or a scale. A name with a dot or a capital is a class of the user's own, with a constructor
     * without arguments. Parameters may follow, if it is a record: "h2o:recent-share=0.3",
     * "entropy-merged:decay=0.95:bias=none".
     *
     * @throws KvmergeException.Usage if there is none of that name, suggesting the nearest, or a setting is out of
     *     range
     */
    public static Method method(String spec, Settings settings) {
        int colon = spec.indexOf(':');
        Method plain = named(colon < 0 ? spec : spec.substring(0, colon), settings);
        return colon < 0
                ? plain
                : Parameters.set(plain, spec.substring(colon + 1).split(":"));
    }

    /**
     * As {@link #method}, where there is no use for a scale.
     *
     * @throws KvmergeException.Usage as there, and if it is one
     */
    public static Strategy create(String spec, Settings settings) {
        return switch (method(spec, settings)) {
            case Strategy strategy -> strategy;
            case Scale scale ->
                throw new KvmergeException.Usage(
                        "'" + spec + "' is no method but a scale, which only 'kvmerge experiment' has a use for");
        };
    }

    /**
     * What a strategy or scale is called in results: its name, or with parameters of its own all that was asked for.
     */
    public static String label(String spec, Method method) {
        return spec.contains(":") ? spec : method.name();
    }

    private static Method named(String name, Settings settings) {
        if (name.contains(".") || (!name.isEmpty() && Character.isUpperCase(name.charAt(0)))) {
            return ofClass(name);
        }
        Function<Settings, Method> maker = BY_NAME.get(name);
        if (maker == null) {
            String nearest = names().stream()
                    .min(Comparator.comparing((String n) -> !n.startsWith(name))
                            .thenComparingInt(n -> editDistance(n, name)))
                    .orElseThrow();
            throw new KvmergeException.Usage("no strategy is called '" + name + "': did you mean '" + nearest
                    + "'? There are " + String.join(", ", names()));
        }
        return maker.apply(settings);
    }

    private static Strategy ofClass(String name) {
        try {
            return Class.forName(name)
                    .asSubclass(Strategy.class)
                    .getDeclaredConstructor()
                    .newInstance();
        } catch (ClassNotFoundException e) {
            throw new KvmergeException.Usage("no class " + name + ": put its folder or jar into KVMERGE_CLASSPATH");
        } catch (ReflectiveOperationException | ClassCastException e) {
            throw new KvmergeException.Usage(
                    "the class " + name + " is not a Strategy with a public constructor without arguments (" + e + ")");
        }
    }

    private static int editDistance(String a, String b) {
        int[] row = new int[b.length() + 1];
        Arrays.setAll(row, j -> j);
        for (int i = 1; i <= a.length(); i++) {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= b.length(); j++) {
                int above = row[j];
                int change = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
                row[j] = Math.min(change, Math.min(above, row[j - 1]) + 1);
                diagonal = above;
            }
        }
        return row[b.length()];
    }
}
