// Connections between n streams of C channels: x' = A·X + bᵀ ⊗ F(a·X) for each token, with a (n), b (n) and A (n×n) computed
// from v = vec(X), nC numbers, by way of v·φ/r, r = √(mean(v²) + ε), φ [nC, m], whose columns come in several tensors.
//
// What bounds them: memory, but for the products with φ in bf16. A token of n = 4 streams is 4C elements; for each of them
// there is a handful of operations, but 2m = 48 in `project` and `phi_backward`, which read 2 bytes for them: 25 and 24
// operations a byte, where an H200 has time for 14 outside its tensor units (matmul.cu). So these take 1.8 and 1.7 times
// what their bytes would; in f32, 12 operations a byte, memory is the bound, and in `stream`, 9 in bf16, too. Elements
// moved per token, without coefficients (n² + 2n numbers), and additions and multiplications for each of the nC numbers:
//
//   forward                        reads           writes        n = 4     operations     n = 4
//   project        y = v·φ/r, r    nC                              4C      2m + 2            50
//   read           a·X             nC               C              5C      2                  2
//   write          A·X + bᵀ⊗F      (n + 1)C         nC             9C      2n + 2            10      18C together; from
//                                                                                                    primitives 34C
//   backward, of what was written, G, and of what was read, H
//   write_backward F̄, Ā, b̄         (2n + 1)C        C             10C      2n + 4            12
//   read_backward  ā               (n + 1)C                        5C      2                  2
//   stream         X̄               (2n + 1)C        nC            13C      2m + 2n + 4       60
//   phi_backward   φ̄               nC                              4C      2m                48      32C together
//   cotangent      X̄ without φ     (n + 1)C         nC             9C      2n + 2            10
//   recompute      X of L blocks   (n + L)C         LnC           (4 + 5L)C; by `write` it would be 9LC. For plans, where
//                                                                 L states come back one after the other
//
//   1. A kernel for each product and sum        every intermediate stream is written and read: 34C forward.
//   2. One pass for each row above              a thread has 16 bytes of every stream that it needs, and of the result; n is
//                                               known to the compiler (2, 4, 8), so that they are in registers. X̄ gathers its
//                                               shares, by A, by a and by φ, before it is rounded once.
//   3. φ passes through shared memory           in `project` a block has tokens of all its warps, so that what it reads of φ
//                                               serves all of them; in `stream` and `phi_backward` a thread keeps its rows of
//                                               φ or φ̄ in registers, and goes through tokens.
//   4. Rows of φ by packs of columns            a column at a time, 32 lanes would touch 32 sectors for each; parts of φ̄ lie
//                                               turned, so that lanes write neighbours, and are turned back when summed.
//
// Sums over channels or tokens are of fixed shape. Products and sums are in float (double for f64), coefficients are float.
#include "prelude.cuh"

/// Tokens of n streams of C channels, and packs of 16 bytes to a stream.
struct Streams {
    i64 tokens, channels;
    Divisor packs;
    int n;
    int vector; // whether every stream of every operand begins at a multiple of 16 bytes

    __device__ __forceinline__ i64 items() const { return tokens * packs.d; }
};

/// N, or n where the compiler does not know it.
template <int N> __device__ __forceinline__ int count(const Streams& s) { return N > 0 ? N : s.n; }
/// How many of something a thread may hold: one, where the compiler does not know the number.
template <int N> constexpr int held() { return N > 0 ? N : 1; }

/// Calls f(token, first channel) for all packs, by all threads.
template <typename T, typename F> __device__ __forceinline__ void each_pack(const Streams& s, F f) {
#pragma unroll 1
    for (i64 i = global_thread(); i < s.items(); i += global_threads()) {
        const unsigned token = s.packs.quotient((unsigned)i);
        f((i64)token, ((i64)i - (i64)token * s.packs.d) * pack_width<T>());
    }
}

// ── Read and write ──────────────────────────────────────────────────────────────────────────────────────────────────

/// y = a·X.
template <typename T, int N, typename W = typename Wide<T>::type>
__device__ __forceinline__ void read(T* y, const T* x, const W* a, const Streams& s) {
    const int n = count<N>(s);
    each_pack<T>(s, [&](i64 token, i64 first) {
        Values<T> sum = {};
#pragma unroll
        for (int i = 0; i < n; i++) {
            const Values<T> values = read_pack(x + (token * n + i) * s.channels, first, s.channels, s.vector);
            const W by = a[token * n + i];
#pragma unroll
            for (int k = 0; k < pack_width<T>(); k++) sum.at[k] = fma(by, values.at[k], sum.at[k]);
        }
        write_pack(y + token * s.channels, first, s.channels, s.vector, sum);
    });
}

