// The maximum of an array of which only the first half was ever written.
//
// The rest is what the memory held before: on a card the result depends on who used it last. The checker knows which
// bytes of an allocation were written, by copies and by kernels.
#include "prelude.cuh"

KERNEL(32, unwritten_tail, (const float* x, float* y, int n)) {
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
#ifdef MENDED
        const int written = 32;
#else
        const int written = n;
#endif
        float most = y[0];
        for (int i = 1; i < written; i++) most = larger(most, y[i]); // <- uninitialised read
        y[0] = most;
    }
}
