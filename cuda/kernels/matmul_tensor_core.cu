// Matrix products on tensor cores, by warp-wide instructions of sm_80 and later: bf16, summed in float and rounded
// once, and f32 with factors rounded to 10 bits of fraction (tf32), for those who ask for it.
//
// What bounds them, on an H200: `mma.sync` reaches some three fifths of the 990 TFLOP/s of the data sheet (the rest
// needs the instructions of matmul_wgmma.cu), that is 1250 multiplications a cycle and multiprocessor. Feeding them is
// the whole problem:
//
//   shared memory to registers   128 bytes a cycle. A warp with a tile of R×C reads 2·(R + C) bytes for R·C
//                                multiplications: with 32×32, 0.125 bytes each, a limit of 1024; with 64×64, 0.0625 and
//                                2048. So a warp takes 64×64, 128 registers of sums a thread.
//   cache to shared memory       if the cache gives 6 TB/s, 25 bytes a cycle and multiprocessor. A block with a tile of
//                                R×C fetches 2·(R + C) bytes for R·C multiplications: 0.031 each with 128×128, a limit
//                                of 800; 0.023 with 128×256, a limit of 1060 or 510 TFLOP/s. So the largest tile is as
//                                large as registers allow.
//   memory to cache              4.8 TB/s. Blocks that run together work on a band of 8 rows of tiles, so an element
//                                that one fetched is in the cache for the others; n×n matrices offer n/3
//                                operations a byte.
//
//   1. One stage                 copy, barrier, multiply, barrier: either the memory or the tensor cores wait.
//   2. `cp.async`, 3–4 stages    copies pass by the registers and are 2–3 stages ahead: at 128×256, up to 144 KiB are
//                                under way, where 6 TB/s times 1 µs of latency over 132 multiprocessors ask for 45. One
//                                barrier a stage.
//   3. `ldmatrix`, swizzled      a row of a stage is 128 bytes, its eight 16-byte chunks exchanged by XOR with the
//                                row's number: eight rows of one column lie in 32 different banks, and so do eight
//                                chunks of one row, without padding.
//   4. Fragments a step ahead    the next step's `ldmatrix` are issued before this step's products, which need not wait
//                                for them.
//   5. Tiles by size             128×256, 128×128 or 64×64, by the size of the result; where even the smallest are few,
//                                long sums are cut in parts as in matmul.cu.
//   6. Sums by shared memory     a warp writes rows of 128 bytes of the result, 4 neighbours a thread, and what is added to a
//                                sum (bias, residual) is read in the same order: m·n elements more for a residual, where
//                                an addition of its own would move three times as many.
//
// Either axis of a factor may be the contiguous one: `ldmatrix` transposes 16-bit elements on the way. Along the sum a
// stage has 64 terms of bf16 or 32 of tf32, and all tiles multiply them in the same order, so the size of the tile
// changes no bit. Where a factor ends, zeros are filled in by the copies. A kernel's name says which axis is
// contiguous: `kk` for a[i, ·] and b[·, j], `kn` for a[i, ·] and b[p, ·], `mk` and `mn` for a transposed.
// Floats come along the sum, `kk`, alone.
#include "matmul_stage.cuh"

// ── Fragments ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Four matrices of 8 vectors by one chunk of terms, as the instructions want them: number q begins
/// 8·(q / OUTER_STRIDE % 2) vectors and q / (2 / OUTER_STRIDE) % 2 chunks further on. The left factor counts along its
/// vectors first (OUTER_STRIDE 1), the right factor along the terms (2).
template <bool ALONG_TERMS, int OUTER_STRIDE>
__device__ __forceinline__ void load_fragment(unsigned (&r)[4], unsigned char* panel, int outer, int term, bf16) {
    const int lane = threadIdx.x % 32, q = lane / 8;
    outer += q / OUTER_STRIDE % 2 * 8 + (ALONG_TERMS ? lane % 8 : 0);
    term += q / (2 / OUTER_STRIDE) % 2 * 8 + (ALONG_TERMS ? 0 : lane % 8);
    const unsigned char* row = chunk_at<bf16, ALONG_TERMS>(panel, outer, term);
    if (ALONG_TERMS) load_matrix_x4(r, row);
    else load_matrix_x4_transposed(r, row);
}

/// The same for floats, rounded to tf32: each is as wide as two 16-bit elements, which come together, but are not
/// transposed.
template <bool ALONG_TERMS, int OUTER_STRIDE>
__device__ __forceinline__ void load_fragment(unsigned (&r)[4], unsigned char* panel, int outer, int term, float) {
    static_assert(ALONG_TERMS, "only 16-bit elements are transposed on the way");
    const int lane = threadIdx.x % 32, q = lane / 8;
    outer += q / OUTER_STRIDE % 2 * 8 + lane % 8;
    term += q / (2 / OUTER_STRIDE) % 2 * 4;
    load_matrix_x4(r, chunk_at<float, true>(panel, outer, term));
#pragma unroll
    for (int i = 0; i < 4; i++) r[i] = round_to_tf32(__uint_as_float(r[i]));
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bf16) {
    mma_bf16_16x8x16(sum, a, b0, b1);
}
__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float) {
    mma_tf32_16x8x8(sum, a, b0, b1);
}