/// Stream i of A·X + bᵀ⊗F, from packs of the streams and of F, or, TURNED, of Aᵀ·X + bᵀ⊗F. A and b are the token's; without
/// one of X and F the other's share is left. TURNED, the two are shares of a cotangent: each is rounded, then they are added,
/// so that their sum has the bits of shares that were computed one by one.
template <typename T, int N, bool TURNED, typename W = typename Wide<T>::type>
__device__ __forceinline__ Values<T> written(int i, const Values<T> (&x)[N], const Values<T>& f, const W* mix,
                                             const W* write, bool has_x, bool has_f) {
    Values<T> sum = {};
    if (has_x) {
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int k = 0; k < pack_width<T>(); k++)
                sum.at[k] = fma(mix[TURNED ? j * N + i : i * N + j], x[j].at[k], sum.at[k]);
    }
    if (has_f) {
#pragma unroll
        for (int k = 0; k < pack_width<T>(); k++)
            sum.at[k] = TURNED ? sum.at[k] + write[i] * f.at[k] : fma(write[i], f.at[k], sum.at[k]);
    }
    return sum;
}

/// y = A·X + bᵀ⊗F, or, TURNED, Aᵀ·X + bᵀ⊗F, where X or F may be missing.
template <typename T, int N, bool TURNED, typename W = typename Wide<T>::type>
__device__ __forceinline__ void write(T* y, const T* x, const T* f, const W* mix, const W* write, const Streams& s) {
    const int n = count<N>(s);
    const bool has_x = !TURNED || x != nullptr, has_f = !TURNED || f != nullptr;
    each_pack<T>(s, [&](i64 token, i64 first) {
        Values<T> branch = {};
        if (has_f) branch = read_pack(f + token * s.channels, first, s.channels, s.vector);
        const T* from = x + token * n * s.channels;
        T* to = y + token * n * s.channels;
        if constexpr (N > 0) {
            Values<T> streams[N] = {};
            if (has_x) {
#pragma unroll
                for (int j = 0; j < N; j++)
                    streams[j] = read_pack(from + j * s.channels, first, s.channels, s.vector);
            }
#pragma unroll
            for (int i = 0; i < N; i++)
                write_pack(to + i * s.channels, first, s.channels, s.vector,
                           written<T, N, TURNED>(i, streams, branch, mix + token * N * N, write + token * N, has_x, has_f));
        } else {
#pragma unroll 1
            for (int i = 0; i < n; i++) {
                Values<T> sum = {};
#pragma unroll 1
                for (int j = 0; j < (has_x ? n : 0); j++) {
                    const Values<T> stream = read_pack(from + j * s.channels, first, s.channels, s.vector);
                    const W by = mix[token * n * n + (TURNED ? j * n + i : i * n + j)];
#pragma unroll
                    for (int k = 0; k < pack_width<T>(); k++) sum.at[k] = fma(by, stream.at[k], sum.at[k]);
                }
                if (has_f) {
                    const W by = write[token * n + i];
#pragma unroll
                    for (int k = 0; k < pack_width<T>(); k++)
                        sum.at[k] = TURNED ? sum.at[k] + by * branch.at[k] : fma(by, branch.at[k], sum.at[k]);
                }
                write_pack(to + i * s.channels, first, s.channels, s.vector, sum);
            }
        }
    });
}

// ── Several blocks again ────────────────────────────────────────────────────────────────────────────────────────────

constexpr int MOST_BLOCKS = 8;

/// What blocks have left behind: F, A and b of each, and where the stream behind it is to be written.
struct Blocks {
    const void *f[MOST_BLOCKS], *mix[MOST_BLOCKS], *write[MOST_BLOCKS];
    void* y[MOST_BLOCKS];
    int count;
    int padding;
};

/// The streams behind each of some blocks, from the one in front of the first. They stay in registers, rounded as `write`
/// rounds them, so that they have its bits.
template <typename T, int N, typename W = typename Wide<T>::type>
__device__ __forceinline__ void recompute(const T* x, const Blocks& blocks, const Streams& s) {
    each_pack<T>(s, [&](i64 token, i64 first) {
        Values<T> streams[N];
        const i64 begin = token * N * s.channels;
#pragma unroll
        for (int j = 0; j < N; j++) streams[j] = read_pack(x + begin + j * s.channels, first, s.channels, s.vector);
#pragma unroll 1
        for (int l = 0; l < blocks.count; l++) {
            const T* f = static_cast<const T*>(blocks.f[l]) + token * s.channels;
            const Values<T> branch = read_pack(f, first, s.channels, s.vector);
            const W* mix = static_cast<const W*>(blocks.mix[l]) + token * N * N;
            const W* write = static_cast<const W*>(blocks.write[l]) + token * N;
            Values<T> next[N];
#pragma unroll
            for (int i = 0; i < N; i++) next[i] = written<T, N, false>(i, streams, branch, mix, write, true, true);
#pragma unroll
            for (int i = 0; i < N; i++) {
                T* to = static_cast<T*>(blocks.y[l]) + begin + i * s.channels;
                write_pack(to, first, s.channels, s.vector, next[i]);
#pragma unroll
                for (int k = 0; k < pack_width<T>(); k++) streams[i].at[k] = widen(narrow<T>(next[i].at[k]));
            }
        }
    });
}

// ── Their cotangents ────────────────────────────────────────────────────────────────────────────────────────────────

