// What every kernel may use: element types, vectors, the walk over strided operands, reductions of a warp and a block.
//
// One text, two compilers. NVRTC turns it into code for a card; g++, with the emulator's `emulate.h` put in front, into
// code that a processor runs. So a kernel keeps to a few rules:
//
//   KERNEL(threads, name, (parameters)) { … }   the entry; `threads` is the most that a block may have
//   SHARED(type, name, [dims]);                 shared memory of a block, 128-byte aligned
//   DYNAMIC_SHARED(type, name);                 the same, its size given at the launch
//   no inline assembly                          instructions without a C++ name are in ptx.cuh, each with both bodies
//   no header, no INFINITY, no FLT_MAX          NVRTC has none of them
//   fma() where fused multiply-add is meant     contraction is off in both compilers, so that a + b, a·b, a/b and √a
//                                               are the same bits on a card, in the emulator and on the CPU backend
#pragma once

// ── Elements ────────────────────────────────────────────────────────────────────────────────────────────────────────

typedef long long i64;
typedef unsigned long long u64; // an i64 whose sums and products wrap around
typedef unsigned char bool8; // 0 or 1

/// A brain float: the upper half of a float. A storage type: arithmetic is done in float and rounded once.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ i64 widen(i64 x) { return x; }
__device__ __forceinline__ u64 widen(u64 x) { return x; }
__device__ __forceinline__ bool8 widen(bool8 x) { return x; }

/// The type that a dtype is computed in: float for bf16, else itself.
template <typename T> struct Wide {
    typedef T type;
};
template <> struct Wide<bf16> {
    typedef float type;
};

/// To the nearest bf16, ties to even; every NaN becomes one NaN.
__device__ __forceinline__ bf16 round_to_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bf16{(unsigned short)(nan ? 0x7fc0u | (bits >> 16 & 0x8000u) : rounded)};
}

/// The same of a double, rounded once: it becomes first the next float towards zero, whose last bit is set if that is not
/// exact, so that no float that looks like a tie is one of a number beside it.
__device__ __forceinline__ bf16 round_to_bf16(double x) {
    const float nearest = (float)x;
    unsigned bits = __float_as_uint(nearest);
    if ((double)nearest != x) bits = (bits - (fabs((double)nearest) > fabs(x) ? 1u : 0u)) | 1u;
    return round_to_bf16(__uint_as_float(bits));
}

/// Rounds a computed value to the element type that is stored: narrow<bf16>(float), else the value itself.
template <typename T> __device__ __forceinline__ T narrow(typename Wide<T>::type x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return round_to_bf16(x); }

/// ∞ and NaN of a float type.
template <typename T> __device__ __forceinline__ T infinity();
template <> __device__ __forceinline__ float infinity<float>() { return __uint_as_float(0x7f800000u); }
template <> __device__ __forceinline__ double infinity<double>() { return __longlong_as_double(0x7ff0000000000000ll); }
template <typename T> __device__ __forceinline__ T not_a_number();
template <> __device__ __forceinline__ float not_a_number<float>() { return __uint_as_float(0x7fc00000u); }
template <> __device__ __forceinline__ double not_a_number<double>() { return __longlong_as_double(0x7ff8000000000000ll); }
template <typename T> __device__ __forceinline__ bool is_nan(T x) { return x != x; }

/// The larger and the smaller of two; NaN if one of them is.
template <typename T> __device__ __forceinline__ T larger(T a, T b) { return a > b || is_nan(a) ? a : b; }
template <typename T> __device__ __forceinline__ T smaller(T a, T b) { return a < b || is_nan(a) ? a : b; }

// ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// N elements that are loaded and stored by one instruction, of at most 16 bytes. The address must be a multiple of
/// their size.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T at[N];
};

/// How many elements of T fill 16 bytes.
template <typename T> constexpr int pack_width() { return 16 / (int)sizeof(T); }

template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <typename T, int N> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// ── Where elements lie ──────────────────────────────────────────────────────────────────────────────────────────────

/// The most axes that a kernel walks, after the host has merged those that one stride walks.
constexpr int MAX_RANK = 8;

