// Sinkhorn–Knopp: the columns of exp(H), then its rows, divided by their sums, again and again.
//
// Every iterate is diag(u)·K·diag(v) with one K, so a step is two products of a matrix and a vector: v = 1/(Kᵀu),
// u = 1/(Kv). It is carried out in one of two ways, as on the CPU:
//
//   Scalings     K = exp(H − column maxima) has no entry above 1. What underflows in it can be left out as long as every uᵢ
//                stays within 10⁻¹²..10¹² (f32) or 10⁻¹²⁰..10¹²⁰ (f64).
//   Logarithms   A matrix whose u leaves that range, or has a NaN, is marked, and a second kernel computes it again with
//                f = ln u, g = ln v and log-sum-exp, in double, whatever the logits are. A row or column that is −∞
//                throughout marks its matrix, and is written down here.
//
// What bounds it: neither bytes nor operations, but how long a division takes. T steps are 2T products one behind the
// other: n multiply-adds of 4 cycles and a division of some 40. 32,768 matrices of 4×4 are 4 MiB in and out, one
// microsecond; a step is 140 instructions of sm_90a for a matrix in a thread of its own (32 multiply-adds, 8 divisions), so
// T = 20 are 2,800 for each of 1,024 warps: 5,400 turns of 528 schedulers, 3.1 µs if none were ever idle.
//
//   1. A thread a matrix, K read from memory each step      2T reads of everything, from the first-level cache.
//   2. A thread a matrix, K in registers (n ≤ 4)            `Alone`. No communication, the n sums of a half step are
//                                                           independent; the compiler makes their divisions one behind the
//                                                           other, each with a branch of its own. Two warps a scheduler.
//   3. N lanes a matrix (n ≤ 8, 16; 32 in f32)              `Lanes`. Lane i has row i and column i of K in registers; u
//                                                           and v pass through shared memory, 16 bytes a load. Sums by
//                                                           shuffles would take log n of them for each of n columns.
//   4. A block a matrix (n ≤ 256)                           `Block`. K in shared memory where it fits, with an odd number
//                                                           of elements a row, so that rows and columns are read without
//                                                           conflicts; else in scratch memory, which the cache holds.
//   5. Beyond that                                          the logarithms alone: an exponential for every entry and half
//                                                           step, all in memory.
//
// The gradient is that of the steps that were made: 64 multiply-adds a step and 4×4 matrix besides making it. It needs u
// and v of every step: the last L steps' are kept (all, if there are no more than 64), and u at the start of each run of L
// steps, from which earlier runs are made again. So 100,000 steps keep 895 vectors, T = 20 keep 41 and make nothing twice.
// They lie in shared memory if they fit 48 KiB, as 20 steps of 32 matrices of 4×4 in f32 do (21 KB).
//
// Which way a matrix takes, how many steps, and in which order sums are added depend on its own logits and on n alone.
#include "prelude.cuh"

/// What is to be done, and where its memory is. Sizes in elements, for one block.
struct Task {
    i64 matrices;
    i64 scratch; // of scratch memory
    i64 area;    // for the matrices of `Block`
    double error;
    int n;
    int at_most;
    int waits;       // whether an error of at most `error` ends it
    int segment;     // L
    int area_shared; // whether the area is shared memory
    int kept_shared; // whether the vectors that are kept are
};

/// The number of the vector that is u at the start of segment s; those before it are v and u of the steps of a segment.
__device__ __forceinline__ int checkpoint(int segment, int s) { return 2 * segment + s; }

// ── Who has a matrix ────────────────────────────────────────────────────────────────────────────────────────────────
// A team has K, and D of the gradient, and each of its threads OWNED rows and as many columns of the same numbers; vectors
// are arrays of their elements. `column_sums` and `row_sums` take turns: what one lets the team see is read before the
// other's barrier, and may be written over behind it.

