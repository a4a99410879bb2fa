// Combining the elements along some axes into one: sum, product, largest, smallest, and where the largest is.
//
// The bytes that are read are the bound: one combination an element. The versions, each with its order of combination:
//
//   1. A thread for each result        reads its elements one after the other: neighbours read far apart, and a sum of
//                                      all elements has one thread. n additions in a row lose n roundings.
//   2. `rows`: the axis with the       a team of threads reads the row side by side, 16 bytes each and turn, with one
//      smallest step is combined       accumulator for each of the elements in them; then a tree through registers
//                                      (teams of at most 32) and shared memory (teams of a block).
//   3. `columns`: the axis with the    threads beside each other combine results beside each other, again 16 bytes each
//      smallest step is kept           and turn; the rows are dealt to the block's rows of threads, and a tree through
//                                      shared memory joins these.
//   4. Parts                           no thread combines more than 16 times in a row. Where that is not enough, blocks
//                                      leave parts of a result, and the next pass combines the parts.
//
// Bytes a result: size·(elements combined) + size of the result; parts add a few hundredths of it at most. A thread's
// turns are independent loads, four of which are under way at once: with 2048 threads a multiprocessor, 128 KiB.
//
// Which thread combines what depends on sizes and steps, never on addresses: a run of elements that 16-byte loads do
// not reach is read one by one into the same accumulators. So the same view has the same bits, wherever it lies.
#include "prelude.cuh"

/// The most threads of a block.
constexpr int THREADS = 256;

// ── What is combined ────────────────────────────────────────────────────────────────────────────────────────────────
// On states: the wide type of a dtype, or a value with its place. `none` is what changes no state.

struct Total {
    template <typename A> __device__ __forceinline__ static A none() { return A(0); }
    template <typename A> __device__ __forceinline__ static A both(A a, A b) { return a + b; }
};
struct Power {
    template <typename A> __device__ __forceinline__ static A none() { return A(1); }
    template <typename A> __device__ __forceinline__ static A both(A a, A b) { return a * b; }
};

template <typename A> __device__ __forceinline__ A lowest() { return -infinity<A>(); }
template <> __device__ __forceinline__ i64 lowest<i64>() { return (i64)(1ull << 63); }
template <typename A> __device__ __forceinline__ A highest() { return infinity<A>(); }
template <> __device__ __forceinline__ i64 highest<i64>() { return (i64)(~0ull >> 1); }

struct Maximum {
    template <typename A> __device__ __forceinline__ static A none() { return lowest<A>(); }
    template <typename A> __device__ __forceinline__ static A both(A a, A b) { return larger(a, b); }
};
struct Minimum {
    template <typename A> __device__ __forceinline__ static A none() { return highest<A>(); }
    template <typename A> __device__ __forceinline__ static A both(A a, A b) { return smaller(a, b); }
};

/// The type of a place, as wide as the value beside it, so that there is nothing between or behind them.
template <int bytes> struct PlaceType {
    typedef int type;
};
template <> struct PlaceType<8> {
    typedef i64 type;
};
/// A value, and its place along the axis; place −1 is that of nothing.
template <typename A> struct Placed {
    typedef typename PlaceType<(int)sizeof(A)>::type Place;
    A value;
    Place place;
};

/// The first of the largest; a NaN is larger than all else.
struct First {
    template <typename P> __device__ __forceinline__ static P none() { return P{0, -1}; }
    template <typename P> __device__ __forceinline__ static P both(P a, P b) {
        if (a.place < 0) return b;
        if (b.place < 0) return a;
        const bool a_nan = is_nan(a.value), b_nan = is_nan(b.value);
        if (a_nan != b_nan) return a_nan ? a : b;
        if (!a_nan && a.value != b.value) return a.value > b.value ? a : b;
        return a.place < b.place ? a : b;
    }
};

