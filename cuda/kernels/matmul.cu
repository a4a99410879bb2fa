// Matrix products in the arithmetic of the dtype itself: f32 and f64 exact to their own rounding, bf16 summed in float.
//
//     y[i, j] = f(Σ_p a[i, p]·b[p, j] + bias[j]) + r[i, j]
//
// 2·m·n·k operations and (m·k + k·n + m·n)·size bytes at least, m·n operations and m·n·size bytes more for a residual r.
//
// What bounds a large product is arithmetic: an H200 has 67 TFLOP/s of f32 (half of that f64) and 4.8 TB/s, so it has
// time for 14 operations a byte, and a product of n×n matrices of f32 offers n/6 of them. What bounds it in practice is
// how often an element is fetched again, from memory and from shared memory:
//
//   1. `direct`: a thread sums one element         8 bytes fetched a multiplication, from the cache if one is lucky.
//                                                  Right where the sum is short: then the result is most of the
//                                                  traffic.
//   2. `dot`: a warp sums one element              the same traffic, all lanes at one sum. Right for a row times a
//                                                  matrix, where every element is used once and memory is the bound.
//   3. Tiles of 32×32 in shared memory             each element that is fetched is used 32 times: 0.25 bytes a
//                                                  multiplication.
//   4. Several sums a thread, 4×4 to 8×8           and what a thread reads from shared memory, it uses 4 to 8 times. A
//                                                  warp of 8×8 sums reads, for one term, 2 KiB into registers (16
//                                                  cycles of shared memory) for 2048 multiplications (16 cycles): both
//                                                  are busy all the time.
//   5. Fetching ahead                              while a stage is multiplied, the next is on its way to registers; it
//                                                  is put into the other half of shared memory, with one barrier a
//                                                  stage.
//   6. Tiles by size of the result                 128×128 halves the traffic of 64×64 (0.06 bytes a multiplication),
//                                                  but a result of 512×512 has 16 such tiles and the card 132
//                                                  multiprocessors.
//   7. Long sums in parts                          where even the smallest tiles are few: parts go to scratch memory,
//                                                  and `sum_parts` adds them in order. 4·splits bytes more an element,
//                                                  written and read once.
//   8. Bias, activation and residual at the end    while a sum is in a register. An addition of its own would read the
//                                                  result and r and write their sum: 3·size bytes more an element; here
//                                                  it is r alone, size bytes, and where there is none, a pointer that is
//                                                  null.
//
// Every sum of `direct` and of the tiles is one chain of fma in the order of its terms (of each part), so the size of
// the tile and the way of reading change no bit.
#include "matmul.cuh"

// ── Reading a stage ─────────────────────────────────────────────────────────────────────────────────────────────────

/// Terms of a stage: 64 bytes of the type that is computed in.
template <typename W> constexpr int stage_terms() { return 64 / (int)sizeof(W); }

