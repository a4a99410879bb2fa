// The lanes of a warp exchange values through shared memory without `__syncwarp`.
//
// Lanes no longer run in lockstep, since Volta: a lane may read before its neighbour has written. The checker reports
// the race; a barrier of the warp orders the lanes.
#include "prelude.cuh"

KERNEL(32, warp_exchange_without_sync, (const float* x, float* y, int n)) {
    SHARED(float, values, [32]);
    values[threadIdx.x] = x[threadIdx.x]; // <- race
#ifdef MENDED
    __syncwarp();
#endif
    y[threadIdx.x] = values[31 - threadIdx.x]; // <- race
}
