// A scan of neighbours in shared memory that looks one element too far.
//
// The last lane reads behind the array. On a card that is whatever lies there: the next array, or an error only if the
// block's shared memory ends. The checker names the lane and the offset.
#include "prelude.cuh"

KERNEL(64, shared_out_of_bounds, (const float* x, float* y, int n)) {
    SHARED(float, row, [64]);
    row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
#ifdef MENDED
    const int next = min((int)threadIdx.x + 1, 63);
#else
    const int next = threadIdx.x + 1;
#endif
    y[threadIdx.x] = row[next] - row[threadIdx.x]; // <- out of bounds
}
