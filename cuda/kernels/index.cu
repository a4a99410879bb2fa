// Elements chosen by index along an axis, and elements added by index.
//
// Gather. What bounds it: memory, and how far apart the chosen elements lie.
//
//   1. One element a thread                       reads an index (8 bytes), then an element, then writes it: two trips to
//                                                 memory behind each other, and more bytes of index than of element.
//   2. Units, where the index does not vary       whole rows of a table: the host joins neighbours to units of up to 16
//      along the last axes                        bytes; the index is read from the cache, once a unit.
//   3. ITEMS units a thread, step by step         four indices on their way, then four units.
//
//   Bytes an element: 2·size, and 8 for each element of the index.
//
// Scatter. A destination is added to in the order of the source, so that sums have the same bits every time; atomics on
// floats would not. What bounds it is memory, and where many elements have one destination, its chain of additions.
//
//   1. A column a thread                          the elements of one position on all other axes are one thread's, which
//                                                 takes them in order: no two threads share a destination. For many
//                                                 columns, or few elements in each. Bytes: read source and index, read and
//                                                 write a destination for each, 3·size + 8.
//   2. A destination a thread                     with few long columns that leaves a card idle. Sorted by index (stably, so
//                                                 those of one destination keep their order), the elements of a destination
//                                                 lie in a run, and the thread at its start adds it up in a register.
//                                                 Bytes: one read and write of each destination, a read of each source
//                                                 element, and 16 for index and order, which rows share.
//   3. AHEAD elements looked up together          before the first is added: the additions stay in order, the loads need not.
//
//   Operations: an addition for each element of the source; version 2 sorts the index besides (sort.cu), once for all rows.
#include "prelude.cuh"

constexpr int THREADS = 256;

// ── Gather ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Units that a thread has on their way.
constexpr int ITEMS = 4;

/// `y[i] = x[… + index·stride]` for n units of `per_unit` elements. Operand 0 of the walk is the index, operand 1 is x without
/// its axis, which has `size` elements `stride` units apart. Where an index is wrong, y is 0.
template <typename T>
__device__ void gather(T* y, const T* x, const i64* index, i64 n, i64 size, i64 stride, i64 per_unit, const Walk<2>& walk,
                       const Fault& fault) {
    const i64 step = global_threads() * ITEMS;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * THREADS * ITEMS + threadIdx.x; first < n; first += step) {
        i64 chosen[ITEMS], at[ITEMS][2];
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            if (first + k * THREADS >= n) break;
            walk.locate((unsigned)(first + k * THREADS), at[k]);
            chosen[k] = index[at[k][0]];
        }
        T unit[ITEMS];
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            unit[k] = T{};
            const i64 i = first + k * THREADS;
            if (i < n && fault.admits(chosen[k], size, i * per_unit)) unit[k] = x[at[k][1] + chosen[k] * stride];
        }
#pragma unroll
        for (int k = 0; k < ITEMS; k++) {
            const i64 i = first + k * THREADS;
            if (i < n) y[i] = unit[k];
        }
    }
}

// ── Scatter ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Elements that a thread looks up before it adds the first.
constexpr int AHEAD = 4;

/// The columns of a scatter: a position on all axes but one, whose elements are `stride` apart in each operand. Operand 0
/// is the result, whose axis has `size` elements; 1 is the index and 2 the source, whose axis has `length`; 3, if there, the
/// order that sorts the index.
template <int N> struct Columns {
    Walk<N> walk;
    i64 stride[N];
    i64 size;
    Divisor length, inner; // `inner`: columns side by side, along the axes behind the one

    /// The row-major position of element i of a column.
    __device__ __forceinline__ i64 position(unsigned column, i64 i) const {
        const unsigned outer = inner.quotient(column);
        return ((i64)outer * length.d + i) * inner.d + (column - outer * inner.d);
    }
};

/// A sum and one more: wrapping for integers, the logical or for bool.
template <typename W> __device__ __forceinline__ W plus(W sum, W x) { return sum + x; }
template <> __device__ __forceinline__ i64 plus(i64 sum, i64 x) {
    return (i64)((unsigned long long)sum + (unsigned long long)x);
}
template <> __device__ __forceinline__ bool8 plus(bool8 sum, bool8 x) { return sum | x; }

