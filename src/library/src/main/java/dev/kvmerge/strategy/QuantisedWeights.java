package dev.kvmerge.strategy;

/**
 * The whole cache of the same model with smaller weights, which is how most make a model fit. "experiment" has
 * llama.cpp quantise the model's file again, into its work folder.
 *
 * @param type of the weights, in llama-quantize's words; the experiment says which there are
 */
public record QuantisedWeights(String type) implements Scale {
    /** What the scale is called. */
    public static final String NAME = "weights";

    @Override
    public String name() {
        return NAME;
    }
}
