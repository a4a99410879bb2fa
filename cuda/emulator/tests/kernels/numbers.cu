// Kernels whose results are known: sums of rows, a product of matrices, and what a block tells of its threads.
#include "ptx.cuh"

#define SUM_ROWS(suffix, T)                                                                                            \
    KERNEL(256, sum_rows_##suffix, (const T* x, typename Wide<T>::type* y, int columns)) {                             \
        SHARED(typename Wide<T>::type, partial, [8]);                                                                  \
        typename Wide<T>::type sum = 0;                                                                                \
        for (int i = threadIdx.x; i < columns; i += 256) sum += widen(x[(i64)blockIdx.x * columns + i]);               \
        sum = reduce_block<256>(sum, Sum(), partial);                                                                  \
        if (threadIdx.x == 0) y[blockIdx.x] = sum;                                                                     \
    }
FOR_NUMBERS(SUM_ROWS)

/// c (m×n) = a (m×k) · b (k×n), row-major, in tiles of 16×16.
KERNEL(256, product, (const float* a, const float* b, float* c, int m, int n, int k)) {
    SHARED(float, ta, [16][16]);
    SHARED(float, tb, [16][16]);
    const int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int first = 0; first < k; first += 16) {
        const int ka = first + threadIdx.x, kb = first + threadIdx.y;
        ta[threadIdx.y][threadIdx.x] = row < m && ka < k ? a[row * k + ka] : 0.0f;
        tb[threadIdx.y][threadIdx.x] = column < n && kb < k ? b[kb * n + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum = fma(ta[threadIdx.y][i], tb[i][threadIdx.x], sum);
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

/// y = the transpose of x (32×32), through shared memory in rows of TRANSPOSE_PITCH.
KERNEL(1024, transpose, (const float* x, float* y)) {
    SHARED(float, tile, [32][TRANSPOSE_PITCH]);
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y]; // the column
}

/// y = x, every `stride`-th element.
KERNEL(32, strided, (const float* x, float* y, int stride)) { y[threadIdx.x] = x[threadIdx.x * stride]; }

/// Votes and shuffles: of lane l, in y[l], y[32 + l], ….
KERNEL(32, votes, (int* y)) {
    const int lane = threadIdx.x;
    y[lane] = __ballot_sync(WHOLE_WARP, lane % 3 == 0);
    y[32 + lane] = __any_sync(WHOLE_WARP, lane == 7) + 2 * __all_sync(WHOLE_WARP, lane < 32);
    y[64 + lane] = __shfl_up_sync(WHOLE_WARP, lane, 3);
    y[96 + lane] = __shfl_down_sync(WHOLE_WARP, lane, 5, 8);
    y[128 + lane] = __shfl_sync(WHOLE_WARP, lane, 35, 16);
    y[160 + lane] = __shfl_xor_sync(WHOLE_WARP, lane, 9);
    y[192 + lane] = __syncthreads_count(lane < 5) + 100 * __syncthreads_or(lane == 3);
    y[192 + lane] += 200 * __syncthreads_and(lane > 0);
    // The halves of a warp may meet apart.
    if (lane < 16) y[224 + lane] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    else y[224 + lane] = __shfl_xor_sync(0xffff0000u, lane, 2);
}

/// The last block to come adds up what all blocks have left.
KERNEL(32, last_block, (const float* x, float* parts, unsigned* arrived, float* y)) {
    SHARED(bool, is_last, [1]);
    const float part = reduce_warp(x[global_thread()], Sum());
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = part;
#ifndef WITHOUT_FENCE
        __threadfence();
#endif
        is_last[0] = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last[0]) return;
    __threadfence();
    float sum = 0;
    for (int i = threadIdx.x; i < gridDim.x; i += 32) sum += parts[i]; // what other blocks wrote
    sum = reduce_warp(sum, Sum());
    if (threadIdx.x == 0) y[0] = sum;
}
