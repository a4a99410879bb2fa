// What g++ reads in front of a kernel file: CUDA C++ in terms of one processor.
//
// A CUDA thread is a coroutine. `current` is the context of the one that runs; whatever makes a thread wait, or needs
// to know the block, goes through the table `runtime`, which the Rust side fills. The threads of one program are all
// run by one thread of the system, so nothing here needs to be atomic. No header of the system is read: that makes a
// build a third as long, and leaves a kernel all names.
#pragma once
#define EMULATE 1

namespace emulate {

typedef unsigned long size_t;
typedef unsigned long long u64;

struct Index {
    unsigned x, y, z;
};

/// What a thread knows of itself. The Rust side has the same struct, in abi.rs.
struct Context {
    Index thread, block, block_size, grid_size;
    unsigned lane;
    unsigned number; // in the block
    u64 ticket;      // of the block: no two blocks that ever ran have the same
    void* execution; // the Rust side's
    void* yielder;   // the Rust side's
    size_t stack, stack_size;
};

/// A shared array of a kernel: where it lies in the block with that ticket.
struct SharedArray {
    const char* name;
    size_t size;
    u64 ticket;
    void* address;
};

/// Done by the last of the threads that meet, for all of them: each thread's operand, null for one that is missing.
typedef void (*Collective)(void** operands, const void* place);
/// An asynchronous instruction, done when it is waited for.
typedef void (*Deferred)(void* operands);

enum Fence { FENCE_BLOCK, FENCE_DEVICE, FENCE_PROXY, FENCE_PRODUCT };
enum Access { READ, WRITE, ATOMIC, READ_UNALIGNED, WRITE_UNALIGNED, READ_OPERAND };
/// Who waits for an asynchronous instruction, and how many threads meet: a thread, a warp, a group of four warps.
enum Group { THREAD = 1, WARP = 32, WARPGROUP = 128 };

/// What a product of a group of four warps uses while it is under way, out of the checker's sight.
struct Uses {
    float* const* sums; // of 128 threads
    size_t sum_bytes;
    const unsigned* chunks; // of 16 bytes, by their 32-bit addresses
    size_t chunk_count;
};

struct Runtime {
    int (*barrier)(Context*, int vote, const void* place);
    void (*meet)(Context*, Group, unsigned mask, void* operand, Collective, const void* place);
    void (*sync_warp)(Context*, unsigned mask, const void* place);
    void (*missing_lane)(Context*, unsigned reader, unsigned lane, const void* place);
    void* (*shared)(Context*, SharedArray*, const void* place);
    void* (*dynamic_shared)(Context*);
    unsigned (*shared_offset)(Context*, const void* address);
    void* (*shared_pointer)(Context*, unsigned offset);
    void (*access)(Context*, const void* address, size_t size, int access, const void* place);
    void (*copy)(Context*, Deferred, const void* operands, size_t size, void* to, size_t bytes, const void* place);
    void (*product)(Context*, Deferred, const void* operands, size_t size, const Uses*, const void* place);
    void (*commit)(Context*, Group);
    void (*wait)(Context*, Group, unsigned pending);
    void (*fence)(Context*, unsigned fence);
    int (*issue)(Context*);
    void (*unordered)(Context*, const char* message, const void* place);
};

extern Context* current;
extern const Runtime* runtime;

/// A kernel in the list of all kernels of a library.
struct Entry {
    const char* name;
    unsigned threads, parameters;
    const size_t* sizes;
    void (*call)(void** arguments);
    Entry* next;
};
extern Entry* entries;

// A function of the emulator itself: not checked, and called, so that its return address is the place in the kernel.
#define EMULATE_CALL __attribute__((noinline, no_sanitize("thread"), unused))
#define EMULATE_PLACE __builtin_return_address(0)
#define EMULATE_LAMBDA __attribute__((no_sanitize("thread")))
#ifdef EMULATE_CHECKED
#define EMULATE_QUICK EMULATE_CALL
#else
#define EMULATE_QUICK inline __attribute__((always_inline))
#endif

template <int... I> struct Indices {};

/// Calls a kernel with arguments given by address, as a driver is given them.
template <auto kernel> struct Call;
template <typename... P, void (*kernel)(P...)> struct Call<kernel> {
    static constexpr size_t sizes[] = {sizeof(P)..., 0};
    template <int... I> EMULATE_LAMBDA static void spread(void** arguments, Indices<I...>) {
        kernel(*static_cast<P*>(arguments[I])...);
    }
    EMULATE_LAMBDA static void run(void** arguments) { spread(arguments, Indices<__integer_pack(sizeof...(P))...>()); }
    static constexpr unsigned parameters = sizeof...(P);
};

struct Registration {
    Entry entry;
    template <typename C> EMULATE_CALL Registration(const char* name, unsigned threads, C)
        : entry{name, threads, C::parameters, C::sizes, C::run, entries} {
        entries = &entry;
    }
};

static EMULATE_QUICK void* shared(SharedArray& array) {
    if (array.ticket == current->ticket) return array.address;
    return runtime->shared(current, &array, EMULATE_PLACE);
}

static EMULATE_QUICK void* dynamic_shared() { return runtime->dynamic_shared(current); }

template <typename T> struct Same {
    typedef T type;
};

/// Tells the checker of an access that is made out of its sight.
static EMULATE_QUICK void note(const void* address, size_t size, int access, const void* place) {
#ifdef EMULATE_CHECKED
    runtime->access(current, address, size, access, place);
#else
    (void)address, (void)size, (void)access, (void)place;
#endif
}

} // namespace emulate