/// A divisor d ≥ 1 with what turns n/d, for n < 2³¹, into a multiplication: ⌊n/d⌋ = (⌊n·multiplier/2³²⌋ + n) ≫ shift
/// (Granlund and Montgomery 1994).
struct Divisor {
    unsigned d, multiplier, shift;
    __device__ __forceinline__ unsigned quotient(unsigned n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

/// A walk through N operands of one shape: element i of the row-major order lies, in operand k, Σ index·stride[k]
/// elements behind its first. Sizes are given from the last axis to the first, strides may be 0 or negative.
template <int N> struct Walk {
    int rank;
    Divisor size[MAX_RANK];
    i64 stride[N][MAX_RANK];

    /// The offsets of element i, one for each operand.
    __device__ __forceinline__ void locate(unsigned i, i64 (&offset)[N]) const {
#pragma unroll
        for (int k = 0; k < N; k++) offset[k] = 0;
#pragma unroll 1
        for (int axis = 0; axis < rank; axis++) {
            const unsigned rest = size[axis].quotient(i);
            const unsigned index = i - rest * size[axis].d;
#pragma unroll
            for (int k = 0; k < N; k++) offset[k] += (i64)index * stride[k][axis];
            i = rest;
        }
    }
};

/// The number of this thread among all, and how many there are: for loops whose step is the whole grid.
__device__ __forceinline__ i64 global_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 global_threads() { return (i64)gridDim.x * blockDim.x; }

// ── Reductions ──────────────────────────────────────────────────────────────────────────────────────────────────────
// The order is that of a fixed tree: it depends on the size of the block alone, so the same operands give the same bits.

struct Sum {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct Product {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a * b; }
};
struct Largest {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return larger(a, b); }
};
struct Smallest {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return smaller(a, b); }
};

constexpr unsigned WHOLE_WARP = 0xffffffffu;

/// Combines the values of groups of LANES neighbouring lanes (a power of two); every lane gets its group's result.
/// All 32 lanes must call it.
template <int LANES = 32, typename A, typename Op> __device__ __forceinline__ A reduce_warp(A value, Op op) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(WHOLE_WARP, value, step));
    return value;
}

/// Combines the values of a block of THREADS (a multiple of 32); every thread gets the result. `partial` is shared and
/// has THREADS/32 elements; it may be used again at once.
template <int THREADS, typename A, typename Op> __device__ __forceinline__ A reduce_block(A value, Op op, A* partial) {
    value = reduce_warp(value, op);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / 32; warp++) value = op(value, partial[warp]);
    __syncthreads();
    return value;
}

// ── Names ───────────────────────────────────────────────────────────────────────────────────────────────────────────
// A kernel is a template and one entry for each dtype, called name_f32, name_f64, name_bf16, …

#define FOR_FLOATS(entry) entry(f32, float) entry(f64, double) entry(bf16, bf16)
#define FOR_NUMBERS(entry) FOR_FLOATS(entry) entry(i64, i64)
#define FOR_ALL(entry) FOR_NUMBERS(entry) entry(bool, bool8)

#ifndef KERNEL // the emulator's emulate.h has its own
// A multiprocessor need not hold more than one block: with nothing said, the compiler would rather spill than hold few.
#define KERNEL(threads, name, parameters) extern "C" __global__ void __launch_bounds__(threads, 1) name parameters
#define SHARED(type, name, dims) __shared__ __align__(128) type name dims
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];                                             \
    type* name = reinterpret_cast<type*>(dynamic_shared_bytes)
#endif

// ── Wrong operands ──────────────────────────────────────────────────────────────────────────────────────────────────

/// Where a kernel writes down the first element that it cannot take, such as an index outside its axis. The word is the
/// number of the launch (in the upper bits) plus the position, so the smallest is the first, whatever the order in which
/// threads come to theirs.
struct Fault {
    unsigned long long* word;
    unsigned long long launch;

    /// Whether `index` lies in 0..size; if not, `position` is written down.
    __device__ __forceinline__ bool admits(i64 index, i64 size, i64 position) const {
        if (index >= 0 && index < size) return true;
        note(position);
        return false;
    }

    __device__ __forceinline__ void note(i64 position) const { atomicMin(word, launch + (unsigned long long)position); }
};

// ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
// Kernels over the last axis. A team of threads works on one row, pack by pack; who has which elements depends on the
// sizes alone, not on alignment, so that the same rows give the same bits wherever they lie.