/// A thread has a matrix in its registers.
template <typename W, int N> struct Alone {
    static constexpr int OWNED = N, THREADS = 32, TOGETHER = 32;
    W k[N][N], d[N][N];

    __device__ __forceinline__ Alone(const Task&, W*) {}
    __device__ __forceinline__ static int member() { return threadIdx.x; } // which matrix of the block's
    __device__ __forceinline__ bool leads() const { return true; }
    __device__ __forceinline__ bool owns(int) const { return true; }
    /// Whether one of the team says so, and whether one of those that run along with it does.
    __device__ __forceinline__ bool any(bool p) const { return p; }
    __device__ __forceinline__ bool some(bool p) const { return p; }

    __device__ __forceinline__ static void read(W (&to)[N][N], const W* x) {
        constexpr int WIDTH = N * N % pack_width<W>() == 0 ? pack_width<W>() : 1;
        W all[N * N];
        if (WIDTH > 1 && reinterpret_cast<size_t>(x) % 16 == 0) {
#pragma unroll
            for (int p = 0; p < N * N / WIDTH; p++) {
                const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(x + p * WIDTH);
#pragma unroll
                for (int e = 0; e < WIDTH; e++) all[p * WIDTH + e] = pack.at[e];
            }
        } else {
#pragma unroll
            for (int e = 0; e < N * N; e++) all[e] = x[e];
        }
#pragma unroll
        for (int e = 0; e < N * N; e++) to[e / N][e % N] = all[e];
    }

    __device__ __forceinline__ static void write(W* y, const W (&from)[N][N]) {
        constexpr int WIDTH = N * N % pack_width<W>() == 0 ? pack_width<W>() : 1;
        if (WIDTH > 1 && reinterpret_cast<size_t>(y) % 16 == 0) {
#pragma unroll
            for (int p = 0; p < N * N / WIDTH; p++) {
                Pack<W, WIDTH> pack;
#pragma unroll
                for (int e = 0; e < WIDTH; e++) pack.at[e] = from[(p * WIDTH + e) / N][(p * WIDTH + e) % N];
                store_pack(y + p * WIDTH, pack);
            }
        } else {
#pragma unroll
            for (int e = 0; e < N * N; e++) y[e] = from[e / N][e % N];
        }
    }

    /// K = exp(H − column maxima).
    __device__ __forceinline__ void load(const W* x, bool present) {
        if (!present) return;
        read(k, x);
#pragma unroll
        for (int j = 0; j < N; j++) {
            W largest = -infinity<W>();
#pragma unroll
            for (int i = 0; i < N; i++) largest = k[i][j] > largest ? k[i][j] : largest;
#pragma unroll
            for (int i = 0; i < N; i++) k[i][j] = exp(k[i][j] - largest);
        }
    }

    /// Kᵀx.
    __device__ __forceinline__ void column_sums(const W (&x)[N], W (&sum)[N]) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            sum[j] = k[0][j] * x[0];
#pragma unroll
            for (int i = 1; i < N; i++) sum[j] = fma(k[i][j], x[i], sum[j]);
        }
    }

    /// Kx.
    __device__ __forceinline__ void row_sums(const W (&x)[N], W (&sum)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            sum[i] = k[i][0] * x[0];
#pragma unroll
            for (int j = 1; j < N; j++) sum[i] = fma(k[i][j], x[j], sum[i]);
        }
    }

    /// D = (u·vᵀ)∘G, and the sums of D∘K along rows and columns.
    __device__ __forceinline__ void begin(const W* g, bool present, const W (&u)[N], const W (&v)[N], W (&rows)[N],
                                          W (&columns)[N]) {
        if (present) read(d, g);
#pragma unroll
        for (int i = 0; i < N; i++) rows[i] = columns[i] = W(0);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                d[i][j] *= u[i] * v[j];
                rows[i] = fma(d[i][j], k[i][j], rows[i]);
                columns[j] = fma(d[i][j], k[i][j], columns[j]);
            }
        }
    }

    /// D −= rows·vᵀ + before·columnsᵀ, and K·columns.
    __device__ __forceinline__ void subtract(const W (&rows)[N], const W (&before)[N], const W (&v)[N],
                                             const W (&columns)[N], W (&sum)[N]) {
        row_sums(columns, sum);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++) d[i][j] -= fma(rows[i], v[j], before[i] * columns[j]);
    }

    /// diag(u)·K·diag(v).
    __device__ __forceinline__ void store(W* y, bool present, const W (&u)[N], const W (&v)[N]) {
        if (!present) return;
        W p[N][N];
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++) p[i][j] = u[i] * k[i][j] * v[j];
        write(y, p);
    }

    /// D∘K.
    __device__ __forceinline__ void store_cotangent(W* y, bool present) {
        if (!present) return;
        W p[N][N];
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++) p[i][j] = d[i][j] * k[i][j];
        write(y, p);
    }
};

