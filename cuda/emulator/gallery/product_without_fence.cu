// A product of four warps that adds to sums which threads have just set, and no fence between.
//
// The instruction reads registers by another path than threads write them. On a card it may find what they held before.
// Here it finds what was set, and the checker says that the two are not ordered.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, product_without_fence, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) tile[i] = round_to_bf16(x[i]);
    fence_async_proxy();
    __syncthreads();
    float sums[32];
    for (int i = 0; i < 32; i++) sums[i] = x[threadIdx.x];
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
#ifdef MENDED
    wgmma_fence();
#endif
    wgmma_bf16<64>(sums, operand, operand); // <- unordered asynchronous operation
    wgmma_commit();
    wgmma_wait<0>();
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
}
#endif