/// What a warp multiplies in one step of two chunks of terms: its vectors of both factors.
template <typename T, bool A_TERMS, bool B_TERMS, int ROWS, int COLUMNS> struct Fragments {
    unsigned a[ROWS / 16][4], b[COLUMNS / 16][4];

    __device__ __forceinline__ void load(unsigned char* left, unsigned char* right, int row, int column, int term) {
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++) load_fragment<A_TERMS, 1>(a[i], left, row + i * 16, term, T());
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++) load_fragment<B_TERMS, 2>(b[j], right, column + j * 16, term, T());
    }

    __device__ __forceinline__ void multiply_into(float (&sum)[ROWS / 16][COLUMNS / 8][4]) const {
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++)
                multiply(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T());
    }
};

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// ROWS×COLUMNS sums by warps of WARP_ROWS×WARP_COLUMNS. The dynamic shared memory has STAGES stages of
/// 128·(ROWS + COLUMNS) bytes, and afterwards the sums.
template <typename T, bool A_TERMS, bool B_TERMS, int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int STAGES>
__device__ void tiled(void* y, const MatrixProduct& p, const Finish& finish) {
    constexpr int ACROSS = COLUMNS / WARP_COLUMNS, THREADS = ROWS / WARP_ROWS * ACROSS * 32;
    constexpr int TERMS = row_of<T>(), STEP = 2 * chunk_of<T>(), STEPS = TERMS / STEP;
    constexpr int LEFT = ROWS * 128, STAGE = LEFT + COLUMNS * 128;
    DYNAMIC_SHARED(unsigned char, memory);

    const Tile tile = tile_of<ROWS, COLUMNS>(p, blockIdx.x);
    const View<T> a(p.a, tile.a, tile.row, p.m, tile.last), b(p.b, tile.b, tile.column, p.n, tile.last);
    const int stages = (tile.last - tile.first + TERMS - 1) / TERMS;
    const auto copy_stage = [&](int stage) {
        if (stage < stages) {
            unsigned char* to = memory + stage % STAGES * STAGE;
            copy_panel<T, A_TERMS, ROWS, THREADS>(to, a, tile.first + stage * TERMS);
            copy_panel<T, B_TERMS, COLUMNS, THREADS>(to + LEFT, b, tile.first + stage * TERMS);
        }
        copy_async_commit(); // also without copies, so that the number of groups is that of the stages
    };

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / ACROSS * WARP_ROWS, column = warp % ACROSS * WARP_COLUMNS;
    float sum[WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};
    Fragments<T, A_TERMS, B_TERMS, WARP_ROWS, WARP_COLUMNS> fragments[2];
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) copy_stage(stage);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // the stage is there for all, and the one before is free
        copy_stage(stage + STAGES - 1);
        unsigned char* left = memory + stage % STAGES * STAGE;
        fragments[0].load(left, left + LEFT, row, column, 0);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step + 1 < STEPS) fragments[(step + 1) % 2].load(left, left + LEFT, row, column, (step + 1) * STEP);
            fragments[step % 2].multiply_into(sum);
        }
    }
    copy_async_wait<0>();
    __syncthreads();

    float* sums = reinterpret_cast<float*>(memory);
#pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++)
#pragma unroll
        for (int j = 0; j < WARP_COLUMNS / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                store_pack(sum_at<COLUMNS>(sums, row + i * 16 + half * 8 + lane / 4, column + j * 8 + lane % 4 * 2),
                           Pack<float, 2>{{sum[i][j][half * 2], sum[i][j][half * 2 + 1]}});
    __syncthreads();
    put_tile<T, ROWS, COLUMNS, THREADS>(y, p, finish, tile, sums);
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define ENTRY(dtype, T, threads, size, layout, A_TERMS, B_TERMS, ...)                                                  \
    KERNEL(threads, tensor_core_##size##_##layout##_##dtype, (void* y, MatrixProduct p, Finish finish)) {              \
        tiled<T, A_TERMS, B_TERMS, __VA_ARGS__>(y, p, finish);                                                         \
    }
#define LAYOUTS(dtype, T, threads, size, ...)                                                                          \
    ENTRY(dtype, T, threads, size, kk, true, true, __VA_ARGS__)                                                        \
    ENTRY(dtype, T, threads, size, kn, true, false, __VA_ARGS__)                                                       \
    ENTRY(dtype, T, threads, size, mk, false, true, __VA_ARGS__)                                                       \
    ENTRY(dtype, T, threads, size, mn, false, false, __VA_ARGS__)
LAYOUTS(bf16, bf16, 256, 128x256, 128, 256, 64, 64, 4)
LAYOUTS(bf16, bf16, 128, 128x128, 128, 128, 64, 64, 3)
LAYOUTS(bf16, bf16, 128, 64x64, 64, 64, 32, 32, 3)
ENTRY(f32, float, 128, 128x128, kk, true, true, 128, 128, 64, 64, 3)
// As if it had 512 threads, or it takes so many registers that a multiprocessor has room for three blocks and not four.
ENTRY(f32, float, 512, 64x64, kk, true, true, 64, 64, 32, 32, 3)
