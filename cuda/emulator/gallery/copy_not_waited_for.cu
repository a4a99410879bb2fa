// A row is copied to shared memory asynchronously, and read after a barrier, but nobody waits for the copy.
//
// A barrier does not wait for copies under way. On a card the copy is often done by then. Here it is done at the last
// moment that is allowed, so the read finds bytes that nobody has written.
#include "ptx.cuh"

KERNEL(16, copy_not_waited_for, (const float* x, float* y, int n)) {
    SHARED(float, row, [64]);
    copy_async_16(&row[4 * threadIdx.x], &x[4 * threadIdx.x]);
    copy_async_commit();
#ifdef MENDED
    copy_async_wait<0>();
#endif
    __syncthreads();
    for (int i = threadIdx.x; i < 64; i += 16) y[i] = row[63 - i]; // <- uninitialised read
}