// ── The language ────────────────────────────────────────────────────────────────────────────────────────────────────

#define __device__
#define __host__
#define __global__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define threadIdx (emulate::current->thread)
#define blockIdx (emulate::current->block)
#define blockDim (emulate::current->block_size)
#define gridDim (emulate::current->grid_size)
constexpr int warpSize = 32;
typedef unsigned long size_t;

#define KERNEL(threads, name, parameters)                                                                              \
    static void name parameters;                                                                                       \
    static emulate::Registration emulate_entry_##name(#name, threads, emulate::Call<name>());                          \
    static void name parameters
#define SHARED(type, name, dims)                                                                                       \
    typedef type emulate_type_##name dims;                                                                             \
    static emulate::SharedArray emulate_array_##name = {#name, sizeof(emulate_type_##name), 0, nullptr};               \
    emulate_type_##name& name = *static_cast<emulate_type_##name*>(emulate::shared(emulate_array_##name))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulate::dynamic_shared())

// ── Threads that meet ───────────────────────────────────────────────────────────────────────────────────────────────

static EMULATE_CALL void __syncthreads() { emulate::runtime->barrier(emulate::current, 0, EMULATE_PLACE); }
static EMULATE_CALL int __syncthreads_count(int p) {
    return emulate::runtime->barrier(emulate::current, p != 0, EMULATE_PLACE);
}
static EMULATE_CALL int __syncthreads_or(int p) {
    return emulate::runtime->barrier(emulate::current, p != 0, EMULATE_PLACE) != 0;
}
static EMULATE_CALL int __syncthreads_and(int p) {
    return emulate::runtime->barrier(emulate::current, p == 0, EMULATE_PLACE) == 0;
}
static EMULATE_CALL void __syncwarp(unsigned mask = 0xffffffffu) {
    emulate::runtime->sync_warp(emulate::current, mask, EMULATE_PLACE);
}