/// The sums of V values over a warp, V a power of two of at most 32: lane l gets that of value l·V/32. Half of the values
/// go to the other half of the lanes, and so on: V − 1 shuffles and some, where V reductions would take 5V.
template <int V, typename W> __device__ __forceinline__ W sum_each(W (&value)[V]) {
    int step = 16;
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2, step /= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int v = 0; v < half; v++) {
            const W given = upper ? value[v] : value[v + half];
            value[v] = (upper ? value[v + half] : value[v]) + __shfl_xor_sync(WHOLE_WARP, given, step);
        }
    }
    for (; step > 0; step /= 2) value[0] += __shfl_xor_sync(WHOLE_WARP, value[0], step);
    return value[0];
}

/// A power of two that is not smaller, and at most 32.
constexpr int sums_together(int values) {
    int v = 1;
    while (v < values && v < 32) v *= 2;
    return v;
}

/// ⟨x, y⟩ over channels, by a warp.
template <typename T, typename W = typename Wide<T>::type>
__device__ __forceinline__ W inner(const T* x, const T* y, const Streams& s) {
    W sum = 0;
#pragma unroll 1
    for (i64 first = threadIdx.x % 32 * pack_width<T>(); first < s.channels; first += 32 * pack_width<T>()) {
        const Values<T> a = read_pack(x, first, s.channels, s.vector), b = read_pack(y, first, s.channels, s.vector);
#pragma unroll
        for (int k = 0; k < pack_width<T>(); k++) sum = fma(a.at[k], b.at[k], sum);
    }
    return reduce_warp(sum, Sum());
}

/// F̄ = b·G, Ā = G·Xᵀ and b̄ = G·F, from the cotangent G of what was written. A warp for each token.
template <typename T, int N, typename W = typename Wide<T>::type>
__device__ __forceinline__ void write_backward(T* df, W* dmix, W* dwrite, const T* g, const T* x, const T* f,
                                               const W* write, const Streams& s) {
    constexpr int WIDTH = pack_width<T>(), TOGETHER = sums_together(N * N + N), VALUES = N * N + N + TOGETHER;
    const int n = count<N>(s), lane = threadIdx.x % 32;
#pragma unroll 1
    for (i64 token = global_thread() / 32; token < s.tokens; token += global_threads() / 32) {
        const i64 begin = token * n * s.channels;
        // Row by row of G·[X; F]ᵀ: Ā and b̄ side by side.
        W sums[VALUES / TOGETHER * TOGETHER] = {};
#pragma unroll 1
        for (i64 first = lane * WIDTH; first < s.channels; first += 32 * WIDTH) {
            const Values<T> branch = read_pack(f + token * s.channels, first, s.channels, s.vector);
            Values<T> streams[held<N>()], back = {};
#pragma unroll
            for (int j = 0; j < N; j++) streams[j] = read_pack(x + begin + j * s.channels, first, s.channels, s.vector);
#pragma unroll
            for (int i = 0; i < n; i++) {
                const Values<T> given = read_pack(g + begin + i * s.channels, first, s.channels, s.vector);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    back.at[k] = fma(write[token * n + i], given.at[k], back.at[k]);
                    if constexpr (N > 0) {
#pragma unroll
                        for (int j = 0; j < N; j++)
                            sums[i * (N + 1) + j] = fma(given.at[k], streams[j].at[k], sums[i * (N + 1) + j]);
                        sums[i * (N + 1) + N] = fma(given.at[k], branch.at[k], sums[i * (N + 1) + N]);
                    }
                }
            }
            write_pack(df + token * s.channels, first, s.channels, s.vector, back);
        }
        if constexpr (N > 0) {
#pragma unroll
            for (int from = 0; from < N * N + N; from += TOGETHER) {
                W part[TOGETHER];
#pragma unroll
                for (int v = 0; v < TOGETHER; v++) part[v] = sums[from + v];
                const W sum = sum_each(part);
                const int number = from + lane / (32 / TOGETHER), i = number / (N + 1), j = number % (N + 1);
                if (lane % (32 / TOGETHER) == 0 && number < N * N + N)
                    (j < N ? dmix[(token * N + i) * N + j] : dwrite[token * N + i]) = sum;
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < n; i++) {
                const T* given = g + begin + i * s.channels;
#pragma unroll 1
                for (int j = 0; j <= n; j++) {
                    const W sum = inner<T>(given, j < n ? x + begin + j * s.channels : f + token * s.channels, s);
                    if (lane == 0) (j < n ? dmix[(token * n + i) * n + j] : dwrite[token * n + i]) = sum;
                }
            }
        }
    }
}