/// A factor's part of a stage: OUTER vectors and the terms of one stage, on the way from global to shared memory.
/// There, vectors are neighbours and terms are rows; the padding of a row spreads the writes of a warp that reads along
/// the terms (two passes instead of four).
///
/// Threads take items of V neighbours, or of one element, `along` whichever axis has the neighbours; the items of a
/// thread lie `lines` apart `across` it.
template <typename T, int OUTER, int THREADS> struct Panel {
    typedef typename Wide<T>::type W;
    static constexpr int TERMS = stage_terms<W>(), V = pack_width<W>(), ROW = OUTER + V;
    static constexpr int ELEMENTS = OUTER * TERMS / THREADS; // of a thread

    const Factor& factor;
    const T* next;              // this thread's first element of the stage that is fetched next
    int along, across, lines;   // where it lies in the stage, and how far apart the items are
    int along_left, across_left; // how many elements the factor has from there on
    T fetched[ELEMENTS];

    /// For the vectors from `outer` to `outers`, and the terms from `term` to `terms`.
    __device__ __forceinline__ Panel(const Factor& factor, i64 start, int outer, int outers, int term,
                                     int terms)
        : factor(factor) {
        const int width = factor.vector ? V : 1, run = (factor.along_terms ? TERMS : OUTER) / width;
        along = threadIdx.x % run * width;
        across = threadIdx.x / run;
        lines = THREADS / run;
        const int o = outer + (factor.along_terms ? across : along), t = term + (factor.along_terms ? along : across);
        next = static_cast<const T*>(factor.data) + start + o * factor.outer_step + t * factor.term_step;
        along_left = factor.along_terms ? terms - t : outers - o;
        across_left = factor.along_terms ? outers - o : terms - t;
    }

    /// Starts reading the next stage; zeros where the factor ends.
    __device__ __forceinline__ void fetch() {
        if (factor.vector) fetch_items<V>();
        else fetch_items<1>();
        next += TERMS * factor.term_step;
        (factor.along_terms ? along_left : across_left) -= TERMS;
    }

    template <int WIDTH> __device__ __forceinline__ void fetch_items() {
        const i64 along_step = factor.along_terms ? factor.term_step : factor.outer_step;
        const i64 item_step = lines * (factor.along_terms ? factor.outer_step : factor.term_step);
        const T* from = next;
#pragma unroll
        for (int item = 0; item < ELEMENTS / WIDTH; item++, from += item_step) {
            const int inside = item * lines < across_left ? along_left : 0;
            T* to = fetched + item * WIDTH;
            if (WIDTH > 1 && inside >= WIDTH) {
                const Pack<T, WIDTH> pack = load_pack<T, WIDTH>(from);
#pragma unroll
                for (int v = 0; v < WIDTH; v++) to[v] = pack.at[v];
            } else {
#pragma unroll
                for (int v = 0; v < WIDTH; v++) to[v] = v < inside ? from[v * along_step] : T{};
            }
        }
    }

    /// Puts what was fetched into shared memory.
    __device__ __forceinline__ void deposit(W* panel) const {
        if (factor.vector) deposit_items<V>(panel);
        else deposit_items<1>(panel);
    }

    template <int WIDTH> __device__ __forceinline__ void deposit_items(W* panel) const {
        W* to = panel + (factor.along_terms ? along * ROW + across : across * ROW + along);
        const int item_step = lines * (factor.along_terms ? 1 : ROW);
#pragma unroll
        for (int item = 0; item < ELEMENTS / WIDTH; item++, to += item_step) {
            Pack<W, WIDTH> pack;
#pragma unroll
            for (int v = 0; v < WIDTH; v++) pack.at[v] = widen(fetched[item * WIDTH + v]);
            if (factor.along_terms) {
#pragma unroll
                for (int v = 0; v < WIDTH; v++) to[v * ROW] = pack.at[v];
            } else {
                store_pack(to, pack);
            }
        }
    }
};

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// WARPS_DOWN×WARPS_ACROSS warps, each of 4×8 lanes, each lane with DOWN×ACROSS sums. A lane's sums come in groups of V
/// neighbours, and the groups of all lanes alternate, so that a warp reads shared memory without gaps.
template <typename T, int WARPS_DOWN, int WARPS_ACROSS, int DOWN, int ACROSS>
__device__ void tiled(void* y, const MatrixProduct& p, const Finish& finish) {
    typedef typename Wide<T>::type W;
    constexpr int V = pack_width<W>(), THREADS = WARPS_DOWN * WARPS_ACROSS * 32, TERMS = stage_terms<W>();
    constexpr int ROWS = WARPS_DOWN * 4 * DOWN, COLUMNS = WARPS_ACROSS * 8 * ACROSS;
    typedef Panel<T, ROWS, THREADS> Left;
    typedef Panel<T, COLUMNS, THREADS> Right;
    SHARED(W, left_stages, [2][TERMS * Left::ROW]);
    SHARED(W, right_stages, [2][TERMS * Right::ROW]);

    const Tile tile = tile_of<ROWS, COLUMNS>(p, blockIdx.x);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / WARPS_ACROSS * 4 * DOWN + lane / 8 * V;
    const int column = warp % WARPS_ACROSS * 8 * ACROSS + lane % 8 * V;

    W sum[DOWN][ACROSS] = {};
    Left left(p.a, tile.a, tile.row, p.m, tile.first, tile.last);
    Right right(p.b, tile.b, tile.column, p.n, tile.first, tile.last);
    if (tile.first < tile.last) {
        left.fetch();
        right.fetch();
        left.deposit(left_stages[0]);
        right.deposit(right_stages[0]);
        __syncthreads();
    }
    int stage = 0;
#pragma unroll 1
    for (int term = tile.first; term < tile.last; term += TERMS, stage ^= 1) {
        const bool more = term + TERMS < tile.last;
        if (more) {
            left.fetch();
            right.fetch();
        }
#pragma unroll (TERMS / 8)
        for (int t = 0; t < TERMS; t++) {
            Pack<W, V> u[DOWN / V], v[ACROSS / V];
#pragma unroll
            for (int g = 0; g < DOWN / V; g++)
                u[g] = load_pack<W, V>(&left_stages[stage][t * Left::ROW + row + g * 4 * V]);
#pragma unroll
            for (int g = 0; g < ACROSS / V; g++)
                v[g] = load_pack<W, V>(&right_stages[stage][t * Right::ROW + column + g * 8 * V]);
#pragma unroll
            for (int i = 0; i < DOWN; i++)
#pragma unroll
                for (int j = 0; j < ACROSS; j++) sum[i][j] = fma(u[i / V].at[i % V], v[j / V].at[j % V], sum[i][j]);
        }
        if (more) {
            left.deposit(left_stages[stage ^ 1]);
            right.deposit(right_stages[stage ^ 1]);
        }
        __syncthreads();
    }

    // The first row of sums is written, then the others move up: registers have no index, and unrolled, the code of the
    // activation would be there for every sum.
#pragma unroll 1
    for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int g = 0; g < ACROSS / V; g++) {
            Pack<W, V> group;
#pragma unroll
            for (int v = 0; v < V; v++) group.at[v] = sum[0][g * V + v];
            put_sums<T, V>(y, p, finish, tile, tile.row + row + i / V * 4 * V + i % V,
                           tile.column + column + g * 8 * V, group);
        }
