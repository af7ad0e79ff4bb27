package dev.kvmerge.attention;

/**
 * Logarithm and exponential to seven digits, a few nanoseconds each where {@link Math}'s, of twice as many digits, take twenty: a plan needs one of each a cell.
 * The polynomials are those of Cephes (Moshier 1989), logf and expf.
 */
final class Approximate {
    private static final float LN_2_HIGH = 0.693359375f;
    private static final float LN_2_LOW = -2.12194440e-4f;

    private Approximate() {}

    /** The natural logarithm of a positive normal number. */
    static float log(float x) {
        int bits = Float.floatToRawIntBits(x)
                - 0x3f3504f3; // of the square root of 1/2: the mantissa is from there to the root of 2
        float exponent = bits >> 23;
        float f = Float.intBitsToFloat((bits & 0x7fffff) + 0x3f3504f3) - 1;
        float z = f * f;
        float y = 7.0376836292e-2f;
        y = y * f - 1.1514610310e-1f;
        y = y * f + 1.1676998740e-1f;
        y = y * f - 1.2420140846e-1f;
        y = y * f + 1.4249322787e-1f;
        y = y * f - 1.6668057665e-1f;
        y = y * f + 2.0000714765e-1f;
        y = y * f - 2.4999993993e-1f;
        y = y * f + 3.3333331174e-1f;
        return f + (f * z * y + exponent * LN_2_LOW - 0.5f * z) + exponent * LN_2_HIGH;
    }

    /** e to the x, which is at most 88; 0 below -87. */
    static float exp(float x) {
        if (!(x >= -87)) {
            return x < -87 ? 0 : x; // NaN stays
        }
        float n = (x * 1.44269504089f + 12582912f) - 12582912f; // the nearest integer
        float f = x - n * LN_2_HIGH - n * LN_2_LOW;
        float y = 1.9875691500e-4f;
        y = y * f + 1.3981999507e-3f;
        y = y * f + 8.3334519073e-3f;
        y = y * f + 4.1665795894e-2f;
        y = y * f + 1.6666665459e-1f;
        y = y * f + 5.0000001201e-1f;
        y = y * f * f + f + 1;
        return y * Float.intBitsToFloat(((int) n + 127) << 23);
    }
}