/// ā = X·H, from the cotangent H of what was read. A warp for each token.
template <typename T, int N, typename W = typename Wide<T>::type>
__device__ __forceinline__ void read_backward(W* da, const T* h, const T* x, const Streams& s) {
    constexpr int WIDTH = pack_width<T>();
    const int n = count<N>(s), lane = threadIdx.x % 32;
#pragma unroll 1
    for (i64 token = global_thread() / 32; token < s.tokens; token += global_threads() / 32) {
        const T *streams = x + token * n * s.channels, *given = h + token * s.channels;
        if constexpr (N > 0) {
            W sums[N] = {};
#pragma unroll 1
            for (i64 first = lane * WIDTH; first < s.channels; first += 32 * WIDTH) {
                const Values<T> back = read_pack(given, first, s.channels, s.vector);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    const Values<T> stream = read_pack(streams + i * s.channels, first, s.channels, s.vector);
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) sums[i] = fma(stream.at[k], back.at[k], sums[i]);
                }
            }
            const W sum = sum_each(sums);
            if (lane % (32 / N) == 0) da[token * N + lane / (32 / N)] = sum;
        } else {
#pragma unroll 1
            for (int i = 0; i < n; i++) {
                const W sum = inner<T>(streams + i * s.channels, given, s);
                if (lane == 0) da[token * n + i] = sum;
            }
        }
    }
}

// ── Projection ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Tokens of k = nC numbers, and m columns of φ.
struct Projection {
    i64 tokens, k;
    int m;
    int parts;  // into how many the sums over k or tokens are split
    i64 part;   // how many numbers or tokens one of them has
    int vector;     // whether runs of v are aligned
    int vector_phi; // whether packs of φ are, each of one tensor
};

/// The most tensors that columns come in.
constexpr int MOST_PHI = 4;

/// φ₁, φ₂, … [k, mᵢ], as if they stood side by side. Those that there are not have no columns and begin behind the last.
template <typename W> struct Columns {
    W* at[MOST_PHI];
    int first[MOST_PHI], width[MOST_PHI];

    /// Where column c of a row lies.
    __device__ __forceinline__ W* place(i64 row, int c) const {
        W* base = at[0];
        int begin = 0, columns = width[0];
#pragma unroll
        for (int i = 1; i < MOST_PHI; i++)
            if (c >= first[i]) base = at[i], begin = first[i], columns = width[i];
        return base + row * columns + (c - begin);
    }
};

/// WIDTH columns of a row from `c` on; 0 from `end` on. `vector` promises that packs are aligned, each in one tensor.
template <int WIDTH, typename W>
__device__ __forceinline__ Pack<W, WIDTH> read_columns(const Columns<const W>& phi, i64 row, int c, int end, bool vector) {
    Pack<W, WIDTH> pack = {};
    if (vector && c + WIDTH <= end) return load_pack<W, WIDTH>(phi.place(row, c));
#pragma unroll
    for (int k = 0; k < WIDTH; k++)
        if (c + k < end) pack.at[k] = *phi.place(row, c + k);
    return pack;
}

/// WIDTH elements from `at` on; 0 from `end` on. `vector` promises that such runs are aligned.
template <int WIDTH, typename T>
__device__ __forceinline__ Pack<T, WIDTH> read_run(const T* row, i64 at, i64 end, bool vector) {
    Pack<T, WIDTH> run = {};
    if (vector && at + WIDTH <= end) return load_pack<T, WIDTH>(row + at);
#pragma unroll
    for (int k = 0; k < WIDTH; k++)
        if (at + k < end) run.at[k] = row[at + k];
    return run;
}

/// Threads of a block of `project`.
constexpr int PROJECT_THREADS = 256;

/// partial[part][token] = the part's sums v·φ, m of them, and v·v. A warp has TOKENS tokens; its lanes share out the rows
/// of φ, RUN neighbouring ones each. A block has as many tokens as its warps, and M columns; blocks along y have the others,
/// along z the other parts. While it multiplies, what comes next of v and φ is on its way to registers.
template <typename T, int M, int TOKENS, typename W = typename Wide<T>::type>
__device__ __forceinline__ void project(W* partial, const T* x, const Columns<const W>& phi, const Projection& p) {
    constexpr int RUN = pack_width<W>(), ROWS = 32 * RUN, EACH = ROWS * M / PROJECT_THREADS, WIDTH = pack_width<W>();
    // An odd number of packs a row, and two packs more behind every 32 rows: neither 8 lanes that read a pack of every
    // RUN-th row nor 8 that write one of every row meet a bank twice.
    constexpr int PITCH = M + (M / WIDTH % 2 == 0 ? WIDTH : 0), RUNS = 32 * PITCH + 2 * WIDTH;
    SHARED(W, rows, [RUN * RUNS]);
    const int lane = threadIdx.x % 32, column = blockIdx.y * M;
    const i64 token = ((i64)blockIdx.x * (PROJECT_THREADS / 32) + threadIdx.x / 32) * TOKENS;
    const i64 begin = blockIdx.z * p.part, end = begin + p.part < p.k ? begin + p.part : p.k;
    // This thread's row of those in shared memory, and the first of its columns.
    const int row = threadIdx.x % ROWS, share = threadIdx.x / ROWS * EACH;
    Pack<T, RUN> v[TOKENS];
    Pack<W, WIDTH> next[EACH / WIDTH];
    W sums[TOKENS * M] = {}, squares[TOKENS] = {};
    const auto fetch = [&](i64 first) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            v[t] = read_run<RUN>(x + (token + t) * p.k, first + RUN * lane, token + t < p.tokens ? end : 0, p.vector);
#pragma unroll
        for (int c = 0; c < EACH; c += WIDTH) {
            const int begin = column + share + c, columns = first + row < end ? p.m : 0;
            next[c / WIDTH] = read_columns<WIDTH>(phi, first + row, begin, columns, p.vector_phi);
        }
    };
    fetch(begin);
