// A walk over tiles that are loaded to shared memory, with a barrier after the load and none before the next.
//
// A fast thread stores its element of the next tile while a slow one still reads the last: a write after a read. On a
// card the results are wrong where warps happen to be far apart. The checker reports the race.
#include "prelude.cuh"

KERNEL(64, tile_overwritten_too_early, (const float* x, float* y, int n)) {
    SHARED(float, tile, [64]);
    float sum = 0;
    for (int first = 0; first < n; first += 64) {
        tile[threadIdx.x] = x[first + threadIdx.x]; // <- race
        __syncthreads();
        for (int i = 0; i < 64; i++) sum += tile[i] * (float)(threadIdx.x + i);
#ifdef MENDED
        __syncthreads();
#endif
    }
    y[threadIdx.x] = sum;
}
