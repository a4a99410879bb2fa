// The blocks of a grid add their sums to one number with `+=`.
//
// Two blocks read the same old value, and one addition is lost. On a card the result changes from run to run. The
// checker reports a race between blocks. The mended version keeps one sum for each block, for a second kernel to add
// up. (`atomicAdd` would lose nothing, but blocks end in any order, and so the last bits would still change.)
#include "prelude.cuh"

KERNEL(32, unsynchronised_sum, (const float* x, float* y, int n)) {
    const float sum = reduce_warp(x[global_thread()], Sum());
    if (threadIdx.x == 0) {
#ifdef MENDED
        y[blockIdx.x] = sum;
#else
        y[0] += sum; // <- race
#endif
    }
}