namespace emulate {

enum Shuffle { TO_LANE, UP, DOWN, XOR };

/// The lane that `lane` reads from; itself where the instruction says so. The groups are of `width` lanes.
static inline unsigned source_lane(Shuffle kind, unsigned lane, int by, unsigned width) {
    const unsigned first = lane & ~(width - 1), in_group = lane & (width - 1);
    switch (kind) {
    case TO_LANE: return first + ((unsigned)by & (width - 1));
    case UP: return (int)in_group - by >= 0 ? lane - by : lane;
    case DOWN: return in_group + by < width ? lane + by : lane;
    default: return ((lane ^ by) & ~(width - 1)) <= first ? lane ^ by : lane;
    }
}

template <typename T> struct ShuffleOperand {
    T value, result;
    unsigned source;
};

/// Every lane's `result` is the value of its source, and NaN where the source is missing.
template <typename T> EMULATE_LAMBDA void shuffle_all(void** operands, const void* place) {
    for (unsigned lane = 0; lane < 32; lane++) {
        auto* mine = static_cast<ShuffleOperand<T>*>(operands[lane]);
        if (!mine) continue;
        auto* source = static_cast<ShuffleOperand<T>*>(operands[mine->source]);
        if (source) {
            mine->result = source->value;
        } else {
            __builtin_memset(static_cast<void*>(&mine->result), 0xff, sizeof(T));
            runtime->missing_lane(current, lane, mine->source, place);
        }
    }
}

template <typename T, Shuffle kind>
static EMULATE_QUICK T shuffle(unsigned mask, T value, int by, int width, const void* place) {
    ShuffleOperand<T> operand{value, value, source_lane(kind, current->lane, by, width)};
    runtime->meet(current, WARP, mask, &operand, shuffle_all<T>, place);
    return operand.result;
}

EMULATE_LAMBDA static inline void ballot_all(void** operands, const void*) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (operands[lane]) ballot |= *static_cast<unsigned*>(operands[lane]) << lane;
    for (unsigned lane = 0; lane < 32; lane++)
        if (operands[lane]) *static_cast<unsigned*>(operands[lane]) = ballot;
}

static EMULATE_QUICK unsigned ballot(unsigned mask, bool vote, const void* place) {
    unsigned operand = vote;
    runtime->meet(current, WARP, mask, &operand, ballot_all, place);
    return operand;
}

} // namespace emulate

template <typename T> EMULATE_CALL T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emulate::shuffle<T, emulate::TO_LANE>(mask, value, lane, width, EMULATE_PLACE);
}
template <typename T> EMULATE_CALL T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emulate::shuffle<T, emulate::UP>(mask, value, by, width, EMULATE_PLACE);
}
template <typename T> EMULATE_CALL T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emulate::shuffle<T, emulate::DOWN>(mask, value, by, width, EMULATE_PLACE);
}
template <typename T> EMULATE_CALL T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
    return emulate::shuffle<T, emulate::XOR>(mask, value, by, width, EMULATE_PLACE);
}
static EMULATE_CALL unsigned __ballot_sync(unsigned mask, int p) { return emulate::ballot(mask, p, EMULATE_PLACE); }
static EMULATE_CALL int __any_sync(unsigned mask, int p) { return emulate::ballot(mask, p, EMULATE_PLACE) != 0; }
static EMULATE_CALL int __all_sync(unsigned mask, int p) { return emulate::ballot(mask, !p, EMULATE_PLACE) == 0; }

// ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// An operation is atomic because no thread gives way between its load and its store.
#define EMULATE_ATOMIC(name, next)                                                                                     \
    template <typename T> EMULATE_CALL T name(T* p, typename emulate::Same<T>::type value) {                           \
        emulate::note(p, sizeof(T), emulate::ATOMIC, EMULATE_PLACE);                                                   \
        const T old = *p;                                                                                              \
        *p = next;                                                                                                     \
        return old;                                                                                                    \
    }
EMULATE_ATOMIC(atomicAdd, old + value)
EMULATE_ATOMIC(atomicSub, old - value)
EMULATE_ATOMIC(atomicExch, value)
EMULATE_ATOMIC(atomicMin, value < old ? value : old)
EMULATE_ATOMIC(atomicMax, value > old ? value : old)
EMULATE_ATOMIC(atomicAnd, old& value)
EMULATE_ATOMIC(atomicOr, old | value)
EMULATE_ATOMIC(atomicXor, old ^ value)
EMULATE_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMULATE_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef EMULATE_ATOMIC
template <typename T>
EMULATE_CALL T atomicCAS(T* p, typename emulate::Same<T>::type expected, typename emulate::Same<T>::type value) {
    emulate::note(p, sizeof(T), emulate::ATOMIC, EMULATE_PLACE);
    const T old = *p;
    if (old == expected) *p = value;
    return old;
}

static EMULATE_CALL void __threadfence_block() { emulate::runtime->fence(emulate::current, emulate::FENCE_BLOCK); }
static EMULATE_CALL void __threadfence() { emulate::runtime->fence(emulate::current, emulate::FENCE_DEVICE); }
static EMULATE_CALL void __threadfence_system() { emulate::runtime->fence(emulate::current, emulate::FENCE_DEVICE); }

