// A pipeline with a stage too few: the next operand is copied asynchronously to where a product of four warps still
// reads.
//
// The copy may be made at any moment from its start on. On a card that is soon, and some products are of the next
// operand. Here it is when the copy is waited for, behind the product, so all results are right; but the checker knows
// when it was started.
#include "ptx.cuh"

#ifdef HAS_WGMMA
KERNEL(128, operand_copied_over, (const float* x, float* y, int n)) {
#ifdef MENDED
    constexpr int STAGES = 2;
#else
    constexpr int STAGES = 1;
#endif
    SHARED(bf16, tiles, [STAGES * 64 * 16]);
    bf16* rounded = reinterpret_cast<bf16*>(y + 128);
    for (int i = threadIdx.x; i < 2 * 64 * 16; i += 128) rounded[i] = round_to_bf16(x[i]);
    __syncthreads();
    const auto copy = [&](int step) {
        copy_async_16(tiles + step % STAGES * 64 * 16 + threadIdx.x * 8, // <- unordered asynchronous operation
                      rounded + step * 64 * 16 + threadIdx.x * 8);
        copy_async_commit();
    };
    copy(0);
    float sums[32];
    for (int step = 0; step < 2; step++) {
        copy_async_wait<0>();
        fence_async_proxy();
        __syncthreads();
        const unsigned long long operand =
            matrix_descriptor(tiles + step % STAGES * 64 * 16, 128, 256, ROWS_16);
        wgmma_fence();
        wgmma_bf16<64>(sums, operand, operand, step > 0);
        wgmma_commit();
        if (step == 0) copy(1);
        wgmma_wait<0>();
        __syncthreads();
    }
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += sums[i];
    y[threadIdx.x] = sum;
}
#endif
