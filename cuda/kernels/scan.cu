// Running sums along an axis.
//
// The bytes that move are the bound. The versions:
//
//   1. A thread for each line          n additions in a row, one after the other: a single line has one thread.
//   2. `rows`: the axis is the last    a team of threads takes a run of 16 bytes each, adds it up, and learns by log₂
//                                      32 shuffles (and through shared memory, if it is a block) what lies before its
//                                      run; what was before the turn is carried to the next.
//   3. `columns`: another axis         threads beside each other take lines beside each other, and 16 elements of a
//                                      line each; what lies before them is learned through shared memory.
//   4. Segments                        a long line has several blocks. The first launch leaves the total of each
//                                      segment, the second adds those before its own: at most 512 (rows) and 64
//                                      (columns), so that this costs little beside the segment itself.
//
// Bytes an element: 2·size. In segments 3·size, half as much again as there must be, since these are read twice: rows of
// more than 2048 packs of 16 bytes, columns of more than 512 elements (2048 where there are few lines). Two additions an
// element.
//
// Sums are kept in the wide type, each rounded once when it is written. The order is a fixed tree, of sizes alone.
#include "prelude.cuh"

/// The most threads of a block.
constexpr int THREADS = 256;
/// Elements of a line that a thread of `columns` takes at a time; `RUN` of scan.rs.
constexpr int RUN = 16;

/// How lines lie, and who adds them up.
struct Lines {
    Walk<2> starts; // in x and in y
    i64 count, length;
    i64 step_x, step_y;      // along a line
    unsigned segments, span; // of a line; elements of each segment but for the last, which may have fewer
    unsigned team;           // rows: threads of a line. columns: threads of a block beside each other
    unsigned vector;         // rows: whether whole runs of 16 bytes are read and written at once
};

/// Makes each element the sum of all up to it.
template <typename A, int N> __device__ __forceinline__ void add_up(A (&sum)[N]) {
#pragma unroll
    for (int k = 1; k < N; k++) sum[k] = sum[k - 1] + sum[k];
}

// ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Each segment by a team: a power of two of at most 32 threads, or the block. WRITES the running sums, or the totals.
template <bool WRITES, typename T, typename A> __device__ void rows(T* y, A* totals, const T* x, const Lines& p) {
    constexpr int WIDTH = pack_width<T>();
    SHARED(A, of_warp, [THREADS / 32]);
    const unsigned task = blockIdx.x * (THREADS / p.team) + threadIdx.x / p.team;
    const unsigned line = task / p.segments, segment = task - line * p.segments;
    const bool busy = line < p.count, is_block = p.team == THREADS;
    const unsigned member = threadIdx.x % p.team, lane = member % 32, lanes = min(p.team, 32u);
    const unsigned first = segment * p.span, end = min((i64)first + p.span, p.length);
    i64 at[2];
    p.starts.locate(busy ? line : 0, at);
    x += at[0];
    y += at[1];

    A carry = 0;
    if (WRITES && segment > 0) {
        for (unsigned i = threadIdx.x; i < segment; i += THREADS) carry += totals[(i64)line * p.segments + i];
        carry = reduce_block<THREADS>(carry, Sum(), of_warp);
    }
#pragma unroll 1
    for (unsigned turn = first; turn < end; turn += p.team * WIDTH) {
        const unsigned i = turn + member * WIDTH;
        const bool whole = busy && p.vector && i + WIDTH <= end;
        A sum[WIDTH];
        if (whole) {
            const Pack<T, WIDTH> run = load_pack<T, WIDTH>(x + i);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum[k] = widen(run.at[k]);
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum[k] = busy && i + k < end ? widen(x[(i + k) * p.step_x]) : A(0);
        }
        add_up(sum);

        A upto = sum[WIDTH - 1];
        for (unsigned step = 1; step < lanes; step *= 2) {
            const A below = __shfl_up_sync(WHOLE_WARP, upto, step);
            if (lane >= step) upto = below + upto;
        }
        A before = __shfl_up_sync(WHOLE_WARP, upto, 1);
        if (lane == 0) before = 0;
        A total = __shfl_sync(WHOLE_WARP, upto, lanes - 1, lanes);
        if (is_block) {
            if (lane == 0) of_warp[member / 32] = total;
            __syncthreads();
            A below = 0;
            total = 0;
#pragma unroll
            for (int warp = 0; warp < THREADS / 32; warp++) {
                if (warp == member / 32) below = total;
                total += of_warp[warp];
            }
            before = below + before;
            __syncthreads();
        }
        if (WRITES) {
            before = carry + before;
            if (whole) {
                Pack<T, WIDTH> run;
#pragma unroll
                for (int k = 0; k < WIDTH; k++) run.at[k] = narrow<T>(before + sum[k]);
                store_pack(y + i, run);
            } else {
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    if (busy && i + k < end) y[(i + k) * p.step_y] = narrow<T>(before + sum[k]);
                }
            }
        }
        carry += total;
    }
    if (!WRITES && busy && member == 0) totals[task] = carry;
}

// ── Columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Each segment of a line by one thread of each row of the block. WRITES the running sums, or the totals.
template <bool WRITES, typename T, typename A> __device__ void columns(T* y, A* totals, const T* x, const Lines& p) {
    SHARED(A, of_row, [THREADS]);
    const unsigned rows = blockDim.x / p.team, row = threadIdx.x / p.team, column = threadIdx.x % p.team;
    const unsigned across = gridDim.x / p.segments, segment = blockIdx.x / across;
    const i64 line = (i64)(blockIdx.x - segment * across) * p.team + column;
    const bool busy = line < p.count;
    const unsigned first = segment * p.span, end = min((i64)first + p.span, p.length);
    i64 at[2];
    p.starts.locate(busy ? line : 0, at);
    x += at[0];
    y += at[1];

    A carry = 0;
    if (WRITES && busy) {
        for (unsigned i = 0; i < segment; i++) carry += totals[i * p.count + line];
    }
#pragma unroll 1
    for (unsigned turn = first; turn < end; turn += rows * RUN) {
        const unsigned i = turn + row * RUN;
        A sum[RUN];
#pragma unroll
        for (int k = 0; k < RUN; k++) sum[k] = busy && i + k < end ? widen(x[(i + k) * p.step_x]) : A(0);
        add_up(sum);

        of_row[threadIdx.x] = sum[RUN - 1];
        __syncthreads();
        A before = 0, total = 0;
        for (unsigned r = 0; r < rows; r++) {
            if (r == row) before = total;
            total += of_row[r * p.team + column];
        }
        __syncthreads();
        if (WRITES) {
            before = carry + before;
#pragma unroll
            for (int k = 0; k < RUN; k++) {
                if (busy && i + k < end) y[(i + k) * p.step_y] = narrow<T>(before + sum[k]);
            }
        }
        carry += total;
    }
    if (!WRITES && busy && row == 0) totals[segment * p.count + line] = carry;
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define ENTRY(version, dtype, T, A)                                                                                    \
    KERNEL(THREADS, totals_##version##_##dtype, (T * y, A * totals, const T* x, Lines p)) {                            \
        version<false>(y, totals, x, p);                                                                               \
    }                                                                                                                  \
    KERNEL(THREADS, cumsum_##version##_##dtype, (T * y, A * totals, const T* x, Lines p)) {                            \
        version<true>(y, totals, x, p);                                                                                \
    }
#define ENTRIES(dtype, T, A) ENTRY(rows, dtype, T, A) ENTRY(columns, dtype, T, A)

ENTRIES(f32, float, float)
ENTRIES(f64, double, double)
ENTRIES(bf16, bf16, float)
ENTRIES(i64, u64, u64) // unsigned, so that sums wrap
