// Functions of one, two or three elements, with broadcasting.
//
// What bounds them: memory. A unary function of f32 reads 4 bytes and writes 4 for each element; exp costs some 20
// instructions, pow some 60, which a card has time for while it waits.
//
//   1. One element a thread                       4 bytes a request and thread: half of the bandwidth of a copy at best.
//   2. Contiguous operands, 16 bytes a thread     what `each` does where the host says so: one load and one store of 16
//      and turn, a grid that strides over all     bytes for 4, 2 or 8 elements; scalars and tails fall to version 1.
//   3. Strided or broadcast operands              the index is taken apart by multiplications (`Walk`), one element a turn.
//                                                 Broadcast operands are read again and again, from the cache.
//   4. Transposed operands of 16 KiB and more     are copied first, by tiles (copy.cu), which moves their bytes twice more:
//                                                 read in place, each of their elements would take a sector of 32 bytes.
//
// Bytes an element: size·(operands that are not broadcast) + size of the result. One operation each, as stated.
#include "prelude.cuh"

/// How the operands lie: `vector` if all of them are contiguous and begin at multiples of 16 bytes, else `walk` leads the
/// way; scalar operands (one element for all) have stride 0 there. The result is contiguous.
template <int N> struct Operands {
    const void* data[N];
    Walk<N> walk;
    int vector;
};

// ── Functions ───────────────────────────────────────────────────────────────────────────────────────────────────────
// On the wide type W of a dtype: float, double, long long or bool8. `p` and `q` are what the host gives with the function.

/// A function of the name `Name`, of one argument x.
#define UNARY(Name, body)                                                                                              \
    template <typename W> struct Name {                                                                                \
        double p, q;                                                                                                   \
        __device__ __forceinline__ W operator()(W x) const { return body; }                                            \
    };
/// The same of two arguments, with a result of type R.
#define BINARY(Name, R, body)                                                                                          \
    template <typename W> struct Name {                                                                                \
        double p, q;                                                                                                   \
        __device__ __forceinline__ R operator()(W a, W b) const { return body; }                                       \
    };

/// Wrapping arithmetic, as unsigned numbers have it.
__device__ __forceinline__ i64 wrap(unsigned long long x) { return (i64)x; }
__device__ __forceinline__ float negative(float x) { return -x; }
__device__ __forceinline__ double negative(double x) { return -x; }
__device__ __forceinline__ i64 negative(i64 x) { return wrap(0ull - (unsigned long long)x); }
template <typename W> __device__ __forceinline__ W plus(W a, W b) { return a + b; }
template <typename W> __device__ __forceinline__ W minus(W a, W b) { return a - b; }
template <typename W> __device__ __forceinline__ W times(W a, W b) { return a * b; }
template <> __device__ __forceinline__ i64 plus(i64 a, i64 b) { return wrap((unsigned long long)a + (unsigned long long)b); }
template <> __device__ __forceinline__ i64 minus(i64 a, i64 b) { return wrap((unsigned long long)a - (unsigned long long)b); }
template <> __device__ __forceinline__ i64 times(i64 a, i64 b) { return wrap((unsigned long long)a * (unsigned long long)b); }

/// 1/(1 + e⁻ˣ) without overflow: e^(−|x|) is at most 1.
template <typename W> __device__ __forceinline__ W logistic(W x) {
    const W e = exp(-fabs(x));
    return (x < W(0) ? e : W(1)) / (W(1) + e);
}
/// ln(1 + eˣ) = max(x, 0) + ln(1 + e^(−|x|)).
template <typename W> __device__ __forceinline__ W log_one_plus_exp(W x) {
    return (x > W(0) || is_nan(x) ? x : W(0)) + log1p(exp(-fabs(x)));
}
template <typename W> __device__ __forceinline__ W clamped(W x, W low, W high) {
    const W above = x < low ? low : x;
    return above > high ? high : above;
}

/// aᵇ, NaN if one of them is: C has 1 for 1ᴺᵃᴺ and NaN⁰.
template <typename W> __device__ __forceinline__ W power(W a, W b) { return is_nan(a) ? a : is_nan(b) ? b : pow(a, b); }

