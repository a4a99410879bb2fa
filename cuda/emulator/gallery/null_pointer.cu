// An optional operand is read without asking whether it is there.
//
// A card stops with an illegal address. So does the checker, and the process lives on.
#include "prelude.cuh"

KERNEL(64, null_pointer, (const float* x, float* y, int n)) {
    const float* bias = n < 0 ? x : nullptr;
#ifdef MENDED
    const float shift = bias ? bias[threadIdx.x] : 0.0f;
#else
    const float shift = bias[threadIdx.x]; // <- wild access
#endif
    y[threadIdx.x] = x[threadIdx.x] + shift;
}
