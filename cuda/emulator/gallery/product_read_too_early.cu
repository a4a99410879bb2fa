// A product of four warps whose sums are read before it was waited for.
//
// The accumulators belong to the instruction from its issue until the wait. On a card the sums are those of some
// moment. Here they are NaN until then, and a thread that uses them is told which product they are of.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, product_read_too_early, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) tile[i] = round_to_bf16(x[i]);
    fence_async_proxy();
    __syncthreads();
    float sums[32];
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
    wgmma_fence();
    wgmma_bf16<64>(sums, operand, operand, false);
    wgmma_commit();
#ifdef MENDED
    wgmma_wait<0>();
#endif
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i]; // <- unordered asynchronous operation
    y[threadIdx.x] = sum;
    wgmma_wait<0>();
}
#endif
