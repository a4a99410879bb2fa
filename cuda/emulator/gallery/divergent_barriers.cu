// The two warps of a block wait at two barriers that stand in the two branches of an `if`.
//
// A barrier counts arrivals and does not see the branch, so a card may go on as if all were well, or stand still. The
// checker reports both places.
#include "prelude.cuh"

KERNEL(64, divergent_barriers, (const float* x, float* y, int n)) {
    SHARED(float, half, [32]);
#ifdef MENDED
    if (threadIdx.x < 32) half[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x >= 32) y[threadIdx.x] = half[threadIdx.x - 32];
#else
    if (threadIdx.x < 32) {
        half[threadIdx.x] = x[threadIdx.x];
        __syncthreads(); // <- divergent barrier
    } else {
        __syncthreads();
        y[threadIdx.x] = half[threadIdx.x - 32];
    }
#endif
}