/// N neighbouring lanes have an n×n matrix, n ≤ N: lane i has row i and column i, padded with zeros.
template <typename W, int N> struct Lanes {
    static constexpr int OWNED = 1, THREADS = 32, TOGETHER = 32 / N, WIDTH = pack_width<W>();
    int n, lane;
    W* seen; // three vectors that the whole team sees, 32 elements apart
    W row[N], column[N], d[N];

    __device__ __forceinline__ Lanes(const Task& task, W*) : n(task.n), lane(threadIdx.x % N) {
        SHARED(W, all, [3 * 32]);
        seen = all + member() * N;
    }
    __device__ __forceinline__ static int member() { return threadIdx.x / N; }
    __device__ __forceinline__ bool leads() const { return lane == 0; }
    __device__ __forceinline__ bool owns(int) const { return lane < n; }
    __device__ __forceinline__ bool any(bool p) const {
        const unsigned team = (WHOLE_WARP >> (32 - N)) << (member() * N);
        return (__ballot_sync(WHOLE_WARP, p) & team) != 0;
    }
    __device__ __forceinline__ bool some(bool p) const { return __any_sync(WHOLE_WARP, p) != 0; }

    __device__ __forceinline__ void load(const W* x, bool present) {
        __syncwarp();
        W largest = -infinity<W>();
#pragma unroll
        for (int i = 0; i < N; i++) {
            column[i] = present && owns(0) && i < n ? x[(i64)i * n + lane] : -infinity<W>();
            largest = column[i] > largest ? column[i] : largest;
        }
#pragma unroll
        for (int i = 0; i < N; i++) column[i] = present && owns(0) && i < n ? exp(column[i] - largest) : W(0);
        seen[32 + lane] = largest;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < N; j++)
            row[j] = present && owns(0) && j < n ? exp(x[(i64)lane * n + j] - seen[32 + j]) : W(0);
        __syncwarp();
    }

    /// ⟨a, b⟩, with a chain of sums for each element of a pack.
    __device__ __forceinline__ static W dot(const W (&a)[N], const W* b) {
        W sum[WIDTH];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) sum[e] = W(0);
#pragma unroll
        for (int p = 0; p < N; p += WIDTH) {
            const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(b + p);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sum[e] = fma(a[p + e], pack.at[e], sum[e]);
        }
        return total(sum);
    }
    __device__ __forceinline__ static W total(const W (&sum)[WIDTH]) {
        return WIDTH == 4 ? (sum[0] + sum[1]) + (sum[2] + sum[WIDTH - 1]) : sum[0] + sum[1];
    }

    __device__ __forceinline__ void column_sums(const W (&x)[1], W (&sum)[1]) {
        seen[lane] = x[0];
        __syncwarp();
        sum[0] = dot(column, seen);
    }

    __device__ __forceinline__ void row_sums(const W (&x)[1], W (&sum)[1]) {
        seen[32 + lane] = x[0];
        __syncwarp();
        sum[0] = dot(row, seen + 32);
    }

    __device__ __forceinline__ void begin(const W* g, bool present, const W (&u)[1], const W (&v)[1], W (&rows)[1],
                                          W (&columns)[1]) {
        __syncwarp();
        seen[lane] = u[0];
        seen[32 + lane] = v[0];
        __syncwarp();
        rows[0] = columns[0] = W(0);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const bool inside = present && owns(0) && j < n;
            d[j] = inside ? g[(i64)lane * n + j] * (u[0] * seen[32 + j]) : W(0);
            rows[0] = fma(d[j], row[j], rows[0]);
            if (inside) columns[0] = fma(g[(i64)j * n + lane] * (seen[j] * v[0]), column[j], columns[0]);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void subtract(const W (&rows)[1], const W (&before)[1], const W (&v)[1],
                                             const W (&columns)[1], W (&sum)[1]) {
        seen[32 + lane] = columns[0];
        seen[64 + lane] = v[0];
        __syncwarp();
        W part[WIDTH];
#pragma unroll
        for (int e = 0; e < WIDTH; e++) part[e] = W(0);
#pragma unroll
        for (int p = 0; p < N; p += WIDTH) {
            const Pack<W, WIDTH> column_pack = load_pack<W, WIDTH>(seen + 32 + p);
            const Pack<W, WIDTH> v_pack = load_pack<W, WIDTH>(seen + 64 + p);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) {
                part[e] = fma(row[p + e], column_pack.at[e], part[e]);
                d[p + e] -= fma(rows[0], v_pack.at[e], before[0] * column_pack.at[e]);
            }
        }
        sum[0] = total(part);
    }

    /// By columns, so that neighbouring lanes write neighbouring elements.
    __device__ __forceinline__ void store(W* y, bool present, const W (&u)[1], const W (&v)[1]) {
        __syncwarp();
        seen[lane] = u[0];
        __syncwarp();
        if (present && owns(0)) {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i < n) y[(i64)i * n + lane] = seen[i] * column[i] * v[0];
        }
        __syncwarp();
    }

    __device__ __forceinline__ void store_cotangent(W* y, bool present) {
        if (present && owns(0)) {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (j < n) y[(i64)lane * n + j] = d[j] * row[j];
        }
    }
};

