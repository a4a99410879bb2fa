// Lanes without an element return, and then the others read from them.
//
// A shuffle no longer waits for a lane that has ended, and its value is undefined. The checker gives NaN and names the
// lane.
#include "prelude.cuh"

KERNEL(32, shuffle_from_ended_lane, (const float* x, float* y, int n)) {
    const int elements = 24;
#ifdef MENDED
    float sum = threadIdx.x < elements ? x[threadIdx.x] : 0.0f;
#else
    if (threadIdx.x >= elements) return;
    float sum = x[threadIdx.x];
#endif
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, step); // <- missing lane
    if (threadIdx.x == 0) y[0] = sum;
}
