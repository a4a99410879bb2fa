// A pipeline of products of four warps that begins one more than it needs, and ends while that is under way.
//
// Its sums are nobody's. But it reads the block's shared memory and writes the threads' registers, which on a card may
// be the next block's by then.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, product_never_waited_for, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) tile[i] = round_to_bf16(x[i]);
    fence_async_proxy();
    __syncthreads();
    float sums[32], next[32];
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
    wgmma_fence();
    wgmma_bf16<64>(sums, operand, operand, false);
    wgmma_commit();
    wgmma_bf16<64>(next, operand, operand, false); // <- unordered asynchronous operation
    wgmma_commit();
    wgmma_wait<1>();
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
#ifdef MENDED
    wgmma_wait<0>();
#endif
}
#endif