/// A block has an n×n matrix, n ≤ THREADS, in memory: thread t has row t and column t.
template <typename W> struct Block {
    static constexpr int OWNED = 1, THREADS = 256, TOGETHER = 1;
    int n, pitch;
    W *seen_u, *seen_v, *seen_other, *k, *d;

    __device__ __forceinline__ Block(const Task& task, W* area) : n(task.n), pitch(task.n | 1) {
        seen_u = area, seen_v = seen_u + n, seen_other = seen_v + n, k = seen_other + n, d = k + n * pitch;
    }
    __device__ __forceinline__ static int member() { return 0; }
    __device__ __forceinline__ bool leads() const { return threadIdx.x == 0; }
    __device__ __forceinline__ bool owns(int) const { return (int)threadIdx.x < n; }
    __device__ __forceinline__ bool any(bool p) const { return __syncthreads_or(p) != 0; }
    __device__ __forceinline__ bool some(bool p) const { return p; }

    /// Lets the team see a vector, from the next barrier on.
    __device__ __forceinline__ void show(W* seen, const W (&x)[1]) const {
        if (owns(0)) seen[threadIdx.x] = x[0];
    }

    /// f(element of the contiguous matrix, element of K and D, row, column) for all elements, in neighbouring threads.
    template <typename F> __device__ __forceinline__ void each(F f) const {
#pragma unroll 1
        for (int e = threadIdx.x; e < n * n; e += THREADS) f(e, e / n * pitch + e % n, e / n, e % n);
    }

    __device__ __forceinline__ void load(const W* x, bool) {
        __syncthreads();
        W largest = -infinity<W>();
#pragma unroll 4
        for (int i = 0; owns(0) && i < n; i++) {
            const W h = x[i * n + threadIdx.x];
            largest = h > largest ? h : largest;
        }
        const W shown[1] = {largest};
        show(seen_v, shown);
        __syncthreads();
        each([&](int e, int at, int, int j) { k[at] = exp(x[e] - seen_v[j]); });
        __syncthreads();
    }

    __device__ __forceinline__ void column_sums(const W (&x)[1], W (&sum)[1]) {
        show(seen_u, x);
        __syncthreads();
        sum[0] = W(0);
#pragma unroll 4
        for (int i = 0; owns(0) && i < n; i++) sum[0] = fma(k[i * pitch + threadIdx.x], seen_u[i], sum[0]);
    }

    __device__ __forceinline__ void row_sums(const W (&x)[1], W (&sum)[1]) {
        show(seen_v, x);
        __syncthreads();
        sum[0] = W(0);
#pragma unroll 4
        for (int j = 0; owns(0) && j < n; j++) sum[0] = fma(k[threadIdx.x * pitch + j], seen_v[j], sum[0]);
    }

    __device__ __forceinline__ void begin(const W* g, bool, const W (&u)[1], const W (&v)[1], W (&rows)[1],
                                          W (&columns)[1]) {
        __syncthreads();
        show(seen_u, u);
        show(seen_v, v);
        __syncthreads();
        each([&](int e, int at, int i, int j) { d[at] = g[e] * (seen_u[i] * seen_v[j]); });
        __syncthreads();
        rows[0] = columns[0] = W(0);
#pragma unroll 1
        for (int i = 0; owns(0) && i < n; i++) {
            const int in_row = threadIdx.x * pitch + i, in_column = i * pitch + threadIdx.x;
            rows[0] = fma(d[in_row], k[in_row], rows[0]);
            columns[0] = fma(d[in_column], k[in_column], columns[0]);
        }
        __syncthreads();
    }

    __device__ __forceinline__ void subtract(const W (&rows)[1], const W (&before)[1], const W (&v)[1],
                                             const W (&columns)[1], W (&sum)[1]) {
        show(seen_v, columns);
        show(seen_other, v);
        __syncthreads();
        sum[0] = W(0);
#pragma unroll 4
        for (int j = 0; owns(0) && j < n; j++) {
            const int at = threadIdx.x * pitch + j;
            sum[0] = fma(k[at], seen_v[j], sum[0]);
            d[at] -= fma(rows[0], seen_other[j], before[0] * seen_v[j]);
        }
    }

    __device__ __forceinline__ void store(W* y, bool, const W (&u)[1], const W (&v)[1]) {
        __syncthreads();
        show(seen_u, u);
        show(seen_v, v);
        __syncthreads();
        each([&](int e, int at, int i, int j) { y[e] = seen_u[i] * k[at] * seen_v[j]; });
    }

    __device__ __forceinline__ void store_cotangent(W* y, bool) {
        __syncthreads();
        each([&](int e, int at, int, int) { y[e] = d[at] * k[at]; });
    }
};

