// A tile of 64 × 256 floats.
//
// That is 64 KiB, and a card has 48 KiB for arrays of fixed size: it refuses the kernel. More is given as dynamic
// shared memory alone.
#include "prelude.cuh"

KERNEL(32, too_much_shared, (const float* x, float* y, int n)) {
#ifdef MENDED
    SHARED(float, tile, [16][256]);
#else
    SHARED(float, tile, [64][256]); // <- limit of a card
#endif
    tile[0][threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[0][31 - threadIdx.x];
}
