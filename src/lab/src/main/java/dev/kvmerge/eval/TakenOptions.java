package dev.kvmerge.eval;

import dev.kvmerge.KvmergeException;
import dev.kvmerge.attention.Calibration;
import dev.kvmerge.kernels.Bias;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategies.Settings;
import dev.kvmerge.strategy.Strategy;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Which of a command's options have an effect on caches. */
public final class TakenOptions {
    private static final Calibration ANY =
            new Calibration("any", 1, 1, 1, 0.9, 1, new float[1][Calibration.SCALARS + 1]);

    private TakenOptions() {}

    /**
     * The settings with another value of each option, by its name. An option has an effect where that makes another
     * strategy: strategies are records.
     */
    public static Map<String, Settings> otherwise(Settings given) {
        Map<String, Settings> otherwise = new LinkedHashMap<>();
        otherwise.put("--sinks", given.withSinks(given.sinks() == 0 ? 1 : 0));
        otherwise.put("--recent-share", given.withRecentShare(given.recentShare() == 0.5 ? 0.25 : 0.5));
        otherwise.put("--signal", given.withSignal(given.signal().equals("row") ? "column" : "row"));
        otherwise.put("--threshold", given.withThreshold(given.threshold() == 0.5 ? 0.25 : 0.5));
        otherwise.put("--bias", given.withBias(given.bias() == Bias.NONE ? Bias.FOLDED : Bias.NONE));
        otherwise.put("--calibration", given.with(given.calibration() == null ? ANY : null));
        return otherwise;
    }

    /**
     * Those options that any of the caches takes: of a call that was stopped, caches may be there that do not take what
     * was given for others.
     *
     * @param given by name, of the command or of its strategies
     * @param caches by their names in results
     */
    public static Map<String, String> of(Map<String, String> given, List<String> caches) {
        Settings settings = Settings.DEFAULT.withSignal(given.getOrDefault("--signal", Settings.DEFAULT.signal()));
        Map<String, String> taken = new LinkedHashMap<>(given);
        taken.keySet().removeIf(option -> caches.stream().noneMatch(cache -> takes(cache, option, settings)));
        return taken;
    }

    private static boolean takes(String cache, String option, Settings settings) {
        if (cache.equals(ContextShift.NAME)) { // it drops the oldest, whatever is attended to
            return !option.startsWith("--observe") && !otherwise(settings).containsKey(option);
        }
        if (!Strategies.names().contains(cache.split(":", 2)[0])) {
            return true; // nobody knows: a class that a results file names is not loaded for that
        }
        try {
            Strategy strategy = Strategies.create(cache, settings);
            Settings other = otherwise(settings).get(option);
            return switch (option) {
                case "--observe" -> strategy.needs().observes();
                case "--observe-queries" -> strategy.needs().mass();
                default -> other == null || !Strategies.create(cache, other).equals(strategy);
            };
        } catch (KvmergeException e) {
            return true; // parameters in the name do not go with every setting
        }
    }
}