// ── Scalings ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// How far from 1 a scaling may be.
template <typename W> __device__ __forceinline__ W farthest() { return sizeof(W) == 4 ? W(1e12) : W(1e120); }

/// A matrix as diag(u)·K·diag(v), with its team.
template <typename W, typename Team, bool KEEP> struct Scalings {
    static constexpr int R = Team::OWNED;
    Team team;
    const Task& task;
    W* kept; // this thread's elements of the vectors that are kept
    bool present;
    W u[R], v[R];
    bool running; // whether the next step is made
    bool sound;   // whether every element of u that there has been is trusted
    int steps;

    __device__ __forceinline__ Scalings(const Task& task, W* area, W* kept) : team(task, area), task(task), kept(kept) {}

    __device__ __forceinline__ W& element(int vector, int r) { return kept[(vector * R + r) * Team::THREADS]; }
    __device__ __forceinline__ void keep(int vector, const W (&x)[R]) {
#pragma unroll
        for (int r = 0; r < R; r++) element(vector, r) = x[r];
    }
    /// A vector that was kept; zeros where there is none.
    __device__ __forceinline__ void recall(W (&x)[R], int vector, bool there) {
#pragma unroll
        for (int r = 0; r < R; r++) x[r] = there ? element(vector, r) : W(0);
    }

    __device__ __forceinline__ void start(const W* x, bool there) {
        present = there;
        sound = true;
        steps = 0;
        team.load(x, there);
#pragma unroll
        for (int r = 0; r < R; r++) u[r] = W(present && team.owns(r)), v[r] = W(0);
        if (KEEP) keep(checkpoint(task.segment, 0), u);
    }

    /// Whether a column sum of the matrix as it is, v∘(Kᵀu), is off by more than the error, and none is a NaN.
    __device__ __forceinline__ bool goes_on(const W (&sum)[R]) const {
        bool off = false, lost = !sound;
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (!team.owns(r)) continue;
            const W error = fabs(v[r] * sum[r] - W(1));
            off = off || (double)error > task.error;
            lost = lost || is_nan(error);
        }
        const bool wanted = team.any(off);
        return !team.any(lost) && wanted;
    }

    /// One step: v = 1/(Kᵀu), u = 1/(Kv). False if no team makes it.
    __device__ __forceinline__ bool step(bool waits) {
        W sum[R];
        team.column_sums(u, sum);
        if (waits) running = goes_on(sum) && running;
        if (!team.some(running)) return false;
#pragma unroll
        for (int r = 0; r < R; r++)
            if (running && team.owns(r)) v[r] = W(1) / sum[r];
        team.row_sums(v, sum);
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (!running || !team.owns(r)) continue;
            u[r] = W(1) / sum[r];
            sound = sound && u[r] >= W(1) / farthest<W>() && u[r] <= farthest<W>();
        }
        return true;
    }

    /// Makes the steps from the start of segment s to `end`, if `wanted`, and counts those behind the ones counted.
    __device__ __forceinline__ void iterate(int s, int end, bool wanted, bool waits) {
        if (!team.some(wanted)) return;
        running = wanted;
        if (KEEP) recall(u, checkpoint(task.segment, s), wanted);
        int p = 0; // the step in the segment
#pragma unroll 1
        for (int t = s * task.segment; t < end && step(waits && t > 0); t++) {
            if (!running) continue;
            steps = max(steps, t + 1);
            if (!KEEP) continue;
            keep(2 * p, v);
            keep(2 * p + 1, u);
            if (++p < task.segment) continue;
            p = 0, s++;
            if (t + 1 < task.at_most) keep(checkpoint(task.segment, s), u);
        }
    }

    /// Takes from D what the step at p of segment s takes.
    __device__ __forceinline__ void step_back(int s, int p, bool here, W (&rows)[R], W (&columns)[R]) {
        W made[R], scaled[R], before[R], sum[R]; // v of this step; u of this step; u before
        recall(made, 2 * p, here);
        recall(scaled, 2 * p + 1, here);
        recall(before, p == 0 ? checkpoint(task.segment, s) : 2 * p - 1, here);
        // The rows, Y = diag(u)·K·diag(v).
#pragma unroll
        for (int r = 0; r < R; r++) scaled[r] *= rows[r];
        team.column_sums(scaled, sum);
        // The columns, Y = diag(u before)·K·diag(v).
        W taken[R];
#pragma unroll
        for (int r = 0; r < R; r++) taken[r] = here ? (columns[r] - sum[r] * made[r]) * made[r] : W(0);
        team.subtract(scaled, before, made, taken, sum);
#pragma unroll
        for (int r = 0; r < R; r++) {
            rows[r] = here ? -(before[r] * sum[r]) : rows[r];
            columns[r] = here ? W(0) : columns[r];
        }
    }

    /// The cotangent of H, as D∘K. Where a half step has made Y = X/s, it has made ln Y = ln X − ln s, and takes from the
    /// cotangent D of ln Y its sums along the axis, times Y. As every Y is diag(u)·K·diag(v), the sums before the step
    /// are those after it, less a product of K and a vector; D itself gathers what each step takes from it.
    ///
    /// The first turn of the loop makes all steps, the others those of their segment, again.
    __device__ __forceinline__ void pull(const W* g) {
        const int segment = task.segment, last = (task.at_most - 1) / segment;
        W rows[R], columns[R];
#pragma unroll 1
        for (int s = last; s >= 0; s--) {
            const bool first = s == last;
            iterate(first ? 0 : s, first ? task.at_most : (s + 1) * segment,
                    present && (first || (s + 1) * segment < steps), first && task.waits);
            if (first) team.begin(g, present, u, v, rows, columns);
#pragma unroll 1
            for (int p = segment - 1; p >= 0; p--) {
                // Nothing flows to a matrix in the steps that it did not make.
                const bool here = present && s * segment + p < steps;
                if (team.some(here)) step_back(s, p, here, rows, columns);
            }
        }
    }
};