/// From what is read to a state, and from a state to what is written.
template <typename A> struct State {
    template <typename T> __device__ __forceinline__ static A of(T x, unsigned) { return widen(x); }
    template <typename T> __device__ __forceinline__ static T to(A state) { return narrow<T>(state); }
    __device__ __forceinline__ static A across(A state, int step) { return __shfl_xor_sync(WHOLE_WARP, state, step); }
};
template <typename A> struct State<Placed<A>> {
    template <typename T> __device__ __forceinline__ static Placed<A> of(T x, unsigned i) {
        return Placed<A>{widen(x), (typename Placed<A>::Place)i};
    }
    __device__ __forceinline__ static Placed<A> of(Placed<A> part, unsigned) { return part; }
    template <typename T> __device__ __forceinline__ static T to(Placed<A> state) { return as(state, (T*)nullptr); }
    __device__ __forceinline__ static i64 as(Placed<A> state, i64*) { return state.place; }
    __device__ __forceinline__ static Placed<A> as(Placed<A> state, Placed<A>*) { return state; }
    __device__ __forceinline__ static Placed<A> across(Placed<A> state, int step) {
        return {__shfl_xor_sync(WHOLE_WARP, state.value, step), __shfl_xor_sync(WHOLE_WARP, state.place, step)};
    }
};

// ── Where it lies ───────────────────────────────────────────────────────────────────────────────────────────────────

/// How the elements and the results of a pass lie, and who combines them.
struct Pass {
    Walk<2> kept;     // in x and in y
    Walk<1> combined; // in x
    i64 results, length;
    i64 part_step;         // in y, from a part to the next
    unsigned parts, span;  // of a result; elements of each part but for the last, which may have fewer
    unsigned team;         // rows: threads of a row. columns: threads of a block beside each other
    unsigned vector;       // whether whole runs of 16 bytes are read by one load

    /// The offset of element i of those that are combined.
    __device__ __forceinline__ i64 along(unsigned i) const {
        if (combined.rank <= 1) return i * combined.stride[0][0];
        i64 offset[1];
        combined.locate(i, offset);
        return offset[0];
    }
};

/// Combines runs of WIDTH elements, the first at element `first`, the next `step` further, up to `end`: one state for
/// each position in a run.
template <typename F, typename A, typename T, int WIDTH>
__device__ __forceinline__ void combine_runs(A (&state)[WIDTH], const T* x, const Pass& p, unsigned first,
                                             unsigned step, unsigned end) {
    unsigned i = first;
    if (p.vector) {
#pragma unroll 4
        for (; i + WIDTH <= end; i += step) {
            const Pack<T, WIDTH> run = load_pack<T, WIDTH>(x + p.along(i));
#pragma unroll
            for (int k = 0; k < WIDTH; k++) state[k] = F::both(state[k], State<A>::of(run.at[k], i + k));
        }
    }
#pragma unroll 1
    for (; i < end; i += step) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            if (i + k < end) state[k] = F::both(state[k], State<A>::of(x[p.along(i + k)], i + k));
        }
    }
}

// ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Each part of each result by a team: a power of two of at most 32 threads, or the block.
template <typename F, typename A, typename To, typename From>
__device__ void rows(To* y, const From* x, const Pass& p) {
    constexpr int WIDTH = pack_width<From>();
    SHARED(A, of_warp, [THREADS / 32]);
    const unsigned task = blockIdx.x * (THREADS / p.team) + threadIdx.x / p.team;
    const unsigned result = task / p.parts, part = task - result * p.parts;
    const bool busy = result < p.results;
    i64 at[2];
    p.kept.locate(busy ? result : 0, at);

    A state[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) state[k] = F::template none<A>();
    if (busy) {
        const unsigned first = part * p.span, end = min((i64)first + p.span, p.length);
        combine_runs<F>(state, x + at[0], p, first + threadIdx.x % p.team * WIDTH, p.team * WIDTH, end);
    }
#pragma unroll
    for (int half = WIDTH / 2; half > 0; half /= 2) {
#pragma unroll
        for (int k = 0; k < half; k++) state[k] = F::both(state[k], state[k + half]);
    }
    A all = state[0];
    for (int step = min(p.team, 32u) / 2; step > 0; step /= 2) all = F::both(all, State<A>::across(all, step));
    if (p.team == THREADS) {
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = all;
        __syncthreads();
        all = of_warp[0];
#pragma unroll
        for (int warp = 1; warp < THREADS / 32; warp++) all = F::both(all, of_warp[warp]);
    }
    if (busy && threadIdx.x % p.team == 0) y[at[1] + part * p.part_step] = State<A>::template to<To>(all);
}

// ── Columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Each thread combines every rows-th row of a part for WIDTH results beside each other; then the rows of threads are
/// combined.
template <typename F, typename A, typename To, typename From>
__device__ void columns(To* y, const From* x, const Pass& p) {
    constexpr int WIDTH = pack_width<From>();
    SHARED(A, of_row, [WIDTH][THREADS]);
    const unsigned rows = blockDim.x / p.team, row = threadIdx.x / p.team;
    const unsigned across = gridDim.x / p.parts, part = blockIdx.x / across;
    const i64 tile = (i64)(blockIdx.x - part * across) * p.team * WIDTH, result = tile + threadIdx.x % p.team * WIDTH;
    const int valid = (int)min((i64)WIDTH, p.results - result);
    const unsigned first = part * p.span, end = min((i64)first + p.span, p.length);

    A state[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) state[k] = F::template none<A>();
    if (p.vector && valid == WIDTH) {
        i64 at[2];
        p.kept.locate(result, at);
#pragma unroll 4
        for (unsigned i = first + row; i < end; i += rows) {
            const Pack<From, WIDTH> run = load_pack<From, WIDTH>(x + at[0] + p.along(i));
#pragma unroll
            for (int k = 0; k < WIDTH; k++) state[k] = F::both(state[k], State<A>::of(run.at[k], i));
        }
    } else {
        i64 at[WIDTH][2];
#pragma unroll
        for (int k = 0; k < WIDTH; k++) p.kept.locate(k < valid ? result + k : 0, at[k]);
#pragma unroll 1
        for (unsigned i = first + row; i < end; i += rows) {
            const From* from = x + p.along(i);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                if (k < valid) state[k] = F::both(state[k], State<A>::of(from[at[k][0]], i));
            }
        }
    }

    for (unsigned half = rows / 2; half > 0; half /= 2) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) of_row[k][threadIdx.x] = state[k];
        __syncthreads();
        if (row < half) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) state[k] = F::both(state[k], of_row[k][threadIdx.x + half * p.team]);
        }
        __syncthreads();
    }
    if (row == 0) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) of_row[k][threadIdx.x] = state[k];
    }
    __syncthreads();
    // Neighbours in the block write neighbours in the result.
    const unsigned count = min((i64)p.team * WIDTH, p.results - tile);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        i64 at[2];
        p.kept.locate(tile + i, at);
        y[at[1] + part * p.part_step] = State<A>::template to<To>(of_row[i % WIDTH][i / WIDTH]);
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// Called function_version_from_to. Parts are kept as states: f32 for bf16, with places f32_at, f64_at, i64_at.

#define ENTRY(function, F, from, From, to, To, A)                                                                      \
    KERNEL(THREADS, function##_rows_##from##_##to, (To * y, const From* x, Pass p)) { rows<F, A>(y, x, p); }           \
    KERNEL(THREADS, function##_columns_##from##_##to, (To * y, const From* x, Pass p)) { columns<F, A>(y, x, p); }

#define FLOAT_ENTRIES(function, F)                                                                                     \
    ENTRY(function, F, f32, float, f32, float, float)                                                                  \
    ENTRY(function, F, f64, double, f64, double, double)                                                               \
    ENTRY(function, F, bf16, bf16, bf16, bf16, float)                                                                  \
    ENTRY(function, F, bf16, bf16, f32, float, float)                                                                  \
    ENTRY(function, F, f32, float, bf16, bf16, float)

#define PLACE_ENTRIES(name, T, wide, A)                                                                                \
    ENTRY(argmax, First, name, T, i64, i64, Placed<A>)                                                                 \
    ENTRY(argmax, First, name, T, wide##_at, Placed<A>, Placed<A>)
#define PART_ENTRIES(wide, A)                                                                                          \
    ENTRY(argmax, First, wide##_at, Placed<A>, wide##_at, Placed<A>, Placed<A>)                                        \
    ENTRY(argmax, First, wide##_at, Placed<A>, i64, i64, Placed<A>)

FLOAT_ENTRIES(sum, Total)
FLOAT_ENTRIES(prod, Power)
FLOAT_ENTRIES(max, Maximum)
FLOAT_ENTRIES(min, Minimum)
// As unsigned numbers, sums and products wrap.
ENTRY(sum, Total, i64, u64, i64, u64, u64)
ENTRY(prod, Power, i64, u64, i64, u64, u64)
ENTRY(max, Maximum, i64, i64, i64, i64, i64)
ENTRY(min, Minimum, i64, i64, i64, i64, i64)
PLACE_ENTRIES(f32, float, f32, float)
PLACE_ENTRIES(bf16, bf16, f32, float)
PLACE_ENTRIES(f64, double, f64, double)
PLACE_ENTRIES(i64, i64, i64, i64)
PART_ENTRIES(f32, float)
PART_ENTRIES(f64, double)
PART_ENTRIES(i64, i64)