/// Adds `count` columns of src into sums, which hold the base, each by one thread in order. Sums are of the wide type.
template <typename T>
__device__ void add_columns(typename Wide<T>::type* sums, const i64* index, const T* src, i64 count,
                            const Columns<3>& columns, const Fault& fault) {
    const i64 length = columns.length.d;
#pragma unroll 1
    for (i64 column = global_thread(); column < count; column += global_threads()) {
        i64 at[3];
        columns.walk.locate((unsigned)column, at);
#pragma unroll 1
        for (i64 first = 0; first < length; first += AHEAD) {
            i64 chosen[AHEAD];
            T x[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (first + k >= length) break;
                chosen[k] = index[at[1] + (first + k) * columns.stride[1]];
                x[k] = src[at[2] + (first + k) * columns.stride[2]];
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (first + k >= length) break;
                if (!fault.admits(chosen[k], columns.size, columns.position((unsigned)column, first + k))) continue;
                auto& sum = sums[at[0] + chosen[k] * columns.stride[0]];
                sum = plus(sum, widen(x[k]));
            }
        }
    }
}

/// Adds the elements of src, n in all, to y, which holds the base: those of a destination by the thread at which they begin
/// in the order that sorts the index.
template <typename T>
__device__ void add_runs(T* y, const i64* index, const T* src, const i64* order, i64 n, const Columns<4>& columns,
                         const Fault& fault) {
    const i64 length = columns.length.d;
#pragma unroll 1
    for (i64 i = global_thread(); i < n; i += global_threads()) {
        const unsigned row = columns.inner.quotient((unsigned)i), outer = columns.length.quotient(row);
        const unsigned column = outer * columns.inner.d + ((unsigned)i - row * columns.inner.d);
        const i64 start = row - outer * columns.length.d;
        i64 at[4];
        columns.walk.locate(column, at);
        const auto sorted = [&](i64 rank) { return order[at[3] + rank * columns.stride[3]]; };
        const auto destination = [&](i64 element) { return index[at[1] + element * columns.stride[1]]; };

        const i64 element = sorted(start), chosen = destination(element);
        if (!fault.admits(chosen, columns.size, columns.position(column, element))) continue;
        if (start > 0 && destination(sorted(start - 1)) == chosen) continue; // another thread's
        T& result = y[at[0] + chosen * columns.stride[0]];
        typename Wide<T>::type sum = widen(result);
        bool more = true;
#pragma unroll 1
        for (i64 rank = start; more; rank += AHEAD) {
            i64 next[AHEAD];
            bool mine[AHEAD];
            T x[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) next[k] = rank + k < length ? sorted(rank + k) : -1;
#pragma unroll
            for (int k = 0; k < AHEAD; k++) mine[k] = next[k] >= 0 && destination(next[k]) == chosen;
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (mine[k]) x[k] = src[at[2] + next[k] * columns.stride[2]];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (mine[k]) sum = plus(sum, widen(x[k]));
            more = mine[AHEAD - 1];
        }
        result = narrow<T>(sum);
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define GATHER(bytes, T)                                                                                               \
    KERNEL(THREADS, gather_##bytes,                                                                                    \
           (T * y, const T* x, const i64* index, i64 n, i64 size, i64 stride, i64 per_unit, Walk<2> walk,              \
            Fault fault)) {                                                                                            \
        gather(y, x, index, n, size, stride, per_unit, walk, fault);                                                   \
    }
typedef Pack<unsigned long long, 2> unit16;
GATHER(1, unsigned char)
GATHER(2, unsigned short)
GATHER(4, unsigned)
GATHER(8, unsigned long long)
GATHER(16, unit16)

#define SCATTER(dtype, T)                                                                                              \
    KERNEL(THREADS, scatter_columns_##dtype,                                                                           \
           (Wide<T>::type * sums, const i64* index, const T* src, i64 count, Columns<3> columns, Fault fault)) {       \
        add_columns<T>(sums, index, src, count, columns, fault);                                                       \
    }                                                                                                                  \
    KERNEL(THREADS, scatter_runs_##dtype,                                                                              \
           (T * y, const i64* index, const T* src, const i64* order, i64 n, Columns<4> columns, Fault fault)) {        \
        add_runs<T>(y, index, src, order, n, columns, fault);                                                          \
    }
FOR_ALL(SCATTER)
