// Large products of bf16 by the instructions of sm_90a that multiply for four warps at once, straight from shared
// memory.
//
// A group of four warps makes 64×256 sums, two groups the 128×256 of a block: 128 registers of sums a thread. What
// matmul_tensor_core.cu spends on fragments is gone: no `ldmatrix`, no registers for factors, and 4 instructions of a
// group for a stage where a warp needed 160. A group reads 2·(64 + 256) bytes of shared memory for 64·256
// multiplications, 0.039 bytes each, 80 bytes a cycle at the full rate of 2048. The full rate would take 48 bytes a
// cycle and multiprocessor from the cache; if that gives 25 (6 TB/s), it is the bound, at some 510 TFLOP/s, unless
// blocks that run together read the same elements at the same time. (Sharing them for certain takes clusters and bulk
// copies, which this kernel does without.)
//
//   1. Wait for every product             the tensor cores stand still while the next stage's copies are started and
//                                         waited for.
//   2. One stage of products under way    a group issues the products of a stage and waits for those of the one before,
//                                         so that the barrier and the copies in between run beside them. The stage that
//                                         is overwritten is two behind: of 4 stages, 2 are on their way, 96 KiB.
//
// The layout of a stage is that of matmul_stage.cuh, which the instructions know as rows of 128 bytes with swizzled
// chunks; either axis of a factor may be the contiguous one. Terms are multiplied in the order of
// matmul_tensor_core.cu, 16 at a time. Sums leave by way of shared memory as there, and get bias, activation and residual
// on the way: of a residual m·n elements are read.
#include "matmul_stage.cuh"

#ifdef HAS_WGMMA

/// Where 16 terms of 64 or more vectors lie, the first at the start of a panel, and whether their rows run along the
/// vectors.
template <bool ALONG_TERMS> __device__ __forceinline__ unsigned long long descriptor(unsigned char* panel, int step) {
    constexpr int EIGHT_ROWS = 8 * 128, PIECE = 64 * 128;
    return matrix_descriptor(panel + step * (ALONG_TERMS ? 32 : 16 * 128), PIECE, EIGHT_ROWS, ROWS_128);
}

/// 128×256 sums. The dynamic shared memory has STAGES stages of 48 KiB, and 1 KiB because they begin at a multiple of
/// that; afterwards the sums.
template <bool A_TERMS, bool B_TERMS> __device__ void tiled(void* y, const MatrixProduct& p, const Finish& finish) {
    constexpr int ROWS = 128, COLUMNS = 256, THREADS = 256, STAGES = 4, AHEAD = STAGES - 2;
    constexpr int TERMS = row_of<bf16>(), LEFT = ROWS * 128, STAGE = LEFT + COLUMNS * 128;
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char* memory = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;

    const Tile tile = tile_of<ROWS, COLUMNS>(p, blockIdx.x);
    const View<bf16> a(p.a, tile.a, tile.row, p.m, tile.last), b(p.b, tile.b, tile.column, p.n, tile.last);
    const int stages = (tile.last - tile.first + TERMS - 1) / TERMS;
    const auto copy_stage = [&](int stage) {
        if (stage < stages) {
            unsigned char* to = memory + stage % STAGES * STAGE;
            copy_panel<bf16, A_TERMS, ROWS, THREADS>(to, a, tile.first + stage * TERMS);
            copy_panel<bf16, B_TERMS, COLUMNS, THREADS>(to + LEFT, b, tile.first + stage * TERMS);
        }
        copy_async_commit(); // also without copies, so that the number of groups is that of the stages
    };

    const int group = threadIdx.x / 128;
    float sum[COLUMNS / 2] = {};
#pragma unroll
    for (int stage = 0; stage < AHEAD; stage++) copy_stage(stage);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        copy_async_wait<AHEAD - 1>();
        fence_async_proxy();
        __syncthreads(); // the stage is there for all, and nobody multiplies the one before the last any more
        unsigned char* left = memory + stage % STAGES * STAGE;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < TERMS / 16; step++)
            wgmma_bf16<COLUMNS, !A_TERMS, !B_TERMS>(sum, descriptor<A_TERMS>(left + group * 64 * 128, step),
                                                    descriptor<B_TERMS>(left + LEFT, step));
        wgmma_commit();
        copy_stage(stage + AHEAD);
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    copy_async_wait<0>();
    __syncthreads();

    float* sums = reinterpret_cast<float*>(memory);
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            store_pack(sum_at<COLUMNS>(sums, row + half * 8, j * 8 + lane % 4 * 2),
                       Pack<float, 2>{{sum[j * 4 + half * 2], sum[j * 4 + half * 2 + 1]}});
    __syncthreads();
    put_tile<bf16, ROWS, COLUMNS, THREADS>(y, p, finish, tile, sums);
}

#define ENTRY(layout, A_TERMS, B_TERMS)                                                                                \
    KERNEL(256, wgmma_128x256_##layout##_bf16, (void* y, MatrixProduct p, Finish finish)) {                            \
        tiled<A_TERMS, B_TERMS>(y, p, finish);                                                                         \
    }
ENTRY(kk, true, true)
ENTRY(kn, true, false)
ENTRY(mk, false, true)
ENTRY(mn, false, false)

#endif