/// The threads with one row: LANES neighbouring lanes of a warp (a power of two), or with WHOLE_BLOCK all of a block, whose
/// threads are 32 times a power of two.
template <int LANES> struct Team {
    static constexpr int THREADS = LANES > 0 ? 128 : 512; // of a block, at most

    static __device__ __forceinline__ int size() { return LANES > 0 ? LANES : blockDim.x; }
    static __device__ __forceinline__ int member() { return threadIdx.x % size(); }
    static __device__ __forceinline__ i64 row() { return (i64)blockIdx.x * (blockDim.x / size()) + threadIdx.x / size(); }

    /// Combines the members' values; every member gets the result. All threads of the block must call it.
    template <typename A, typename Op> static __device__ __forceinline__ A reduce(A value, Op op) {
        if constexpr (LANES > 0) {
            return reduce_warp<LANES>(value, op);
        } else {
            SHARED(A, partial, [THREADS / 32]);
            const int warps = blockDim.x / 32;
            value = reduce_warp(value, op);
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
            __syncthreads();
            value = partial[threadIdx.x % warps];
            for (int step = warps / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(WHOLE_WARP, value, step));
            __syncthreads();
            return value;
        }
    }
};
constexpr int WHOLE_BLOCK = 0;

/// The elements of a pack, in the type that they are computed in.
template <typename T> struct Values {
    typename Wide<T>::type at[pack_width<T>()];
};

/// The pack that begins at `first`; beyond the row's end it is `filler`. `vector` promises that packs are aligned.
template <typename T>
__device__ __forceinline__ Values<T> read_pack(const T* row, i64 first, i64 columns, bool vector,
                                               typename Wide<T>::type filler = 0) {
    constexpr int WIDTH = pack_width<T>();
    const int left = columns - first < WIDTH ? (int)(columns - first) : WIDTH;
    Values<T> values;
    if (vector && left == WIDTH) {
        const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(row + first);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) values.at[k] = widen(pack.at[k]);
    } else {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) values.at[k] = k < left ? widen(row[first + k]) : filler;
    }
    return values;
}

/// Writes a pack, but for what is beyond the row's end.
template <typename T>
__device__ __forceinline__ void write_pack(T* row, i64 first, i64 columns, bool vector, const Values<T>& values) {
    constexpr int WIDTH = pack_width<T>();
    const int left = columns - first < WIDTH ? (int)(columns - first) : WIDTH;
    Pack<T, WIDTH> pack;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) pack.at[k] = narrow<T>(values.at[k]);
    if (vector && left == WIDTH) {
        store_pack(row + first, pack);
    } else {
#pragma unroll
        for (int k = 0; k < WIDTH; k++)
            if (k < left) row[first + k] = pack.at[k];
    }
}

/// One member's share of a row: of the row's packs the one with its own number, and those a team's size further on. Up to
/// PACKS of them are held in registers, and the row is read once; with PACKS = 0 each look at it reads it again.
template <typename T, int LANES, int PACKS> struct Row {
    typedef T Element;
    typedef typename Wide<T>::type W;
    typedef Team<LANES> Members;
    static constexpr int WIDTH = pack_width<T>();
    static constexpr bool HELD = PACKS > 0;

    const T* data;
    i64 columns;
    bool vector;
    W filler;
    Values<T> held[HELD ? PACKS : 1];

    __device__ __forceinline__ Row(const T* data, i64 columns, bool vector, W filler = 0)
        : data(data), columns(columns), vector(vector), filler(filler) {
        if constexpr (HELD)
            each_pack([&](int p, i64 first) { held[p] = read_pack(data, first, columns, vector, filler); });
    }

    /// Calls f(p, first) for each pack of this member: its number, and the column where it begins.
    template <typename F> __device__ __forceinline__ void each_pack(F f) const {
        if constexpr (HELD) {
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                const i64 first = (i64)(p * Members::size() + Members::member()) * WIDTH;
                if (first < columns) f(p, first);
            }
        } else {
#pragma unroll 1
            for (i64 first = Members::member() * WIDTH; first < columns; first += Members::size() * WIDTH) f(0, first);
        }
    }

    __device__ __forceinline__ Values<T> pack(int p, i64 first) const {
        if constexpr (HELD) return held[p];
        else return read_pack(data, first, columns, vector, filler);
    }
};

/// Rows of one size, and whether packs of all operands and of the result are aligned.
struct Rows {
    i64 count, columns;
    int vector;
};

/// The kinds of rows: `entry(dtype, T, kind, lanes, packs)` for each. Few lanes for short rows, so that none is idle; a
/// block for rows of up to 2048 packs, and for those that no block can hold.
#define FOR_ROWS_OF(entry, dtype, T)                                                                                   \
    entry(dtype, T, four, 4, 1) entry(dtype, T, warp, 32, 1) entry(dtype, T, long_warp, 32, 4)                         \
    entry(dtype, T, block, WHOLE_BLOCK, 4) entry(dtype, T, stream, WHOLE_BLOCK, 0)
#define FOR_ROWS(entry) FOR_ROWS_OF(entry, f32, float) FOR_ROWS_OF(entry, f64, double) FOR_ROWS_OF(entry, bf16, bf16)