#pragma unroll 1
    for (i64 first = begin; first < end; first += ROWS) {
        __syncthreads();
        W* to = &rows[row % RUN * RUNS + row / RUN * PITCH + share];
#pragma unroll
        for (int c = 0; c < EACH; c += WIDTH) store_pack(to + c, next[c / WIDTH]);
        __syncthreads();
        Pack<T, RUN> now[TOKENS];
#pragma unroll
        for (int t = 0; t < TOKENS; t++) now[t] = v[t];
        fetch(first + ROWS);
#pragma unroll
        for (int r = 0; r < RUN; r++) {
            W factor[TOKENS];
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                factor[t] = widen(now[t].at[r]);
                squares[t] = fma(factor[t], factor[t], squares[t]);
            }
#pragma unroll
            for (int c = 0; c < M; c += WIDTH) {
                const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(&rows[r * RUNS + lane * PITCH + c]);
#pragma unroll
                for (int t = 0; t < TOKENS; t++)
#pragma unroll
                    for (int e = 0; e < WIDTH; e++)
                        sums[t * M + c + e] = fma(factor[t], pack.at[e], sums[t * M + c + e]);
            }
        }
    }
    W* to = partial + blockIdx.z * p.tokens * (p.m + 1);
#pragma unroll
    for (int from = 0; from < TOKENS * M; from += 8) {
        W part[8];
#pragma unroll
        for (int v = 0; v < 8; v++) part[v] = sums[from + v];
        const W sum = sum_each(part);
        const int t = from / M, c = column + from % M + lane / 4;
        if (lane % 4 == 0 && token + t < p.tokens && c < p.m) to[(token + t) * (p.m + 1) + c] = sum;
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const W sum = reduce_warp(squares[t], Sum());
        if (lane == 0 && blockIdx.y == 0 && token + t < p.tokens) to[(token + t) * (p.m + 1) + p.m] = sum;
    }
}

/// y = v·φ/r and, behind it, r, from the parts, a thread for each number.
template <typename W>
__device__ __forceinline__ void normalise(W* y, const W* partial, double eps, const Projection& p) {
#pragma unroll 1
    for (i64 i = global_thread(); i < p.tokens * (p.m + 1); i += global_threads()) {
        const i64 token = i / (p.m + 1);
        const int c = (int)(i - token * (p.m + 1));
        W sum = 0, squares = 0;
#pragma unroll 1
        for (int part = 0; part < p.parts; part++) {
            const W* of_token = partial + (part * p.tokens + token) * (p.m + 1);
            sum += of_token[c];
            squares += of_token[p.m];
        }
        const W root = sqrt(squares / W(p.k) + W(eps));
        y[i] = c < p.m ? sum / root : root;
    }
}

// ── Its cotangents ──────────────────────────────────────────────────────────────────────────────────────────────────

/// q = p̄/r and s = (r̄ − ⟨p̄, p⟩/r)/(nC·r) of each token, from y = (p, r) and its cotangent: that of v is φ·q + s·v, that of φ
/// the sum of v ⊗ q.
template <typename W>
__device__ __forceinline__ void scale_cotangent(W* q, W* s, const W* g, const W* y, const Projection& p) {
#pragma unroll 1
    for (i64 token = global_thread(); token < p.tokens; token += global_threads()) {
        const W *given = g + token * (p.m + 1), *of_token = y + token * (p.m + 1);
        const W r = of_token[p.m];
        W along = 0;
#pragma unroll 1
        for (int c = 0; c < p.m; c++) {
            along = fma(given[c], of_token[c], along);
            q[token * p.m + c] = given[c] / r;
        }
        s[token] = (given[p.m] - along / r) / (W(p.k) * r);
    }
}

/// Tokens whose coefficients a block has in shared memory at a time, and those that it goes through.
constexpr int STAGED = 32, PASSED = 128;

/// How many neighbouring channels a thread of `stream` and `phi_backward` has: their rows of φ are in its registers.
template <typename W> constexpr int channels_of_thread() { return sizeof(W) == 4 ? 2 : 1; }