UNARY(neg, negative(x))
UNARY(abs_, x < W(0) ? negative(x) : x == W(0) ? W(0) : x)
UNARY(sign, x > W(0) ? W(1) : x < W(0) ? W(-1) : is_nan(x) ? x : W(0))
UNARY(exp_, exp(x))
UNARY(expm1_, expm1(x))
UNARY(log_, log(x))
UNARY(log1p_, log1p(x))
UNARY(sqrt_, sqrt(x))
UNARY(rsqrt_, W(1) / sqrt(x))
UNARY(recip, W(1) / x)
UNARY(sin_, sin(x))
UNARY(cos_, cos(x))
UNARY(tanh_, tanh(x))
UNARY(sigmoid, logistic(x))
UNARY(erf_, erf(x))
UNARY(softplus, log_one_plus_exp(x))
UNARY(relu, x > W(0) || is_nan(x) ? x : W(0))
UNARY(leaky_relu, x > W(0) ? x : W(p) * x)
UNARY(elu, x > W(0) ? x : W(p) * expm1(x))
UNARY(affine, plus(times(x, W(p)), W(q)))
UNARY(identity, x)
UNARY(square, x * x)
UNARY(cube, x * x * x)
UNARY(powf_, power(x, W(p)))
UNARY(clamp, clamped(x, W(p), W(q)))
UNARY(not_, W(x == 0))

BINARY(add, W, plus(a, b))
BINARY(sub, W, minus(a, b))
BINARY(mul, W, times(a, b))
BINARY(div_, W, a / b)
BINARY(pow_, W, power(a, b))
BINARY(maximum, W, larger(a, b))
BINARY(minimum, W, smaller(a, b))
BINARY(and_, W, W(a & b))
BINARY(or_, W, W(a | b))
BINARY(eq, bool8, bool8(a == b))
BINARY(ne, bool8, bool8(a != b))
BINARY(lt, bool8, bool8(a < b))
BINARY(le, bool8, bool8(a <= b))
BINARY(gt, bool8, bool8(a > b))
BINARY(ge, bool8, bool8(a >= b))

// ── Loops ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// y[i] = f(a[i]).
template <typename R, typename A, typename F> __device__ void each(R* y, i64 n, const Operands<1>& x, F f) {
    constexpr int WIDTH = pack_width<A>();
    const A* a = static_cast<const A*>(x.data[0]);
    const i64 first = global_thread(), step = global_threads();
    const i64 packs = x.vector ? n / WIDTH : 0;
#pragma unroll 1
    for (i64 i = first; i < packs; i += step) {
        const Pack<A, WIDTH> in = load_pack<A, WIDTH>(a + i * WIDTH);
        Pack<R, WIDTH> out;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) out.at[k] = narrow<R>(f(widen(in.at[k])));
        store_pack(y + i * WIDTH, out);
    }
#pragma unroll 1
    for (i64 i = packs * WIDTH + first; i < n; i += step) {
        i64 at[1] = {i};
        if (!x.vector) x.walk.locate((unsigned)i, at);
        y[i] = narrow<R>(f(widen(a[at[0]])));
    }
}

/// y[i] = f(a[i], b[i]).
template <typename R, typename A, typename F> __device__ void each(R* y, i64 n, const Operands<2>& x, F f) {
    constexpr int WIDTH = pack_width<A>();
    const A *a = static_cast<const A*>(x.data[0]), *b = static_cast<const A*>(x.data[1]);
    const i64 first = global_thread(), step = global_threads();
    const i64 packs = x.vector ? n / WIDTH : 0;
#pragma unroll 1
    for (i64 i = first; i < packs; i += step) {
        const Pack<A, WIDTH> in = load_pack<A, WIDTH>(a + i * WIDTH), other = load_pack<A, WIDTH>(b + i * WIDTH);
        Pack<R, WIDTH> out;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) out.at[k] = narrow<R>(f(widen(in.at[k]), widen(other.at[k])));
        store_pack(y + i * WIDTH, out);
    }
#pragma unroll 1
    for (i64 i = packs * WIDTH + first; i < n; i += step) {
        i64 at[2] = {i, i};
        if (!x.vector) x.walk.locate((unsigned)i, at);
        y[i] = narrow<R>(f(widen(a[at[0]]), widen(b[at[1]])));
    }
}