template <typename T> static __forceinline__ T __ldg(const T* p) { return *p; }
template <typename T> static __forceinline__ T __ldcs(const T* p) { return *p; }
template <typename T> static __forceinline__ T __ldcg(const T* p) { return *p; }
template <typename T> static __forceinline__ void __stcs(T* p, T value) { *p = value; }
template <typename T> static __forceinline__ void __stcg(T* p, T value) { *p = value; }

// ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define EMULATE_VECTORS(type, base, align2, align4)                                                                    \
    struct __align__(align2) type##2 {                                                                                 \
        base x, y;                                                                                                     \
    };                                                                                                                 \
    struct type##3 {                                                                                                   \
        base x, y, z;                                                                                                  \
    };                                                                                                                 \
    struct __align__(align4) type##4 {                                                                                 \
        base x, y, z, w;                                                                                               \
    };                                                                                                                 \
    static inline type##2 make_##type##2(base x, base y) { return type##2{x, y}; }                                     \
    static inline type##3 make_##type##3(base x, base y, base z) { return type##3{x, y, z}; }                          \
    static inline type##4 make_##type##4(base x, base y, base z, base w) { return type##4{x, y, z, w}; }
EMULATE_VECTORS(char, signed char, 2, 4)
EMULATE_VECTORS(uchar, unsigned char, 2, 4)
EMULATE_VECTORS(short, short, 4, 8)
EMULATE_VECTORS(ushort, unsigned short, 4, 8)
EMULATE_VECTORS(int, int, 8, 16)
EMULATE_VECTORS(uint, unsigned, 8, 16)
EMULATE_VECTORS(longlong, long long, 16, 16)
EMULATE_VECTORS(ulonglong, unsigned long long, 16, 16)
EMULATE_VECTORS(float, float, 8, 16)
EMULATE_VECTORS(double, double, 16, 16)
#undef EMULATE_VECTORS
typedef uint3 dim3;

// ── Bits ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#define EMULATE_BITS(name, to, from)                                                                                   \
    static __forceinline__ to name(from x) {                                                                           \
        to bits;                                                                                                       \
        __builtin_memcpy(&bits, &x, sizeof(bits));                                                                     \
        return bits;                                                                                                   \
    }