/// All matrices: y, or the cotangent of x if there is one of y, and the numbers of steps. `wild[m]` says whether
/// logarithms must do it again. y and `steps` may be null.
template <typename W, typename Team, bool BACKWARD>
__device__ __forceinline__ void scale(W* y, i64* steps, const W* x, const W* g, bool8* wild, W* scratch,
                                      const Task& task) {
    DYNAMIC_SHARED(W, shared);
    W* own = scratch + (i64)blockIdx.x * task.scratch;
    W* area = task.area_shared ? shared : own;
    W* kept = (task.kept_shared ? shared : own) + (task.kept_shared == task.area_shared ? task.area : 0);
    Scalings<W, Team, BACKWARD> scalings(task, area, kept + threadIdx.x);
    const i64 size = (i64)task.n * task.n;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * Team::TOGETHER; first < task.matrices; first += (i64)gridDim.x * Team::TOGETHER) {
        const i64 m = first + Team::member();
        const bool present = m < task.matrices;
        scalings.start(x + m * size, present);
        if (BACKWARD) {
            scalings.pull(g + m * size);
            scalings.team.store_cotangent(y + m * size, present);
        } else {
            scalings.iterate(0, task.at_most, present, task.waits);
            if (y) scalings.team.store(y + m * size, present, scalings.u, scalings.v);
        }
        const bool lost = scalings.team.any(!scalings.sound);
        if (present && scalings.team.leads()) {
            if (steps) steps[m] = scalings.steps;
            wild[m] = lost;
        }
    }
}

// ── Logarithms ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Which way sums go: element i of sum j is `j·next + i·term` elements behind the first.
struct Along {
    i64 next, term;
};