/// X̄ = AᵀG + aᵀ⊗H + (s·X + φ·q), where G or H may be missing, for φ of at most M columns. Each share is rounded before it is
/// added, as for `cotangent`. Warp i of a block has stream i, of 32 threads' channels, and goes through tokens; G, which all
/// warps read, is in the cache for all but the first.
template <typename T, int N, int M, typename W = typename Wide<T>::type>
__device__ __forceinline__ void stream(T* dx, const T* g, const T* h, const T* x, const W* a, const W* mix,
                                       const Columns<const W>& phi, const W* q, const W* scale, const Streams& s, int m,
                                       bool pairs, bool packs) {
    constexpr int CHANNELS = channels_of_thread<W>(), WIDTH = pack_width<W>();
    SHARED(W, staged_q, [STAGED][M]);
    SHARED(W, staged_mix, [STAGED][N * N]);
    SHARED(W, staged_read, [STAGED][N]);
    SHARED(W, staged_scale, [STAGED]);
    const int i = threadIdx.x / 32;
    // Neighbouring blocks have the channels of one run of tokens.
    const unsigned across = (unsigned)((s.channels + 32 * CHANNELS - 1) / (32 * CHANNELS)), run = blockIdx.x / across;
    const i64 channel = ((i64)(blockIdx.x - run * across) * 32 + threadIdx.x % 32) * CHANNELS;
    W rows[CHANNELS][M];
#pragma unroll
    for (int e = 0; e < CHANNELS; e++)
#pragma unroll
        for (int c = 0; c < M; c += WIDTH) {
            const Pack<W, WIDTH> pack =
                read_columns<WIDTH>(phi, i * s.channels + channel + e, c, channel + e < s.channels ? m : 0, packs);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) rows[e][c + k] = pack.at[k];
        }
    const i64 begin = (i64)run * PASSED, end = begin + PASSED < s.tokens ? begin + PASSED : s.tokens;
#pragma unroll 1
    for (i64 first = begin; first < end; first += STAGED) {
        const int tokens = end - first < STAGED ? (int)(end - first) : STAGED;
        __syncthreads();
#pragma unroll 1
        for (int e = threadIdx.x; e < tokens * M; e += 32 * N)
            staged_q[e / M][e % M] = e % M < m ? q[(first + e / M) * m + e % M] : W(0);
        if (g != nullptr) {
#pragma unroll 1
            for (int e = threadIdx.x; e < tokens * N * N; e += 32 * N)
                staged_mix[e / (N * N)][e % (N * N)] = mix[first * N * N + e];
        }
        if (h != nullptr) {
#pragma unroll 1
            for (int e = threadIdx.x; e < tokens * N; e += 32 * N) staged_read[e / N][e % N] = a[first * N + e];
        }
#pragma unroll 1
        for (int e = threadIdx.x; e < tokens; e += 32 * N) staged_scale[e] = scale[first + e];
        __syncthreads();
#pragma unroll 1
        for (int t = 0; t < tokens; t++) {
            const i64 token = first + t, row = (token * N + i) * s.channels;
            W sum[CHANNELS] = {}, own[CHANNELS];
            const auto read = [&](const T* run) { return read_run<CHANNELS>(run, channel, s.channels, pairs); };
            if (g != nullptr) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const Pack<T, CHANNELS> pack = read(g + (token * N + j) * s.channels);
#pragma unroll
                    for (int e = 0; e < CHANNELS; e++) sum[e] = fma(staged_mix[t][j * N + i], widen(pack.at[e]), sum[e]);
                }
            }
            if (h != nullptr) {
                const Pack<T, CHANNELS> pack = read(h + token * s.channels);
#pragma unroll
                for (int e = 0; e < CHANNELS; e++) sum[e] += staged_read[t][i] * widen(pack.at[e]);
            }
            const Pack<T, CHANNELS> v = read(x + row);
#pragma unroll
            for (int e = 0; e < CHANNELS; e++) own[e] = staged_scale[t] * widen(v.at[e]);
#pragma unroll
            for (int c = 0; c < M; c += WIDTH) {
                const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(&staged_q[t][c]);
#pragma unroll
                for (int k = 0; k < WIDTH; k++)
#pragma unroll
                    for (int e = 0; e < CHANNELS; e++) own[e] = fma(rows[e][c + k], pack.at[k], own[e]);
            }
#pragma unroll
            for (int e = 0; e < CHANNELS; e++) sum[e] += own[e];
            if (pairs && channel + CHANNELS <= s.channels) {
                Pack<T, CHANNELS> pack;
#pragma unroll
                for (int e = 0; e < CHANNELS; e++) pack.at[e] = narrow<T>(sum[e]);
                store_pack(dx + row + channel, pack);
            } else {
#pragma unroll
                for (int e = 0; e < CHANNELS; e++)
                    if (channel + e < s.channels) dx[row + channel + e] = narrow<T>(sum[e]);
            }
        }
    }
}