/// y[i] = condition[i] ? a[i] : b[i], for elements that are copied as they are.
template <typename T> __device__ void choose(T* y, i64 n, const Operands<3>& x) {
    const bool8* condition = static_cast<const bool8*>(x.data[0]);
    const T *a = static_cast<const T*>(x.data[1]), *b = static_cast<const T*>(x.data[2]);
#pragma unroll 1
    for (i64 i = global_thread(); i < n; i += global_threads()) {
        i64 at[3] = {i, i, i};
        if (!x.vector) x.walk.locate((unsigned)i, at);
        y[i] = condition[at[0]] ? a[at[1]] : b[at[2]];
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define ENTRY(N, name, function, dtype, R, T)                                                                          \
    KERNEL(256, name##_##dtype, (R * y, i64 n, Operands<N> x, double p, double q)) {                                   \
        each<R, T>(y, n, x, function<typename Wide<T>::type>{p, q});                                                   \
    }
#define FLOAT_ENTRIES(N, name, function)                                                                               \
    ENTRY(N, name, function, f32, float, float)                                                                        \
    ENTRY(N, name, function, f64, double, double)                                                                      \
    ENTRY(N, name, function, bf16, bf16, bf16)
#define NUMBER_ENTRIES(N, name, function) FLOAT_ENTRIES(N, name, function) ENTRY(N, name, function, i64, i64, i64)
#define ORDER_ENTRIES(name, function)                                                                                  \
    ENTRY(2, name, function, f32, bool8, float)                                                                        \
    ENTRY(2, name, function, f64, bool8, double)                                                                       \
    ENTRY(2, name, function, bf16, bool8, bf16)                                                                        \
    ENTRY(2, name, function, i64, bool8, i64)
#define BOOL_ENTRY(N, name, function) ENTRY(N, name, function, bool, bool8, bool8)

NUMBER_ENTRIES(1, neg, neg)
NUMBER_ENTRIES(1, abs, abs_)
NUMBER_ENTRIES(1, sign, sign)
NUMBER_ENTRIES(1, affine, affine)
FLOAT_ENTRIES(1, exp, exp_)
FLOAT_ENTRIES(1, expm1, expm1_)
FLOAT_ENTRIES(1, log, log_)
FLOAT_ENTRIES(1, log1p, log1p_)
FLOAT_ENTRIES(1, sqrt, sqrt_)
FLOAT_ENTRIES(1, rsqrt, rsqrt_)
FLOAT_ENTRIES(1, recip, recip)
FLOAT_ENTRIES(1, sin, sin_)
FLOAT_ENTRIES(1, cos, cos_)
FLOAT_ENTRIES(1, tanh, tanh_)
FLOAT_ENTRIES(1, sigmoid, sigmoid)
FLOAT_ENTRIES(1, erf, erf_)
FLOAT_ENTRIES(1, softplus, softplus)
FLOAT_ENTRIES(1, relu, relu)
FLOAT_ENTRIES(1, leaky_relu, leaky_relu)
FLOAT_ENTRIES(1, elu, elu)
FLOAT_ENTRIES(1, identity, identity)
FLOAT_ENTRIES(1, square, square)
FLOAT_ENTRIES(1, cube, cube)
FLOAT_ENTRIES(1, powf, powf_)
FLOAT_ENTRIES(1, clamp, clamp)
BOOL_ENTRY(1, logical_not, not_)
NUMBER_ENTRIES(2, add, add)
NUMBER_ENTRIES(2, sub, sub)
NUMBER_ENTRIES(2, mul, mul)
FLOAT_ENTRIES(2, div, div_)
FLOAT_ENTRIES(2, pow, pow_)
NUMBER_ENTRIES(2, maximum, maximum)
NUMBER_ENTRIES(2, minimum, minimum)
BOOL_ENTRY(2, logical_and, and_)
BOOL_ENTRY(2, logical_or, or_)
ORDER_ENTRIES(eq, eq)
ORDER_ENTRIES(ne, ne)
BOOL_ENTRY(2, eq, eq)
BOOL_ENTRY(2, ne, ne)
ORDER_ENTRIES(lt, lt)
ORDER_ENTRIES(le, le)
ORDER_ENTRIES(gt, gt)
ORDER_ENTRIES(ge, ge)

/// `where` copies elements of 1, 2, 4 or 8 bytes, whatever they stand for.
#define WHERE_ENTRY(bytes, T)                                                                                          \
    KERNEL(256, where_##bytes, (T * y, i64 n, Operands<3> x)) { choose<T>(y, n, x); }
WHERE_ENTRY(1, unsigned char)
WHERE_ENTRY(2, unsigned short)
WHERE_ENTRY(4, unsigned)
WHERE_ENTRY(8, unsigned long long)