/// A matrix as exp(Hᵢⱼ + fᵢ + gⱼ), by a block, everything in memory.
template <typename W, bool KEEP> struct Logarithms {
    static constexpr int THREADS = 128;
    const Task& task;
    const Fault& fault;
    i64 number; // among the matrices
    const W* h;
    int n;
    double *next, *kept, *d; // the next g, vectors that are kept, and D

    __device__ __forceinline__ Logarithms(const Task& task, const Fault& fault, i64 number, const W* h, double* memory)
        : task(task), fault(fault), number(number), h(h), n(task.n), next(memory), kept(memory + n),
          d(memory + task.area) {}

    __device__ __forceinline__ double* vector(int number) { return kept + (i64)number * n; }
    __device__ __forceinline__ Along columns() const { return Along{1, n}; }
    __device__ __forceinline__ Along rows() const { return Along{n, 1}; }

    /// f(place, element of exp(H + f·1ᵀ + 1·gᵀ)) for all elements, a warp for each row.
    template <typename F> __device__ __forceinline__ void each(const double* f, const double* g, F use) const {
#pragma unroll 1
        for (int i = threadIdx.x / 32; i < n; i += THREADS / 32) {
            const i64 row = (i64)i * n;
#pragma unroll 1
            for (int j = threadIdx.x % 32; j < n; j += 32) use(row + j, exp((double)h[row + j] + f[i] + g[j]));
        }
    }

    /// y = −ln Σ exp(H + x), a warp for each sum, its lanes along it.
    __device__ __forceinline__ void half_step(double* y, const double* x, Along along) {
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int j = threadIdx.x / 32; j < n; j += THREADS / 32) {
            const W* from = h + j * along.next;
            double largest = -infinity<double>(), sum = 0.0;
#pragma unroll 1
            for (int i = lane; i < n; i += 32) largest = larger(largest, (double)from[i * along.term] + x[i]);
            largest = reduce_warp(largest, Largest());
            if (lane == 0 && largest == -infinity<double>()) fault.note(number);
#pragma unroll 1
            for (int i = lane; i < n; i += 32) sum += exp((double)from[i * along.term] + x[i] - largest);
            sum = reduce_warp(sum, Sum());
            if (lane == 0) y[j] = -(largest + log(sum));
        }
        __syncthreads();
    }

    __device__ __forceinline__ void copy(double* to, const double* from) {
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += THREADS) to[i] = from[i];
        __syncthreads();
    }

    /// The logarithm of a column sum is the difference of the old g and the next.
    __device__ __forceinline__ bool goes_on(const double* g) {
        bool off = false, lost = false;
#pragma unroll 1
        for (int j = threadIdx.x; j < n; j += THREADS) {
            const double error = fabs(expm1(g[j] - next[j]));
            off = off || error > task.error;
            lost = lost || is_nan(error);
        }
        const bool wanted = __syncthreads_or(off) != 0;
        return __syncthreads_or(lost) == 0 && wanted;
    }

    /// Before the first step.
    __device__ __forceinline__ void start() {
        double* f = vector(KEEP ? checkpoint(task.segment, 0) : 1);
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += THREADS) f[i] = 0.0;
        __syncthreads();
    }

    /// Makes the steps from the start of segment s to `end`. Returns how many there have been; f and g are the last ones'.
    __device__ __forceinline__ int iterate(int s, int end, bool waits, double*& f, double*& g) {
        f = vector(KEEP ? checkpoint(task.segment, s) : 1);
        g = vector(0);
        int p = 0;
#pragma unroll 1
        for (int t = s * task.segment; t < end; t++) {
            half_step(next, f, columns());
            if (waits && t > 0 && !goes_on(g)) return t;
            g = vector(2 * p);
            copy(g, next);
            f = vector(2 * p + 1);
            half_step(f, g, rows());
            if (++p < task.segment) continue;
            p = 0, s++;
            if (KEEP && t + 1 < task.at_most) copy(vector(checkpoint(task.segment, s)), f);
        }
        return end;
    }

    /// D −= Y∘(sums of D), a warp for each sum. x is what belongs to a sum of f and g, the other to its terms.
    __device__ __forceinline__ void take(const double* x, const double* terms, Along along) {
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int j = threadIdx.x / 32; j < n; j += THREADS / 32) {
            const i64 from = j * along.next;
            double sum = 0.0;
#pragma unroll 1
            for (int i = lane; i < n; i += 32) sum += d[from + i * along.term];
            sum = reduce_warp(sum, Sum());
#pragma unroll 1
            for (int i = lane; i < n; i += 32) {
                const i64 at = from + i * along.term;
                d[at] -= exp((double)h[at] + terms[i] + x[j]) * sum;
            }
        }
        __syncthreads();
    }

    /// The cotangent of H: from that of ln P, G∘P, each half step takes its sums along the axis, times its result. The first
    /// turn of the loop makes all steps, the others those of their segment, again. Returns how many there have been.
    __device__ __forceinline__ int pull(W* y, const W* cotangent) {
        const int segment = task.segment, last = (task.at_most - 1) / segment;
        int steps = task.at_most;
#pragma unroll 1
        for (int s = last; s >= 0; s--) {
            const bool first = s == last;
            double *f, *g;
            if (first || (s + 1) * segment < steps) {
                const int made = iterate(first ? 0 : s, first ? task.at_most : (s + 1) * segment, first && task.waits, f, g);
                if (first) steps = made;
            }
            if (first) {
                each(f, g, [&](i64 at, double p) { d[at] = p * (double)cotangent[at]; });
                __syncthreads();
            }
#pragma unroll 1
            for (int p = segment - 1; p >= 0; p--) {
                if (s * segment + p >= steps) continue;
                take(vector(2 * p + 1), vector(2 * p), rows());
                take(vector(2 * p), vector(p == 0 ? checkpoint(segment, s) : 2 * p - 1), columns());
            }
        }
#pragma unroll 1
        for (i64 at = threadIdx.x; at < (i64)n * n; at += THREADS) y[at] = (W)d[at];
        return steps;
    }
};

