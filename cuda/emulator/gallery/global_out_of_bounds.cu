// Two blocks of 64 threads for 100 elements, with no test against the number of elements.
//
// The last threads write behind the array. On a card that damages a neighbour in memory, or is an illegal address if
// the page ends. The checker stops the launch and names the array.
#include "prelude.cuh"

KERNEL(64, global_out_of_bounds, (const float* x, float* y, int n)) {
    const i64 i = global_thread();
#ifdef MENDED
    if (i >= n) return;
#endif
    const float value = i < n ? x[i] : 0.0f;
    y[i] = 2.0f * value; // <- out of bounds
}
