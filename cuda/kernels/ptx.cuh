// Instructions without a C++ name, each once, each with two bodies: inline assembly for a card, and C++ in the
// emulator's emulate_ptx.h (which is included instead when EMULATE is defined).
//
// Those of sm_90a exist in code for sm_90a alone: kernels that use them stand within `#ifdef HAS_WGMMA`.
#pragma once
#include "prelude.cuh"

/// Whether there are products of a group of four warps.
#if defined(EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA
#endif

#ifdef EMULATE
#include "emulate_ptx.h"
#else

/// The 32-bit address of shared memory that instructions take.
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

/// Starts copying 16 bytes from global to shared memory (both 16-byte aligned); `valid` of them, the rest zeros. The
/// copy is part of the group that the next commit closes. sm_80.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, int valid = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                 : "memory");
}
/// The same for 4 bytes (both 4-byte aligned).
__device__ __forceinline__ void copy_async_4(void* to, const void* from, int valid = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                 : "memory");
}
/// Closes the group of copies started since the last one.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most PENDING of this thread's groups are under way. Other threads' copies need a barrier besides.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

/// Loads four 8×8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and gets of each
/// matrix the elements (l / 4, 2(l % 4)) and the one after. sm_75.
__device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// d += a·b for a 16×16 and a 16×8 tile of bf16, d in float. sm_80.
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The float with 10 bits of fraction that is nearest, ties away from zero. sm_80.
__device__ __forceinline__ unsigned round_to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
/// d += a·b for a 16×8 and an 8×8 tile of tf32, d in float. sm_80.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef HAS_WGMMA
/// Makes this thread's stores to shared memory visible to wgmma_bf16 (and bulk copies). Before the barrier that hands
/// the memory over. sm_90a, like all that follows.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
/// Orders the accumulators after their other uses: before the first wgmma_bf16, and again after they were used.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
/// Closes the group of products issued since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
/// Waits until at most PENDING groups are under way. Before that nobody may touch their accumulators or operands.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

#define ACCUMULATORS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACCUMULATORS_16(d, i)                                                                                          \
    ACCUMULATORS_4(d, i), ACCUMULATORS_4(d, i + 4), ACCUMULATORS_4(d, i + 8), ACCUMULATORS_4(d, i + 12)
#define ACCUMULATORS_32(d, i) ACCUMULATORS_16(d, i), ACCUMULATORS_16(d, i + 16)
#define ACCUMULATORS_64(d, i) ACCUMULATORS_32(d, i), ACCUMULATORS_32(d, i + 32)
#define ACCUMULATORS_128(d, i) ACCUMULATORS_64(d, i), ACCUMULATORS_64(d, i + 64)

/// Issues d = a·b, plus d if `accumulate`, for a 64×16 and a 16×N tile of bf16 in shared memory, N = 64, 128 or 256;
/// all four warps of a group must call it. Thread t has, with l = t % 32, in d[4j + 2h + i] the element (16(t / 32) +
/// l / 4 + 8h, 8j + 2(l % 4) + i). `a` and `b` are descriptors; each operand is K-major, or MN-major where the
/// template says so.
template <int N, bool A_MN_MAJOR = false, bool B_MN_MAJOR = false>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], unsigned long long a, unsigned long long b,
                                           bool accumulate = true) {
    static_assert(N == 64 || N == 128 || N == 256, "the widths that are written out here");
    if constexpr (N == 64) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1, %35, %36;\n}\n"
            : ACCUMULATORS_32(d, 0)
            : "l"(a), "l"(b), "r"((int)accumulate), "n"(A_MN_MAJOR ? 1 : 0), "n"(B_MN_MAJOR ? 1 : 0));
    } else if constexpr (N == 128) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
            "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
            "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, %67, %68;\n}\n"
            : ACCUMULATORS_64(d, 0)
            : "l"(a), "l"(b), "r"((int)accumulate), "n"(A_MN_MAJOR ? 1 : 0), "n"(B_MN_MAJOR ? 1 : 0));
    } else {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
            "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
            "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
            "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
            "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
            "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
            "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
            "%125, %126, %127}, "
            "%128, %129, p, 1, 1, %131, %132;\n}\n"
            : ACCUMULATORS_128(d, 0)
            : "l"(a), "l"(b), "r"((int)accumulate), "n"(A_MN_MAJOR ? 1 : 0), "n"(B_MN_MAJOR ? 1 : 0));
    }
}
#endif

#endif

#ifdef HAS_WGMMA
/// How the rows of an operand of wgmma_bf16 lie in shared memory: rows of 16, 128, 64 or 32 bytes, in which 16-byte
/// chunks change places (but in the first) so that neither a column nor a row meets one bank twice. A tile with longer
/// rows starts at a multiple of 1024 bytes; the chunk at offset o lies at o ^ (o / 128 % 8 · 16), for rows of 128
/// bytes.
enum Swizzle { ROWS_16 = 0, ROWS_128 = 1, ROWS_64 = 2, ROWS_32 = 3 };

/// The descriptor of an operand that starts at p. K-major: eight rows follow each other, `stride` is the distance to
/// the next eight, and `leading` (for ROWS_16 alone) that between chunks of a row. MN-major: rows run along MN,
/// `leading` is the distance between neighbouring rows' ends and starts along MN, `stride` that between groups of
/// eight along K (for ROWS_16, `stride` runs along MN and `leading` along K). Both in bytes, multiples of 16.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void* p, unsigned leading, unsigned stride,
                                                                Swizzle swizzle) {
    return (unsigned long long)(shared_address(p) >> 4 & 0x3fff) | (unsigned long long)(leading >> 4 & 0x3fff) << 16 |
           (unsigned long long)(stride >> 4 & 0x3fff) << 32 | (unsigned long long)swizzle << 62;
}
#endif
