// Threads count with `atomicAdd`, and one of them reads the count without waiting for the others.
//
// Atomic updates are ordered among themselves alone. On a card the count may be anything up to its last value. The
// checker reports the race.
#include "prelude.cuh"

KERNEL(64, plain_read_of_atomic, (const float* x, float* y, int n)) {
    SHARED(int, count, [1]);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    if (x[threadIdx.x] > 0.5f) atomicAdd(&count[0], 1); // <- race
#ifdef MENDED
    __syncthreads();
#endif
    if (threadIdx.x == 0) y[0] = count[0]; // <- race
}