#pragma unroll
        for (int r = 1; r < DOWN; r++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++) sum[r - 1][j] = sum[r][j];
    }
}

// ── Without tiles ───────────────────────────────────────────────────────────────────────────────────────────────────

/// One thread, one element of the result.
template <typename T>
__device__ void direct(T* y, const MatrixProduct& p, const Finish& finish, const Divisor& m, const Divisor& n) {
    typedef typename Wide<T>::type W;
    const i64 elements = (i64)p.batches * p.m * p.n;
#pragma unroll 1
    for (i64 i = global_thread(); i < elements; i += global_threads()) {
        const unsigned rows = n.quotient((unsigned)i), matrix = m.quotient(rows);
        const int row = rows - matrix * m.d, column = (unsigned)i - rows * n.d;
        i64 start[2];
        p.batch.locate(matrix, start);
        const T* a = static_cast<const T*>(p.a.data) + start[0] + row * p.a.outer_step;
        const T* b = static_cast<const T*>(p.b.data) + start[1] + column * p.b.outer_step;
        W sum = W(0);
#pragma unroll 4
        for (int term = 0; term < p.k; term++)
            sum = fma(widen(a[term * p.a.term_step]), widen(b[term * p.b.term_step]), sum);
        y[i] = finished_at<T>(i, sum, finish, column);
    }
}

/// One warp, one element of the result: lane l sums the terms l, l + 32, l + 64, …
template <typename T> __device__ void dot(void* y, const MatrixProduct& p, const Finish& finish) {
    typedef typename Wide<T>::type W;
    const unsigned warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (warp >= (i64)p.batches * p.splits * p.m * p.n) return;
    const Tile tile = tile_of<1, 1>(p, warp);
    int term = tile.first + threadIdx.x % 32;
    const T* a = static_cast<const T*>(p.a.data) + tile.a + tile.row * p.a.outer_step + term * p.a.term_step;
    const T* b = static_cast<const T*>(p.b.data) + tile.b + tile.column * p.b.outer_step + term * p.b.term_step;
    W sum = W(0);
#pragma unroll 4
    for (; term < tile.last; term += 32, a += 32 * p.a.term_step, b += 32 * p.b.term_step)
        sum = fma(widen(*a), widen(*b), sum);
    sum = reduce_warp(sum, Sum());
    if (threadIdx.x % 32 == 0) put_sums<T, 1>(y, p, finish, tile, tile.row, tile.column, Pack<W, 1>{{sum}});
}

/// The parts of each sum added in order: part s of element i is at s·elements + i.
template <typename T>
__device__ void sum_parts(T* y, const typename Wide<T>::type* parts, int splits, i64 elements, const Divisor& n,
                          const Finish& finish) {
#pragma unroll 1
    for (i64 i = global_thread(); i < elements; i += global_threads()) {
        typename Wide<T>::type sum = parts[i];
#pragma unroll 4
        for (int split = 1; split < splits; split++) sum += parts[split * elements + i];
        y[i] = finished_at<T>(i, sum, finish, (unsigned)i - n.quotient((unsigned)i) * n.d);
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The most threads that a block of 128×128 sums may have. It has 256; with the registers of twice as many, two blocks
/// share a multiprocessor, and one multiplies while the other waits. Sums of doubles take too many registers for that.
template <typename T> constexpr int register_share() { return sizeof(T) == 8 ? 256 : 512; }

#define ENTRIES(dtype, T)                                                                                              \
    KERNEL(register_share<T>(), matmul_128x128_##dtype, (void* y, MatrixProduct p, Finish finish)) {                   \
        tiled<T, 4, 2, 8, 8>(y, p, finish);                                                                            \
    }                                                                                                                  \
    KERNEL(128, matmul_64x64_##dtype, (void* y, MatrixProduct p, Finish finish)) {                                     \
        tiled<T, 2, 2, 8, 4>(y, p, finish);                                                                            \
    }                                                                                                                  \
    KERNEL(64, matmul_32x32_##dtype, (void* y, MatrixProduct p, Finish finish)) {                                      \
        tiled<T, 2, 1, 4, 4>(y, p, finish);                                                                            \
    }                                                                                                                  \
    KERNEL(256, matmul_dot_##dtype, (void* y, MatrixProduct p, Finish finish)) { dot<T>(y, p, finish); }               \
    KERNEL(256, matmul_direct_##dtype, (T * y, MatrixProduct p, Finish finish, Divisor m, Divisor n)) {                \
        direct<T>(y, p, finish, m, n);                                                                                 \
    }                                                                                                                  \
    KERNEL(256, matmul_sum_parts_##dtype,                                                                              \
           (T * y, const Wide<T>::type* parts, int splits, i64 elements, Divisor n, Finish finish)) {                  \
        sum_parts<T>(y, parts, splits, elements, n, finish);                                                           \
    }
FOR_FLOATS(ENTRIES)
