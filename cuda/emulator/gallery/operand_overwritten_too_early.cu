// A product of four warps whose operand is overwritten with the next one's while it may be read.
//
// A barrier does not wait for products under way. On a card some elements are of this step and some of the next. Here
// the product is done at the last moment that is allowed, with the next step's.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, operand_overwritten_too_early, (const float* x, float* y, int n)) {
    SHARED(bf16, tile, [64 * 16]);
    const unsigned long long operand = matrix_descriptor(tile, 128, 256, ROWS_16);
    float sums[32];
    for (int step = 0; step < 2; step++) {
        for (int i = threadIdx.x; i < 64 * 16; i += 128)
            tile[i] = round_to_bf16(x[step * 64 * 16 + i]); // <- unordered asynchronous operation
        fence_async_proxy();
        __syncthreads();
        wgmma_fence();
        wgmma_bf16<64>(sums, operand, operand, step > 0);
        wgmma_commit();
#ifdef MENDED
        wgmma_wait<0>();
#endif
        __syncthreads();
    }
    wgmma_wait<0>();
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
}
#endif
