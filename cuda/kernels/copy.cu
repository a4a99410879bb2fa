// Elements moved without computing, and elements that change their dtype.
//
// What bounds them: memory. A copy reads every byte once and writes it once, 2·size bytes an element and no arithmetic but
// that of addresses; a cast moves size(from) + size(to) bytes and takes a few instructions.
//
//   1. One element a thread                       of 2 bytes: 64 bytes a request of a warp, and addresses cost more than data.
//   2. Units: neighbours that stay neighbours     are joined by the host to units of up to 16 bytes, as far as sizes, strides
//      move together                              and addresses are multiples of them. Rows of a slice or of a
//                                                 concatenation move like a contiguous copy: 512 bytes a request.
//   3. ITEMS units a thread, all of them loaded   four loads on their way instead of one: 4·4·2048 = 32 KiB on a
//      before the first is stored                 multiprocessor for units of 4 bytes, which is what memory takes to be busy.
//   4. Tiles, where axes change places            neighbours at the source are read together into shared memory, neighbours
//                                                 at the destination written together from it. Read as they are written,
//                                                 4-byte elements would cost 32 bytes each. Rows of a tile are an odd
//                                                 number of 4-byte words (for larger units: of units) apart, so neither
//                                                 its rows nor its columns meet in a bank.
//
// A copy of everything, without gaps, is the driver's (`Cuda::copy_within`).
#include "prelude.cuh"

constexpr int THREADS = 256;

// ── Copies ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Units that a thread has on their way.
constexpr int ITEMS = 4;

/// `to[…] = from[…]` for n units: operand 0 of the walk is the destination, operand 1 the source.
template <typename T> __device__ void copy(T* to, const T* from, i64 n, const Walk<2>& walk) {
    const i64 step = global_threads() * ITEMS;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * THREADS * ITEMS + threadIdx.x; first < n; first += step) {
        T unit[ITEMS];
        i64 at[ITEMS][2];
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (first + k * THREADS >= n) break;
            walk.locate((unsigned)(first + k * THREADS), at[k]);
            unit[k] = from[at[k][1]];
        }
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (first + k * THREADS >= n) break;
            to[at[k][0]] = unit[k];
        }
    }
}

/// Two axes that change places. Columns lie (nearly) side by side at the source, rows at the destination.
struct Plane {
    Divisor tiles_across, tiles_down;
    i64 columns, rows;
    i64 to_column, to_row, from_column, from_row; // strides, in units
};

/// The side of a square tile: what makes a row of it at least 64 bytes, but for bool.
template <typename T> constexpr int side() { return sizeof(T) < 4 ? 64 : 32; }
/// Units between the end of a row and the next: see version 4.
template <typename T> constexpr int gap() { return sizeof(T) < 4 ? 4 / (int)sizeof(T) : 1; }

