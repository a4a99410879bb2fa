// The sum of 64 numbers as a tree in shared memory, with no barrier between its levels.
//
// A level reads what other threads wrote in the level before. On a card the two warps drift apart, and now and then the
// sum lacks a part; most runs are right. The checker reports the race whatever the order was.
#include "prelude.cuh"

KERNEL(64, reduction_without_barrier, (const float* x, float* y, int n)) {
    SHARED(float, sums, [64]);
    sums[threadIdx.x] = x[threadIdx.x];
    for (int step = 32; step > 0; step /= 2) {
#ifdef MENDED
        __syncthreads();
#endif
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step]; // <- race
    }
    if (threadIdx.x == 0) y[0] = sums[0];
}