/// The same for any n and m, an element a thread and turn.
template <typename T, typename W = typename Wide<T>::type>
__device__ __forceinline__ void stream_of_any(T* dx, const T* g, const T* h, const T* x, const W* a, const W* mix,
                                              const Columns<const W>& phi, const W* q, const W* scale, const Streams& s,
                                              int m) {
    const int n = s.n;
#pragma unroll 1
    for (i64 at = global_thread(); at < s.tokens * n * s.channels; at += global_threads()) {
        const i64 row = at / s.channels, token = row / n, channel = at - row * s.channels;
        const int i = (int)(row - token * n);
        W sum = 0, own = scale[token] * widen(x[at]);
#pragma unroll 1
        for (int j = 0; j < (g != nullptr ? n : 0); j++)
            sum = fma(mix[(token * n + j) * n + i], widen(g[(token * n + j) * s.channels + channel]), sum);
        if (h != nullptr) sum += a[row] * widen(h[token * s.channels + channel]);
#pragma unroll
        for (int part = 0; part < MOST_PHI; part++) {
            const W* from = phi.at[part] + (i * s.channels + channel) * phi.width[part];
            const W* by = q + token * m + phi.first[part];
#pragma unroll 1
            for (int c = 0; c < phi.width[part]; c++) own = fma(from[c], by[c], own);
        }
        sum += own;
        dx[at] = narrow<T>(sum);
    }
}