EMULATE_BITS(__float_as_uint, unsigned, float)
EMULATE_BITS(__float_as_int, int, float)
EMULATE_BITS(__uint_as_float, float, unsigned)
EMULATE_BITS(__int_as_float, float, int)
EMULATE_BITS(__double_as_longlong, long long, double)
EMULATE_BITS(__longlong_as_double, double, long long)
#undef EMULATE_BITS

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)((((unsigned long long)high << 32 | low) << (by & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}
/// Byte i of the result is the byte of (x, y) that nibble i of the selector names.
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

// ── Mathematics ─────────────────────────────────────────────────────────────────────────────────────────────────────
// Each function for float and for double: without the first, exp(float) would be computed in double.

#define EMULATE_MATH_1(name)                                                                                           \
    extern "C" double name(double) noexcept;                                                                           \
    extern "C" float name##f(float) noexcept;                                                                          \
    static __forceinline__ float name(float x) { return name##f(x); }
#define EMULATE_MATH_2(name)                                                                                           \
    extern "C" double name(double, double) noexcept;                                                                   \
    extern "C" float name##f(float, float) noexcept;                                                                   \
    static __forceinline__ float name(float x, float y) { return name##f(x, y); }
EMULATE_MATH_1(exp) EMULATE_MATH_1(exp2) EMULATE_MATH_1(expm1) EMULATE_MATH_1(log) EMULATE_MATH_1(log2)
EMULATE_MATH_1(log10) EMULATE_MATH_1(log1p) EMULATE_MATH_1(sqrt) EMULATE_MATH_1(cbrt) EMULATE_MATH_1(sin)
EMULATE_MATH_1(cos) EMULATE_MATH_1(tan) EMULATE_MATH_1(asin) EMULATE_MATH_1(acos) EMULATE_MATH_1(atan)
EMULATE_MATH_1(sinh) EMULATE_MATH_1(cosh) EMULATE_MATH_1(tanh) EMULATE_MATH_1(asinh) EMULATE_MATH_1(acosh)
EMULATE_MATH_1(atanh) EMULATE_MATH_1(erf) EMULATE_MATH_1(erfc) EMULATE_MATH_1(lgamma) EMULATE_MATH_1(tgamma)
EMULATE_MATH_1(floor) EMULATE_MATH_1(ceil) EMULATE_MATH_1(trunc) EMULATE_MATH_1(round) EMULATE_MATH_1(rint)
EMULATE_MATH_1(nearbyint) EMULATE_MATH_1(fabs)
EMULATE_MATH_2(pow) EMULATE_MATH_2(atan2) EMULATE_MATH_2(fmod) EMULATE_MATH_2(fmin) EMULATE_MATH_2(fmax)
EMULATE_MATH_2(hypot) EMULATE_MATH_2(copysign) EMULATE_MATH_2(remainder)
#undef EMULATE_MATH_1
#undef EMULATE_MATH_2
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
static __forceinline__ float fma(float a, float b, float c) { return fmaf(a, b, c); }
extern "C" double ldexp(double, int) noexcept;
extern "C" float ldexpf(float, int) noexcept;
static __forceinline__ float ldexp(float x, int n) { return ldexpf(x, n); }
extern "C" int abs(int) noexcept;
static __forceinline__ long long abs(long long x) { return x < 0 ? -x : x; }
static __forceinline__ float abs(float x) { return fabsf(x); }
static __forceinline__ double abs(double x) { return fabs(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float exp10f(float x) { return powf(10.0f, x); }
static inline bool isnan(float x) { return __builtin_isnan(x); }
static inline bool isnan(double x) { return __builtin_isnan(x); }
static inline bool isinf(float x) { return __builtin_isinf(x); }
static inline bool isinf(double x) { return __builtin_isinf(x); }
static inline bool isfinite(float x) { return __builtin_isfinite(x); }
static inline bool isfinite(double x) { return __builtin_isfinite(x); }
static inline bool signbit(float x) { return __builtin_signbit(x); }
static inline bool signbit(double x) { return __builtin_signbit(x); }

#define EMULATE_MIN_MAX(type)                                                                                          \
    static __forceinline__ type min(type a, type b) { return b < a ? b : a; }                                          \
    static __forceinline__ type max(type a, type b) { return a < b ? b : a; }
EMULATE_MIN_MAX(int)
EMULATE_MIN_MAX(unsigned)
EMULATE_MIN_MAX(long)
EMULATE_MIN_MAX(unsigned long)
EMULATE_MIN_MAX(long long)
EMULATE_MIN_MAX(unsigned long long)
#undef EMULATE_MIN_MAX
// As on a card, a NaN loses against a number.
static __forceinline__ float min(float a, float b) { return fminf(a, b); }
static __forceinline__ float max(float a, float b) { return fmaxf(a, b); }
static __forceinline__ double min(double a, double b) { return fmin(a, b); }
static __forceinline__ double max(double a, double b) { return fmax(a, b); }

// Rounded once, to the nearest: what contraction cannot touch.
static __forceinline__ float __fadd_rn(float a, float b) { return a + b; }
static __forceinline__ float __fsub_rn(float a, float b) { return a - b; }
static __forceinline__ float __fmul_rn(float a, float b) { return a * b; }
static __forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
static __forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
static __forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static __forceinline__ double __dadd_rn(double a, double b) { return a + b; }
static __forceinline__ double __dmul_rn(double a, double b) { return a * b; }
static __forceinline__ double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static __forceinline__ int __float2int_rn(float x) { return (int)rintf(x); }
static __forceinline__ int __float2int_rz(float x) { return (int)x; }
static __forceinline__ int __float2int_rd(float x) { return (int)floorf(x); }

// A card has quicker, less exact instructions for these; here they are exact.
#define __expf expf
#define __exp2f exp2f
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __tanhf tanhf
#define __powf powf
#define __fdividef(a, b) ((a) / (b))
#define __frcp_rn(a) (1.0f / (a))
#define __frsqrt_rn(a) (1.0f / sqrtf(a))
