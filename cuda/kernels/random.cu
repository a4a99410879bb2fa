// Random tensors: Philox 4×32-10, and what distributions make of its bits. Element i is a function of the key and i alone,
// and has the bits that the CPU backend gives it: only + − · / and √ of doubles are used, each rounded once.
//
// What bounds it: arithmetic. A block of Philox gives two elements for 20 multiplications to 64 bits and some 60 other
// instructions; a uniform number adds 4 of doubles; a normal one a ratio of two polynomials of degree 7 (29 operations and a
// division) and, for the 15 % in the tails, a logarithm (20 and a division) and a square root.
//
//   1. One element a thread                       makes every block twice, and throws half of it away.
//   2. One block a thread and turn                two elements, stored as one.
//
// Bytes an element: its size, written.
#include "prelude.cuh"

typedef unsigned long long u64;

// ── Bits ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Which stream of random numbers.
struct Key {
    u64 seed, stream;

    /// The random bits of the elements 2·block and 2·block + 1: Philox with the key `seed` and the counter (block, stream).
    __device__ __forceinline__ void bits(u64 block, u64 (&pair)[2]) const {
        unsigned a = (unsigned)block, b = (unsigned)(block >> 32), c = (unsigned)stream, d = (unsigned)(stream >> 32);
        unsigned k = (unsigned)seed, l = (unsigned)(seed >> 32);
#pragma unroll
        for (int round = 0; round < 10; round++) {
            const u64 p = 0xd2511f53ull * a, q = 0xcd9e8d57ull * c;
            a = (unsigned)(q >> 32) ^ b ^ k;
            b = (unsigned)q;
            c = (unsigned)(p >> 32) ^ d ^ l;
            d = (unsigned)p;
            k += 0x9e3779b9u;
            l += 0xbb67ae85u;
        }
        pair[0] = a | (u64)b << 32;
        pair[1] = c | (u64)d << 32;
    }
};

