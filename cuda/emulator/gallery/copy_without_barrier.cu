// Each thread waits for its own asynchronous copy, and then reads what another thread copied.
//
// The wait is the thread's own: the others' copies need a barrier besides. On a card the row has holes now and then.
// The checker reports the race.
#include "ptx.cuh"

KERNEL(16, copy_without_barrier, (const float* x, float* y, int n)) {
    SHARED(float, row, [64]);
    copy_async_16(&row[4 * threadIdx.x], &x[4 * threadIdx.x]); // <- race
    copy_async_commit();
    copy_async_wait<0>();
#ifdef MENDED
    __syncthreads();
#endif
    for (int i = threadIdx.x; i < 64; i += 16) y[i] = row[63 - i]; // <- race
}
