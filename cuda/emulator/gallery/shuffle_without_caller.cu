// Lanes 0 to 15 shuffle with a mask that names lanes 0 to 7.
//
// A lane that calls must be in its mask. On a card the values of the others are undefined. The checker names the lane.
#include "prelude.cuh"

KERNEL(32, shuffle_without_caller, (const float* x, float* y, int n)) {
    float sum = x[threadIdx.x];
    if (threadIdx.x < 16) {
#ifdef MENDED
        const unsigned lanes = 0x0000ffffu;
#else
        const unsigned lanes = 0x000000ffu;
#endif
        sum += __shfl_down_sync(lanes, sum, 4, 8); // <- missing lane
    }
    y[threadIdx.x] = sum;
}