/// One tile of one plane a block; `batch` walks the planes.
template <typename T>
__device__ void copy_tile(T* to, const T* from, const Plane& plane, const Walk<2>& batch) {
    constexpr int SIDE = side<T>(), STEP = THREADS / SIDE, TURNS = SIDE / STEP;
    SHARED(T, tile, [SIDE][SIDE + gap<T>()]);
    const unsigned below = plane.tiles_across.quotient(blockIdx.x), number = plane.tiles_down.quotient(below);
    const i64 column = (i64)(blockIdx.x - below * plane.tiles_across.d) * SIDE;
    const i64 row = (i64)(below - number * plane.tiles_down.d) * SIDE;
    i64 at[2];
    batch.locate(number, at);
    to += at[0] + row * plane.to_row + column * plane.to_column;
    from += at[1] + row * plane.from_row + column * plane.from_column;
    const i64 columns = plane.columns - column, rows = plane.rows - row; // from here on
    const int along = threadIdx.x % SIDE, across = threadIdx.x / SIDE;

    T unit[TURNS];
#pragma unroll
    for (int k = 0; k < TURNS; k++) {
        const int r = across + k * STEP;
        if (r < rows && along < columns) unit[k] = from[r * plane.from_row + along * plane.from_column];
    }
#pragma unroll
    for (int k = 0; k < TURNS; k++) {
        const int r = across + k * STEP;
        if (r < rows && along < columns) tile[r][along] = unit[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TURNS; k++) {
        const int c = across + k * STEP;
        if (along < rows && c < columns) to[along * plane.to_row + c * plane.to_column] = tile[along][c];
    }
}

// ── Casts ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The integer that is x without its fraction; the nearest there is for what lies beyond, and 0 for NaN.
template <typename F> __device__ __forceinline__ i64 truncate(F x) {
    constexpr F BEYOND = F(9223372036854775808.0); // 2⁶³
    const i64 largest = 0x7fffffffffffffffll;
    if (is_nan(x)) return 0;
    return x >= BEYOND ? largest : x < -BEYOND ? -largest - 1 : (i64)x;
}

/// An integer as a double whose last bit tells whether it is inexact, so that rounding it again rounds once.
__device__ __forceinline__ double round_to_odd(i64 x) {
    const unsigned long long size = x < 0 ? 0ull - (unsigned long long)x : (unsigned long long)x;
    return size >> 53 == 0 ? (double)x : (double)(x >> 11 | (i64)((x & 0x7ff) != 0)) * 2048.0;
}

/// A value as another dtype: to the nearest, ties to even; truncated to an integer; `true` unless it is 0.
template <typename To, typename W> struct Convert {
    __device__ __forceinline__ static To of(W x) { return (To)x; }
};
template <typename W> struct Convert<bool8, W> {
    __device__ __forceinline__ static bool8 of(W x) { return bool8(x != W(0)); }
};
template <> struct Convert<i64, float> {
    __device__ __forceinline__ static i64 of(float x) { return truncate(x); }
};
template <> struct Convert<i64, double> {
    __device__ __forceinline__ static i64 of(double x) { return truncate(x); }
};
template <typename W> struct Convert<bf16, W> {
    __device__ __forceinline__ static bf16 of(W x) { return round_to_bf16((float)x); }
};
template <> struct Convert<bf16, double> {
    __device__ __forceinline__ static bf16 of(double x) { return round_to_bf16(x); }
};
template <> struct Convert<bf16, i64> {
    __device__ __forceinline__ static bf16 of(i64 x) { return round_to_bf16(round_to_odd(x)); }
};

/// `y[i] = x[…]` as another dtype: by packs of which the larger fills 16 bytes if `vector`, else where the walk leads.
template <typename To, typename From>
__device__ void cast(To* y, const From* x, i64 n, const Walk<1>& walk, int vector) {
    typedef Convert<To, typename Wide<From>::type> As;
    constexpr int WIDTH = pack_width<To>() < pack_width<From>() ? pack_width<To>() : pack_width<From>();
    const i64 first = global_thread(), step = global_threads();
    const i64 packs = vector ? n / WIDTH : 0;
#pragma unroll 1
    for (i64 i = first; i < packs; i += step) {
        const Pack<From, WIDTH> in = load_pack<From, WIDTH>(x + i * WIDTH);
        Pack<To, WIDTH> out;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) out.at[k] = As::of(widen(in.at[k]));
        store_pack(y + i * WIDTH, out);
    }
#pragma unroll 1
    for (i64 i = packs * WIDTH + first; i < n; i += step) {
        i64 at[1] = {i};
        if (!vector) walk.locate((unsigned)i, at);
        y[i] = As::of(widen(x[at[0]]));
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define COPY(bytes, T)                                                                                                 \
    KERNEL(THREADS, copy_##bytes, (T * to, const T* from, i64 n, Walk<2> walk)) { copy(to, from, n, walk); }           \
    KERNEL(THREADS, tiles_##bytes, (T * to, const T* from, Plane plane, Walk<2> batch)) {                              \
        copy_tile(to, from, plane, batch);                                                                             \
    }
COPY(1, unsigned char)
COPY(2, unsigned short)
COPY(4, unsigned)
COPY(8, unsigned long long)
typedef Pack<unsigned long long, 2> unit16;
COPY(16, unit16)

#define CAST(from, From, to, To)                                                                                       \
    KERNEL(THREADS, cast_##from##_##to, (To * y, const From* x, i64 n, Walk<1> walk, int vector)) {                    \
        cast(y, x, n, walk, vector);                                                                                   \
    }
#define CASTS(from, From, a, A, b, B, c, C, d, D)                                                                      \
    CAST(from, From, a, A) CAST(from, From, b, B) CAST(from, From, c, C) CAST(from, From, d, D)
CASTS(f32, float, f64, double, bf16, bf16, i64, i64, bool, bool8)
CASTS(f64, double, f32, float, bf16, bf16, i64, i64, bool, bool8)
CASTS(bf16, bf16, f32, float, f64, double, i64, i64, bool, bool8)
CASTS(i64, i64, f32, float, f64, double, bf16, bf16, bool, bool8)
CASTS(bool, bool8, f32, float, f64, double, bf16, bf16, i64, i64)
