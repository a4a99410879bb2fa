// A product of four warps whose sums are stored before it was waited for, and begun without a fence.
//
// The accumulators belong to the instruction from its issue until the wait. On a card the sums are those of some
// moment. Here they are NaN until then. (Without the fence, the registers' earlier uses are not ordered: the checker
// says so.)
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, product_read_too_early, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) tile[i] = round_to_bf16(x[i]);
    fence_async_proxy();
    __syncthreads();
    float sums[32];
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
#ifdef MENDED
    wgmma_fence();
#endif
    wgmma_bf16<64>(sums, operand, operand, false); // <- unordered asynchronous operation
    wgmma_commit();
#ifdef MENDED
    wgmma_wait<0>();
#endif
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
    wgmma_wait<0>();
}
#endif