/// The matrices that are marked, a block for each 32.
template <typename W, bool BACKWARD>
__device__ __forceinline__ void logarithms(W* y, i64* steps, const W* x, const W* g, const bool8* wild, double* scratch,
                                           const Task& task, const Fault& fault) {
    SHARED(unsigned, marked, [1]);
    const i64 size = (i64)task.n * task.n;
#pragma unroll 1
    for (i64 first = (i64)blockIdx.x * 32; first < task.matrices; first += (i64)gridDim.x * 32) {
        if (threadIdx.x < 32) {
            const i64 m = first + threadIdx.x;
            const unsigned all = __ballot_sync(WHOLE_WARP, m < task.matrices && wild[m]);
            if (threadIdx.x == 0) marked[0] = all;
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned left = marked[0]; left != 0; left &= left - 1) {
            const i64 m = first + (__ffs((int)left) - 1);
            Logarithms<W, BACKWARD> matrix(task, fault, m, x + m * size, scratch + (i64)blockIdx.x * task.scratch);
            matrix.start();
            int made;
            if (BACKWARD) {
                made = matrix.pull(y + m * size, g + m * size);
            } else {
                double *f, *v;
                made = matrix.iterate(0, task.at_most, task.waits, f, v);
                if (y) matrix.each(f, v, [&](i64 at, double p) { y[m * size + at] = (W)p; });
            }
            if (steps && threadIdx.x == 0) steps[m] = made;
            __syncthreads();
        }
        __syncthreads();
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// bf16 has none: logits are cast to f32, and the result is rounded once.

#define TEAM_ENTRIES(name, dtype, W, ...)                                                                              \
    KERNEL((__VA_ARGS__::THREADS), sinkhorn_##name##_##dtype,                                                          \
           (W * y, i64 * steps, const W* x, const W* g, bool8* wild, W* scratch, Task task)) {                         \
        scale<W, __VA_ARGS__, false>(y, steps, x, g, wild, scratch, task);                                             \
    }                                                                                                                  \
    KERNEL((__VA_ARGS__::THREADS), sinkhorn_backward_##name##_##dtype,                                                 \
           (W * y, i64 * steps, const W* x, const W* g, bool8* wild, W* scratch, Task task)) {                         \
        scale<W, __VA_ARGS__, true>(y, steps, x, g, wild, scratch, task);                                              \
    }
#define DTYPE_ENTRIES(dtype, W)                                                                                        \
    TEAM_ENTRIES(alone_1, dtype, W, Alone<W, 1>)                                                                       \
    TEAM_ENTRIES(alone_2, dtype, W, Alone<W, 2>)                                                                       \
    TEAM_ENTRIES(alone_3, dtype, W, Alone<W, 3>)                                                                       \
    TEAM_ENTRIES(alone_4, dtype, W, Alone<W, 4>)                                                                       \
    TEAM_ENTRIES(lanes_8, dtype, W, Lanes<W, 8>)                                                                       \
    TEAM_ENTRIES(lanes_16, dtype, W, Lanes<W, 16>)                                                                     \
    TEAM_ENTRIES(block, dtype, W, Block<W>)                                                                            \
    KERNEL(128, sinkhorn_logarithms_##dtype,                                                                           \
           (W * y, i64 * steps, const W* x, const W* g, const bool8* wild, double* scratch, Task task, Fault fault)) { \
        logarithms<W, false>(y, steps, x, g, wild, scratch, task, fault);                                              \
    }                                                                                                                  \
    KERNEL(128, sinkhorn_backward_logarithms_##dtype,                                                                  \
           (W * y, i64 * steps, const W* x, const W* g, const bool8* wild, double* scratch, Task task, Fault fault)) { \
        logarithms<W, true>(y, steps, x, g, wild, scratch, task, fault);                                               \
    }
DTYPE_ENTRIES(f32, float)
// In double, 32 rows and columns and the gradient would not fit the registers.
TEAM_ENTRIES(lanes_32, f32, float, Lanes<float, 32>)
DTYPE_ENTRIES(f64, double)
