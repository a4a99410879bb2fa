// A product of four warps of what threads have stored to shared memory, handed over by a barrier alone.
//
// The instruction reads shared memory by another path than threads write it, and a barrier orders the threads, not the
// paths. On a card it may find what was there before. Here there is one path, so all results are right; but the checker
// knows of each byte whether who wrote it has made a fence since.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, operand_without_fence, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) tile[i] = round_to_bf16(x[i]);
#ifdef MENDED
    fence_async_proxy();
#endif
    __syncthreads();
    float sums[32];
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
    wgmma_fence();
    wgmma_bf16<64>(sums, operand, operand, false); // <- unordered asynchronous operation
    wgmma_commit();
    wgmma_wait<0>();
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
}
#endif