/// partial[part] = the sum of q ⊗ v over the part's tokens [m, k], so that neighbouring threads write neighbours. A thread has
/// M rows of it and a few columns, and goes through tokens; blocks along y have the other parts, along z the other rows.
template <typename T, int M, typename W = typename Wide<T>::type>
__device__ __forceinline__ void phi_backward(W* partial, const T* x, const W* q, const Projection& p) {
    constexpr int CHANNELS = channels_of_thread<W>(), WIDTH = pack_width<W>();
    SHARED(W, staged_q, [STAGED][M]);
    const int column = blockIdx.z * M;
    const i64 at = global_thread() * CHANNELS;
    const i64 begin = blockIdx.y * p.part, end = begin + p.part < p.tokens ? begin + p.part : p.tokens;
    W sums[CHANNELS][M] = {};
#pragma unroll 1
    for (i64 first = begin; first < end; first += STAGED) {
        const int tokens = end - first < STAGED ? (int)(end - first) : STAGED;
        __syncthreads();
#pragma unroll 1
        for (int e = threadIdx.x; e < tokens * M; e += blockDim.x) {
            const int c = column + e % M;
            staged_q[e / M][e % M] = c < p.m ? q[(first + e / M) * p.m + c] : W(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int t = 0; t < tokens; t++) {
            const Pack<T, CHANNELS> v = read_run<CHANNELS>(x + (first + t) * p.k, at, p.k, p.vector);
#pragma unroll
            for (int c = 0; c < M; c += WIDTH) {
                const Pack<W, WIDTH> pack = load_pack<W, WIDTH>(&staged_q[t][c]);
#pragma unroll
                for (int k = 0; k < WIDTH; k++)
#pragma unroll
                    for (int e = 0; e < CHANNELS; e++)
                        sums[e][c + k] = fma(widen(v.at[e]), pack.at[k], sums[e][c + k]);
            }
        }
    }
#pragma unroll
    for (int c = 0; c < M; c++) {
        if (column + c >= p.m) break;
        W* to = partial + (blockIdx.y * p.m + column + c) * p.k + at;
#pragma unroll
        for (int e = 0; e < CHANNELS; e++)
            if (at + e < p.k) to[e] = sums[e][c];
    }
}

/// φ̄ = the sum of the parts, turned back. A thread has one row and WIDTH columns at a time.
template <int WIDTH, typename W>
__device__ __forceinline__ void sum_columns(const Columns<W>& dphi, const W* partial, const Projection& p) {
#pragma unroll 1
    for (i64 i = global_thread(); i < p.m / WIDTH * p.k; i += global_threads()) {
        const int column = (int)(i / p.k) * WIDTH;
        const i64 row = i - column / WIDTH * p.k;
        Pack<W, WIDTH> sum = {};
#pragma unroll 1
        for (int part = 0; part < p.parts; part++)
#pragma unroll
            for (int c = 0; c < WIDTH; c++) {
                const W more = partial[((i64)part * p.m + column + c) * p.k + row];
                sum.at[c] = part == 0 ? more : sum.at[c] + more;
            }
        store_pack(dphi.place(row, column), sum);
    }
}

/// By packs of columns where these are aligned.
template <typename W>
__device__ __forceinline__ void sum_parts(const Columns<W>& dphi, const W* partial, const Projection& p) {
    if (p.vector_phi)
        sum_columns<pack_width<W>()>(dphi, partial, p);
    else
        sum_columns<1>(dphi, partial, p);
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define STREAM_ENTRIES(dtype, T, W, n, N)                                                                              \
    KERNEL(256, connection_read_##n##_##dtype, (T * y, const T* x, const W* a, Streams s)) { read<T, N>(y, x, a, s); } \
    KERNEL(256, connection_write_##n##_##dtype,                                                                        \
           (T * y, const T* x, const T* f, const W* mix, const W* by, Streams s)) {                                    \
        write<T, N, false>(y, x, f, mix, by, s);                                                                       \
    }                                                                                                                  \
    KERNEL(256, connection_cotangent_##n##_##dtype,                                                                    \
           (T * dx, const T* g, const T* h, const W* mix, const W* a, Streams s)) {                                    \
        write<T, N, true>(dx, g, h, mix, a, s);                                                                        \
    }                                                                                                                  \
    KERNEL(128, connection_write_backward_##n##_##dtype,                                                               \
           (T * df, W * dmix, W * dwrite, const T* g, const T* x, const T* f, const W* by, Streams s)) {               \
        write_backward<T, N>(df, dmix, dwrite, g, x, f, by, s);                                                        \
    }                                                                                                                  \
    KERNEL(128, connection_read_backward_##n##_##dtype, (W * da, const T* h, const T* x, Streams s)) {                 \
        read_backward<T, N>(da, h, x, s);                                                                              \
    }
#define RECOMPUTE_ENTRIES(dtype, T, W, n)                                                                              \
    KERNEL(256, connection_recompute_##n##_##dtype, (const T* x, Blocks blocks, Streams s)) {                          \
        recompute<T, n>(x, blocks, s);                                                                                 \
    }
#define GATHER_ENTRIES(dtype, T, W, n, m)                                                                              \
    KERNEL(32 * n, connection_stream_##n##_##m##_##dtype,                                                              \
           (T * dx, const T* g, const T* h, const T* x, const W* a, const W* mix, Columns<const W> phi, const W* q,    \
            const W* scale, Streams s, int columns, int pairs, int packs)) {                                           \
        stream<T, n, m>(dx, g, h, x, a, mix, phi, q, scale, s, columns, pairs, packs);                                 \
    }
#define PHI_ENTRIES(dtype, T, W, m)                                                                                    \
    KERNEL(128, connection_phi_backward_##m##_##dtype, (W * partial, const T* x, const W* q, Projection p)) {          \
        phi_backward<T, m>(partial, x, q, p);                                                                          \
    }
#define PROJECT_ENTRIES(dtype, T, W, m, TOKENS)                                                                        \
    KERNEL(PROJECT_THREADS, connection_project_##m##_##dtype,                                                          \
           (W * partial, const T* x, Columns<const W> phi, Projection p)) {                                            \
        project<T, m, TOKENS>(partial, x, phi, p);                                                                     \
    }
#define DTYPE_ENTRIES(dtype, T, W, few)                                                                                \
    STREAM_ENTRIES(dtype, T, W, 2, 2)                                                                                  \
    STREAM_ENTRIES(dtype, T, W, 4, 4)                                                                                  \
    STREAM_ENTRIES(dtype, T, W, 8, 8)                                                                                  \
    STREAM_ENTRIES(dtype, T, W, any, 0)                                                                                \
    RECOMPUTE_ENTRIES(dtype, T, W, 2)                                                                                  \
    RECOMPUTE_ENTRIES(dtype, T, W, 4)                                                                                  \
    RECOMPUTE_ENTRIES(dtype, T, W, 8)                                                                                  \
    GATHER_ENTRIES(dtype, T, W, 2, 8)                                                                                  \
    GATHER_ENTRIES(dtype, T, W, 4, 24)                                                                                 \
    GATHER_ENTRIES(dtype, T, W, 4, 32)                                                                                 \
    GATHER_ENTRIES(dtype, T, W, 8, 80)                                                                                 \
    KERNEL(256, connection_stream_any_##dtype,                                                                         \
           (T * dx, const T* g, const T* h, const T* x, const W* a, const W* mix, Columns<const W> phi, const W* q,    \
            const W* scale, Streams s, int columns, int, int)) {                                                       \
        stream_of_any<T>(dx, g, h, x, a, mix, phi, q, scale, s, columns);                                              \
    }                                                                                                                  \
    PHI_ENTRIES(dtype, T, W, 8)                                                                                        \
    PHI_ENTRIES(dtype, T, W, 24)                                                                                       \
    PHI_ENTRIES(dtype, T, W, 40)                                                                                       \
    PROJECT_ENTRIES(dtype, T, W, 8, 8 / few)                                                                           \
    PROJECT_ENTRIES(dtype, T, W, 24, 4 / few)                                                                          \
    PROJECT_ENTRIES(dtype, T, W, 40, 2 / few)
#define NUMBER_ENTRIES(dtype, W)                                                                                       \
    KERNEL(256, connection_normalise_##dtype, (W * y, const W* partial, double eps, Projection p)) {                   \
        normalise<W>(y, partial, eps, p);                                                                              \
    }                                                                                                                  \
    KERNEL(256, connection_scale_##dtype, (W * q, W * s, const W* g, const W* y, Projection p)) {                      \
        scale_cotangent<W>(q, s, g, y, p);                                                                             \
    }                                                                                                                  \
    KERNEL(256, connection_sum_##dtype, (Columns<W> dphi, const W* partial, Projection p)) {                           \
        sum_parts<W>(dphi, partial, p);                                                                                \
    }

DTYPE_ENTRIES(f32, float, float, 1)
DTYPE_ENTRIES(f64, double, double, 2)
DTYPE_ENTRIES(bf16, bf16, float, 1)
NUMBER_ENTRIES(f32, float)
NUMBER_ENTRIES(f64, double)
