// Even and odd lanes shuffle in the two branches of an `if`, both with the whole warp as mask.
//
// All lanes that a mask names must come to the same instruction. On a card the result is undefined. The checker reports
// both places.
#include "prelude.cuh"

KERNEL(32, divergent_shuffles, (const float* x, float* y, int n)) {
    float value = x[threadIdx.x];
#ifdef MENDED
    const float scale = threadIdx.x % 2 == 0 ? 2.0f : 3.0f;
    value = __shfl_xor_sync(WHOLE_WARP, scale * value, 1);
#else
    if (threadIdx.x % 2 == 0) {
        value = __shfl_xor_sync(WHOLE_WARP, 2.0f * value, 1); // <- divergent collective
    } else {
        value = __shfl_xor_sync(WHOLE_WARP, 3.0f * value, 1); // <- divergent collective
    }
#endif
    y[threadIdx.x] = value;
}
