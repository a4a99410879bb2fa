// Half of a warp sums up with shuffles whose mask names the whole warp, while the other half waits at a barrier.
//
// The shuffle waits for lanes that wait for the barrier, which waits for the shuffle. On a card it hangs, or gives
// undefined values. The checker says who waits where.
#include "prelude.cuh"

KERNEL(32, shuffle_in_half_a_warp, (const float* x, float* y, int n)) {
    float sum = x[threadIdx.x];
    if (threadIdx.x < 16) {
#ifdef MENDED
        const unsigned lanes = 0x0000ffffu;
#else
        const unsigned lanes = 0xffffffffu;
#endif
        for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(lanes, sum, step); // <- deadlock
    }
    __syncthreads();
    y[threadIdx.x] = sum;
}
