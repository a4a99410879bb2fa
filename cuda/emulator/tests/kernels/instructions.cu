// Each function of ptx.cuh, used in the smallest way that shows what it computes.
#include "ptx.cuh"

/// y = the first `valid` bytes of x, then zeros, in two groups of copies of which the second is waited for last.
KERNEL(32, copies, (const float* x, float* y, int valid)) {
    SHARED(float, row, [128]);
    SHARED(float, words, [32]);
    copy_async_16(&row[4 * threadIdx.x], &x[4 * threadIdx.x], valid);
    copy_async_commit();
    copy_async_4(&words[threadIdx.x], &x[threadIdx.x]);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    for (int i = threadIdx.x; i < 128; i += 32) y[i] = row[127 - i];
    copy_async_wait<0>();
    __syncthreads();
    y[128 + threadIdx.x] = words[31 - threadIdx.x];
}

/// y[4l + m] = register m of lane l.
KERNEL(32, matrices, (const unsigned short* x, unsigned* y)) {
    SHARED(unsigned short, tile, [4][8][8]);
    for (int i = threadIdx.x; i < 256; i += 32) tile[i / 64][i / 8 % 8][i % 8] = x[i];
    __syncthreads();
    unsigned r[4];
    load_matrix_x4(r, tile[threadIdx.x / 8][threadIdx.x % 8]);
    for (int m = 0; m < 4; m++) y[4 * threadIdx.x + m] = r[m];
    load_matrix_x4_transposed(r, tile[threadIdx.x / 8][threadIdx.x % 8]);
    for (int m = 0; m < 4; m++) y[128 + 4 * threadIdx.x + m] = r[m];
}

/// d (16×8) = a (16×16) · b (16×8), row-major, the operands loaded as a kernel for matrices does it.
KERNEL(32, product_bf16, (const bf16* a, const bf16* b, float* d)) {
    SHARED(bf16, ta, [16][16]);
    SHARED(bf16, tb, [16][16]); // the right half is not used
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) {
        ta[i / 16][i % 16] = a[i];
        tb[i / 16][i % 16] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : bf16{0};
    }
    __syncthreads();
    unsigned ra[4], rb[4];
    load_matrix_x4(ra, &ta[lane % 16][lane / 16 * 8]);
    load_matrix_x4_transposed(rb, &tb[lane % 16][lane / 16 * 8]);
    float sums[4] = {};
    mma_bf16_16x8x16(sums, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

/// d (16×8) = a (16×8) · b (8×8), row-major, rounded to tf32.
KERNEL(32, product_tf32, (const float* a, const float* b, float* d)) {
    const int lane = threadIdx.x;
    unsigned ra[4], rb[2];
    for (int i = 0; i < 4; i++) ra[i] = round_to_tf32(a[(lane / 4 + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4]);
    for (int i = 0; i < 2; i++) rb[i] = round_to_tf32(b[(lane % 4 + i * 4) * 8 + lane / 4]);
    float sums[4] = {};
    mma_tf32_16x8x8(sums, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

KERNEL(64, rounding, (const float* x, unsigned* y, int n)) {
    if (threadIdx.x < n) y[threadIdx.x] = round_to_tf32(x[threadIdx.x]);
}

#ifdef HAS_WGMMA
template <int N> __device__ void store_product(const float (&sums)[N / 2], float* d) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < N / 2; i++)
        d[(16 * warp + lane / 4 + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

/// d (64×N) = a (64×64) · bᵀ (N×64): both operands in rows of 64 along K, in 128-byte rows whose chunks change places.
template <int N> __device__ void product_k_major(const bf16* a, const bf16* b, float* d, bf16* ta) {
    bf16* tb = ta + 64 * 64;
    for (int i = threadIdx.x; i < (64 + N) * 64; i += 128) {
        const int row = i / 64, k = i % 64;
        const int at = row * 64 + ((k / 8) ^ (row % 8)) * 8 + k % 8;
        ta[at] = row < 64 ? a[i] : b[i - 64 * 64];
    }
    fence_async_proxy();
    __syncthreads();
    float sums[N / 2];
    wgmma_fence();
    for (int k = 0; k < 64; k += 16)
        wgmma_bf16<N>(sums, matrix_descriptor(ta + k, 16, 1024, ROWS_128),
                      matrix_descriptor(tb + k, 16, 1024, ROWS_128), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    store_product<N>(sums, d);
}

/// d (64×N) = aᵀ (16×64) · b (16×N): both operands in rows along M and N, of 64 elements.
template <int N> __device__ void product_mn_major(const bf16* a, const bf16* b, float* d, bf16* ta) {
    bf16* tb = ta + 16 * 64;
    for (int i = threadIdx.x; i < 16 * 64; i += 128) ta[i ^ (i / 64 % 8) * 8] = a[i];
    for (int i = threadIdx.x; i < 16 * N; i += 128) {
        const int k = i / N, column = i % N;
        const int at = column / 64 * 1024 + k * 64 + column % 64;
        tb[at ^ (k % 8) * 8] = b[i];
    }
    fence_async_proxy();
    __syncthreads();
    float sums[N / 2];
    wgmma_fence();
    wgmma_bf16<N, true, true>(sums, matrix_descriptor(ta, 2048, 1024, ROWS_128),
                              matrix_descriptor(tb, 2048, 1024, ROWS_128), false);
    wgmma_commit();
    wgmma_wait<0>();
    store_product<N>(sums, d);
}

/// The dynamic shared memory, from the first multiple of 1024 bytes on.
__device__ __forceinline__ bf16* swizzled(bf16* shared) {
    return shared + ((1024 - shared_address(shared) % 1024) % 1024) / sizeof(bf16);
}

#define PRODUCTS(n)                                                                                                    \
    KERNEL(128, product_k_major_##n, (const bf16* a, const bf16* b, float* d)) {                                       \
        DYNAMIC_SHARED(bf16, shared);                                                                                  \
        product_k_major<n>(a, b, d, swizzled(shared));                                                                 \
    }                                                                                                                  \
    KERNEL(128, product_mn_major_##n, (const bf16* a, const bf16* b, float* d)) {                                      \
        DYNAMIC_SHARED(bf16, shared);                                                                                  \
        product_mn_major<n>(a, b, d, swizzled(shared));                                                                \
    }
PRODUCTS(64)
PRODUCTS(128)
PRODUCTS(256)

/// d (64×64) = a (64×16) · bᵀ (64×16) in cores of 8 rows of 16 bytes, plus what two earlier products gave.
KERNEL(128, product_rows_16, (const bf16* a, const bf16* b, float* d)) {
    SHARED(bf16, ta, [64 * 16]);
    SHARED(bf16, tb, [64 * 16]);
    for (int i = threadIdx.x; i < 64 * 16; i += 128) {
        const int row = i / 16, k = i % 16;
        const int at = row / 8 * 128 + k / 8 * 64 + row % 8 * 8 + k % 8;
        ta[at] = a[i];
        tb[at] = b[i];
    }
    fence_async_proxy();
    __syncthreads();
    float sums[32];
    wgmma_fence();
    for (int i = 0; i < 3; i++) {
        wgmma_bf16<64>(sums, matrix_descriptor(ta, 128, 256, ROWS_16), matrix_descriptor(tb, 128, 256, ROWS_16), i > 0);
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    store_product<64>(sums, d);
}
#endif
