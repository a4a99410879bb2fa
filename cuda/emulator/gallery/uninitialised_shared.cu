// A histogram whose counts are never set to zero.
//
// Shared memory begins as the last block left it: on a card the first run after a reboot is often right. The checker
// fills it with NaN and reports the first read of what nobody wrote.
#include "prelude.cuh"

KERNEL(64, uninitialised_shared, (const float* x, float* y, int n)) {
    SHARED(int, counts, [4]);
#ifdef MENDED
    if (threadIdx.x < 4) counts[threadIdx.x] = 0;
    __syncthreads();
#endif
    atomicAdd(&counts[(int)x[threadIdx.x] & 3], 1); // <- uninitialised read
    __syncthreads();
    if (threadIdx.x < 4) y[threadIdx.x] = counts[threadIdx.x];
}