/// A number of [0, 1): the 53 high bits, times 2⁻⁵³.
__device__ __forceinline__ double unit(u64 bits) { return (double)(bits >> 11) * (1.0 / 9007199254740992.0); }
/// A number strictly between 0 and 1: the 52 high bits plus a half, times 2⁻⁵².
__device__ __forceinline__ double open_unit(u64 bits) {
    return ((double)(bits >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}

// ── Φ⁻¹ ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// ln x for x > 0, in the steps of FreeBSD's e_log.c, which the CPU backend takes too: x = 2ᵏ·(1 + f) with 1 + f around 1,
/// s = f/(2 + f), and ln(1 + f) = f − (f²/2 − s·(f²/2 + R(s²))). Its error is below 1 ulp.
__device__ __forceinline__ double natural_log(double x) {
    int k = -0x3ff;
    if (x < 2.2250738585072014e-308) { // below the smallest normal number
        x *= 18014398509481984.0;      // 2⁵⁴
        k -= 54;
    }
    const u64 bits = (u64)__double_as_longlong(x);
    const unsigned high = (unsigned)(bits >> 32) + (0x3ff00000 - 0x3fe6a09e); // 1 + f is to begin at √½
    k += (int)(high >> 20);
    const u64 fraction = (u64)((high & 0xfffff) + 0x3fe6a09e) << 32 | (bits & 0xffffffff);
    const double f = __longlong_as_double((i64)fraction) - 1.0;
    const double half_square = 0.5 * f * f, s = f / (2.0 + f), z = s * s, w = z * z;
    const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double odd = z * (6.666666666666735130e-01 +
                            w * (2.857142874366239149e-01 +
                                 w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double r = odd + even, n = k;
    return s * (half_square + r) + n * 1.90821492927058770002e-10 - half_square + f + n * 6.93147180369123816490e-01;
}

/// c₀ + c₁x + … + c₇x⁷.
__device__ __forceinline__ double polynomial(double x, double c0, double c1, double c2, double c3, double c4, double c5,
                                             double c6, double c7) {
    return ((((((c7 * x + c6) * x + c5) * x + c4) * x + c3) * x + c2) * x + c1) * x + c0;
}

/// Φ⁻¹(p), the x at which the standard normal's distribution function is p: Wichura, *Algorithm AS 241* (Applied Statistics
/// 37, 1988), PPND16. One rational function in the middle, two in √(−ln min(p, 1 − p)) for the tails.
__device__ double inverse_normal_cdf(double p) {
    const double q = p - 0.5;
    if (fabs(q) <= 0.425) {
        const double r = 0.180625 - q * q;
        return q * (polynomial(r, 3.3871328727963665, 133.14166789178438, 1971.5909503065513, 13731.69376550946,
                               45921.95393154987, 67265.7709270087, 33430.57558358813, 2509.0809287301227) /
                    polynomial(r, 1.0, 42.31333070160091, 687.1870074920579, 5394.196021424751, 21213.794301586597,
                               39307.89580009271, 28729.085735721943, 5226.495278852854));
    }
    const double tail = q < 0.0 ? p : 1.0 - p;
    double x = infinity<double>();
    if (tail != 0.0) {
        const double r = sqrt(-natural_log(tail)), near = r - 1.6, far = r - 5.0;
        x = r <= 5.0
                ? polynomial(near, 1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045,
                             1.2704582524523684, 0.2417807251774506, 0.022723844989269184, 7.745450142783414e-4) /
                      polynomial(near, 1.0, 2.053191626637759, 1.6763848301838038, 0.6897673349851,
                                 0.14810397642748008, 0.015198666563616457, 5.475938084995345e-4, 1.0507500716444169e-9)
                : polynomial(far, 6.657904643501103, 5.463784911164114, 1.7848265399172913, 0.29656057182850487,
                             0.026532189526576124, 1.2426609473880784e-3, 2.7115555687434876e-5, 2.0103343992922881e-7) /
                      polynomial(far, 1.0, 0.599832206555888, 0.1369298809227358, 0.014875361290850615,
                                 7.868691311456133e-4, 1.8463183175100548e-5, 1.421511758316446e-7, 2.0442631033899398e-15);
    }
    return q < 0.0 ? -x : x;
}

// ── Distributions ───────────────────────────────────────────────────────────────────────────────────────────────────
// From 64 random bits to a double, which is rounded once to what is stored.

/// Evenly spread over low … low + width, and at most `largest`.
struct Uniform {
    double low, width, largest;
    __device__ __forceinline__ double operator()(u64 bits) const {
        const double x = low + width * unit(bits);
        return x < largest ? x : largest;
    }
};

/// A Gaussian.
struct Normal {
    double mean, std;
    __device__ __forceinline__ double operator()(u64 bits) const {
        return mean + std * inverse_normal_cdf(open_unit(bits));
    }
};

/// A Gaussian between two bounds, at which its distribution function is `start` and `start + width`; or, `mirrored`, that
/// of its negative is.
struct Truncated {
    double mean, std, low, high, start, width;
    i64 mirrored;
    __device__ __forceinline__ double operator()(u64 bits) const {
        const double u = open_unit(bits);
        const double z = inverse_normal_cdf(start + (mirrored ? 1.0 - u : u) * width);
        const double x = mean + std * (mirrored ? -z : z);
        return x < low ? low : x > high ? high : x;
    }
};

/// 1 with probability p, else 0.
struct Bernoulli {
    double p;
    __device__ __forceinline__ double operator()(u64 bits) const { return unit(bits) < p ? 1.0 : 0.0; }
};

/// A value as the dtype that is stored.
template <typename T> __device__ __forceinline__ T stored(double x) { return (T)x; }
template <> __device__ __forceinline__ bf16 stored<bf16>(double x) { return round_to_bf16(x); }

/// `y[i] = value(bits of i)` for n elements; y is aligned to two of them.
template <typename T, typename F> __device__ __forceinline__ void fill(T* y, i64 n, const Key& key, F value) {
#pragma unroll 1
    for (i64 block = global_thread(); 2 * block < n; block += global_threads()) {
        u64 bits[2];
        key.bits((u64)block, bits);
        Pack<T, 2> pair;
#pragma unroll
        for (int k = 0; k < 2; k++) pair.at[k] = value(bits[k]);
        if (2 * block + 1 < n) {
            store_pack(y + 2 * block, pair);
        } else {
            y[2 * block] = pair.at[0];
        }
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define DRAW(name, Distribution, dtype, T)                                                                             \
    KERNEL(256, name##_##dtype, (T * y, i64 n, Key key, Distribution distribution)) {                                  \
        fill(y, n, key, [&](u64 bits) { return stored<T>(distribution(bits)); });                                      \
    }
#define FLOAT_DRAWS(dtype, T)                                                                                          \
    DRAW(uniform, Uniform, dtype, T) DRAW(normal, Normal, dtype, T) DRAW(truncated_normal, Truncated, dtype, T)
FOR_FLOATS(FLOAT_DRAWS)
#define BERNOULLI(dtype, T) DRAW(bernoulli, Bernoulli, dtype, T)
FOR_ALL(BERNOULLI)

/// Signed integers in the order of the bits: sorting them makes a permutation.
KERNEL(256, sort_keys, (i64 * y, i64 n, Key key)) {
    fill(y, n, key, [](u64 bits) { return (i64)(bits ^ 1ull << 63); });
}
