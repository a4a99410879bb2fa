// Sums over the rows of a matrix, one for each column, in two stages of a fixed shape: slabs of rows, then the sum of the
// slabs. Sums are kept in double.
//
// A block of 256 threads has a slab, and of its columns a tile. It stands in lines of LANES threads beside each other, each
// with a pack of columns; the lines take the slab's rows in turn.
#pragma once
#include "prelude.cuh"

template <int LANES> constexpr int lines() { return 256 / LANES; }

/// Where the columns of this thread begin.
template <int LANES, int WIDTH> __device__ __forceinline__ i64 first_column() {
    return ((i64)blockIdx.x * LANES + threadIdx.x % LANES) * WIDTH;
}

/// Writes the sum of a slab.
struct ToSlab {
    double* slab;
    __device__ __forceinline__ void operator()(i64 column, double sum) const { slab[column] = sum; }
};

/// Adds up what the lines of a block have found for its columns, and calls store(column, sum) for each. Where several lines
/// share a warp, its lanes add in a tree first.
template <int LANES, int WIDTH, typename Store>
__device__ __forceinline__ void add_up_lines(const double (&sums)[WIDTH], i64 columns, Store store) {
    constexpr int WARPS = 8;
    // An odd multiple of 16/WIDTH, if need be: then the threads that read 16 neighbouring columns meet no bank twice.
    constexpr int PITCH = LANES % (32 / WIDTH) == 0 ? LANES + 16 / WIDTH : LANES;
    SHARED(double, partial, [WARPS][WIDTH][PITCH]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        double sum = sums[k];
#pragma unroll
        for (int step = 16; step >= LANES; step /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, step);
        if (lane < LANES) partial[warp][k][lane] = sum;
    }
    __syncthreads();
    // The lanes of a line have neighbouring columns: element k of lane l is column l·WIDTH + k.
    const i64 column = (i64)blockIdx.x * LANES * WIDTH + threadIdx.x;
    if (threadIdx.x < LANES * WIDTH && column < columns) {
        double sum = 0;
#pragma unroll
        for (int other = 0; other < WARPS; other++) sum += partial[other][threadIdx.x % WIDTH][threadIdx.x / WIDTH];
        store(column, sum);
    }
    __syncthreads();
}

/// What is stored of a sum.
template <typename T> __device__ __forceinline__ T total(double sum) { return narrow<T>((typename Wide<T>::type)sum); }

/// The sum of the slabs, for one column a thread of a line of 32.
template <typename T> __device__ __forceinline__ void sum_slabs(T* sums, const double* slabs, i64 count, i64 columns) {
    constexpr int LANES = 32, LINES = lines<LANES>();
    SHARED(double, partial, [LINES][LANES]);
    const int lane = threadIdx.x % LANES, line = threadIdx.x / LANES;
    const i64 column = (i64)blockIdx.x * LANES + lane;
    double sum = 0;
    if (column < columns)
#pragma unroll 4
        for (i64 slab = line; slab < count; slab += LINES) sum += slabs[slab * columns + column];
    partial[line][lane] = sum;
    __syncthreads();
    if (line > 0 || column >= columns) return;
#pragma unroll
    for (int other = 1; other < LINES; other++) sum += partial[other][lane];
    sums[column] = total<T>(sum);
}
