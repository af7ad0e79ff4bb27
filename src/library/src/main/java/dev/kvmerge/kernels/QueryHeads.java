package dev.kvmerge.kernels;

import dev.kvmerge.kernels.Observer.QueryMoments;
import java.util.List;

/**
 * What the queries of a KV head's query heads look like before their rotation, decayed block by block, times the scale
 * of the scores: their product with a key that carries no rotation is a logit.
 *
 * @param heads moments of each query head, in order
 * @param rotation of the layer's cached keys, and of its queries
 * @param next position of the next token, for llama.cpp
 */
public record QueryHeads(List<QueryMoments> heads, KeyRotation rotation, int next) {
    /**
     * A mean and a covariance of queries, in the frame of the cached keys: their product with a cached key is a logit.
     *
     * @param mean [keyDimension]
     * @param covariance [keyDimension][keyDimension] in one array
     */
    public record Expected(double[] mean, double[] covariance) {}

    /**
     * What is expected of each query head's queries at the next positions, as Devoto et al. (2025) have it: the mean
     * and the covariance of the queries before their rotation, and both turned by the mean of the positions' rotations.
     * That is less than a rotation: what turns fast within so many positions is expected to cancel out.
     *
     * @param positions how many, at least 1
     */
    public List<Expected> expected(int positions) {
        KeyRotation.Mean turn = rotation.mean(next, positions);
        return heads.stream().map(head -> expected(head, turn)).toList();
    }

    private static Expected expected(QueryMoments head, KeyRotation.Mean turn) {
        int d = head.mean().length;
        double[] mean = new double[d];
        double[] covariance = new double[d * d];
        for (int i = 0; i < d; i++) {
            mean[i] = head.mean()[i];
            for (int j = 0; j < d; j++) {
                covariance[i * d + j] = head.second()[i * d + j] - (double) head.mean()[i] * head.mean()[j];
            }
        }
        for (int i = 0; i < d; i++) {
            turn.apply(covariance, i * d, 1, d); // rows
        }
        for (int i = 0; i < d; i++) {
            turn.apply(covariance, i, d, d); // columns
        }
        turn.apply(mean, 0, 1, d);
        return new Expected(mean, covariance);
    }
}
