// The bodies that the functions of ptx.cuh have on a processor. What each computes is said there.
//
// Lanes that compute together meet, and the last to come does the work of all. An asynchronous instruction is put off
// until it is waited for.
#pragma once

namespace emulate {

/// Whether all lanes take part in an operation that needs the whole group.
EMULATE_LAMBDA static inline bool whole(void** operands, unsigned lanes, const void* place) {
    for (unsigned lane = 0; lane < lanes; lane++) {
        if (operands[lane]) continue;
        runtime->missing_lane(current, current->lane, lane % 32, place);
        return false;
    }
    return true;
}

EMULATE_LAMBDA static inline float float_of_bits(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
}
/// The low or the high bf16 of a register.
EMULATE_LAMBDA static inline float half_of(unsigned pair, int high) {
    return float_of_bits(high ? pair & 0xffff0000u : pair << 16);
}

// ── Copies ──

struct Copy {
    char* to;
    const char* from;
    int bytes, valid;
    const void* place;
};

EMULATE_LAMBDA static inline void copy_now(void* operands) {
    const Copy& copy = *static_cast<Copy*>(operands);
    if (copy.valid) note(copy.from, copy.valid, READ_UNALIGNED, copy.place);
    note(copy.to, copy.bytes, WRITE_UNALIGNED, copy.place);
    __builtin_memcpy(copy.to, copy.from, copy.valid);
    __builtin_memset(copy.to + copy.valid, 0, copy.bytes - copy.valid);
}

static EMULATE_QUICK void copy_async(void* to, const void* from, int bytes, int valid, const void* place) {
    // A wrong address is a fault at once; what the copy reads and writes is known when it is made.
    if ((size_t)to % bytes) note(to, bytes, WRITE, place);
    if ((size_t)from % bytes) note(from, bytes, READ, place);
    const Copy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes, valid, place};
    runtime->copy(current, copy_now, &copy, sizeof(copy), to, bytes, place);
}

// ── Matrices of a warp ──

struct MatrixRow {
    const char* row;
    unsigned* registers;
};

/// Lane l gets row l / 4, elements 2(l % 4) and the one after, of each of the four matrices.
EMULATE_LAMBDA static inline void load_matrices(void** operands, const void* place) {
    if (!whole(operands, 32, place)) return;
    for (int matrix = 0; matrix < 4; matrix++)
        for (int lane = 0; lane < 32; lane++) {
            const char* row = static_cast<MatrixRow*>(operands[matrix * 8 + lane / 4])->row;
            __builtin_memcpy(&static_cast<MatrixRow*>(operands[lane])->registers[matrix], row + lane % 4 * 4, 4);
        }
}

/// The same of the transposed matrices: element (r, c) is element c of row r, so lane l gets column l / 4.
EMULATE_LAMBDA static inline void load_matrices_transposed(void** operands, const void* place) {
    if (!whole(operands, 32, place)) return;
    for (int matrix = 0; matrix < 4; matrix++)
        for (int lane = 0; lane < 32; lane++) {
            unsigned short pair[2];
            for (int i = 0; i < 2; i++) {
                const char* row = static_cast<MatrixRow*>(operands[matrix * 8 + lane % 4 * 2 + i])->row;
                __builtin_memcpy(&pair[i], row + lane / 4 * 2, 2);
            }
            __builtin_memcpy(&static_cast<MatrixRow*>(operands[lane])->registers[matrix], pair, 4);
        }
}

/// The operands of a lane for d += a·b.
struct Fragments {
    float* d;
    const unsigned* a;
    unsigned b[2];
};

/// d += a·b for a 16×K and a K×8 tile, spread over the lanes; products are exact, sums are rounded to float.
template <int K>
EMULATE_LAMBDA static inline void multiply(void** operands, const float (&a)[16][K], const float (&b)[K][8]) {
    for (int lane = 0; lane < 32; lane++) {
        float* d = static_cast<Fragments*>(operands[lane])->d;
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = d[i];
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
            d[i] = sum;
        }
    }
}

/// Register i of a holds the elements (l / 4 + 8(i % 2), 2(l % 4) + 8(i / 2)) and the one after; register i of b those
/// of column l / 4 in the rows 2(l % 4) + 8i and the next.
EMULATE_LAMBDA static inline void multiply_bf16(void** operands, const void* place) {
    if (!whole(operands, 32, place)) return;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& fragments = *static_cast<Fragments*>(operands[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++) a[group + i % 2 * 8][pair + i / 2 * 8 + half] = half_of(fragments.a[i], half);
            for (int i = 0; i < 2; i++) b[pair + i * 8 + half][group] = half_of(fragments.b[i], half);
        }
    }
    multiply(operands, a, b);
}

/// Register i of a holds the element (l / 4 + 8(i % 2), l % 4 + 4(i / 2)), register i of b (l % 4 + 4i, l / 4). The
/// lower 13 bits are not read.
EMULATE_LAMBDA static inline void multiply_tf32(void** operands, const void* place) {
    if (!whole(operands, 32, place)) return;
    float a[16][8], b[8][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& fragments = *static_cast<Fragments*>(operands[lane]);
        const int group = lane / 4, column = lane % 4;
        for (int i = 0; i < 4; i++)
            a[group + i % 2 * 8][column + i / 2 * 4] = float_of_bits(fragments.a[i] & 0xffffe000u);
        for (int i = 0; i < 2; i++) b[column + i * 4][group] = float_of_bits(fragments.b[i] & 0xffffe000u);
    }
    multiply(operands, a, b);
}

// ── Matrices of a group of four warps ──

/// Where element (mn, k) of an operand lies in shared memory, mn counting rows of a or columns of b.
///
/// A descriptor holds, in units of 16 bytes, the start (bits 0 to 13), the leading distance (16 to 29) and the stride
/// distance (32 to 45); bits 62 and 63 say after how many bytes a row of the layout ends, and how 16-byte chunks change
/// places: with rows of 16·2ᵐ bytes, the m lowest bits of a chunk's number are xored with those of its address / 128.
EMULATE_LAMBDA static inline unsigned element_offset(u64 descriptor, int mn, int k, bool mn_major) {
    static const int MASKS[] = {0, 7, 3, 1};
    const int mask = MASKS[descriptor >> 62];
    const int row_bytes = 16 * (mask + 1), row_elements = row_bytes / 2;
    const unsigned start = (descriptor & 0x3fff) << 4;
    const unsigned leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    unsigned offset = start;
    if (!mn_major && mask == 0)
        offset += mn / 8 * stride + k / 8 * leading + mn % 8 * 16 + k % 8 * 2;
    else if (!mn_major)
        offset += mn / 8 * stride + mn % 8 * row_bytes + k * 2;
    else if (mask == 0)
        offset += mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2;
    else
        offset += mn / row_elements * leading + k / 8 * stride + k % 8 * row_bytes + mn % row_elements * 2;
    return offset ^ (offset >> 7 & mask) << 4;
}

/// Writes down the chunks of 16 bytes of a tile of `rows` × 16 elements, by their 32-bit addresses. A chunk has eight
/// neighbours along the axis that its rows run along.
EMULATE_LAMBDA static inline unsigned* list_chunks(unsigned* chunks, int rows, u64 descriptor, bool mn_major) {
    for (int mn = 0; mn < rows; mn += mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += mn_major ? 1 : 8) *chunks++ = element_offset(descriptor, mn, k, mn_major);
    return chunks;
}

/// A product that has been issued: the accumulators of 128 threads, and what they held.
template <int N> struct Product {
    float* d[128];
    float held[128][N / 2];
    bool taken; // whether `held` is the start: the accumulators are NaN until the product is waited for
    bool accumulate;
    u64 a, b;
    const void* place;
};

/// The operands that a thread brings.
struct ProductOperand {
    float* d;
    u64 a, b;
    bool accumulate;
};

/// Reads a tile of `rows` × 16 elements into floats.
template <int rows>
EMULATE_LAMBDA void read_tile(float (&tile)[rows][16], u64 descriptor, bool mn_major, const void* place) {
    for (int mn = 0; mn < rows; mn++)
        for (int k = 0; k < 16; k++) {
            const void* element = runtime->shared_pointer(current, element_offset(descriptor, mn, k, mn_major));
            unsigned short bits;
            note(element, 2, READ_OPERAND, place);
            __builtin_memcpy(&bits, element, 2);
            tile[mn][k] = float_of_bits((unsigned)bits << 16);
        }
}

/// Thread t has, of warp t / 32, rows 16(t / 32) + l / 4 and 8 below, columns 8j + 2(l % 4) and the next.
template <int N, bool a_mn_major, bool b_mn_major> EMULATE_LAMBDA void multiply_now(void* operands) {
    auto& product = *static_cast<Product<N>*>(operands);
    float a[64][16], b[N][16];
    read_tile(a, product.a, a_mn_major, product.place);
    read_tile(b, product.b, b_mn_major, product.place);
    for (int thread = 0; thread < 128; thread++) {
        const int lane = thread % 32;
        const float* start = product.taken ? product.held[thread] : product.d[thread];
        for (int i = 0; i < N / 2; i++) {
            const int row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = product.accumulate ? start[i] : 0.0f;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
            product.d[thread][i] = sum;
        }
    }
}

/// What the Rust side answers to the issue of a product.
enum Issue { IN_FLIGHT = 1, FENCED = 2 };

template <int N, bool a_mn_major, bool b_mn_major>
EMULATE_LAMBDA void issue_product(void** operands, const void* place) {
    if (!whole(operands, 128, place)) return;
    const auto& first = *static_cast<ProductOperand*>(operands[0]);
    const int state = runtime->issue(current);
    if (!(state & FENCED)) runtime->unordered(current, "multiplies matrices, and no wgmma_fence came before", place);
    Product<N> product;
    product.taken = !(state & IN_FLIGHT);
    product.accumulate = first.accumulate;
    product.a = first.a, product.b = first.b;
    product.place = place;
    for (int thread = 0; thread < 128; thread++) {
        float* d = product.d[thread] = static_cast<ProductOperand*>(operands[thread])->d;
        if (!product.taken) continue;
        __builtin_memcpy(product.held[thread], d, sizeof(product.held[thread]));
        __builtin_memset(static_cast<void*>(d), 0xff, sizeof(product.held[thread]));
    }
    unsigned chunks[(64 + N) * 2];
    list_chunks(list_chunks(chunks, 64, product.a, a_mn_major), N, product.b, b_mn_major);
    const Uses uses{product.d, sizeof(product.held[0]), chunks, sizeof(chunks) / sizeof(unsigned)};
    runtime->product(current, multiply_now<N, a_mn_major, b_mn_major>, &product, sizeof(product), &uses, place);
}

EMULATE_LAMBDA static inline void commit_products(void** operands, const void* place) {
    if (whole(operands, 128, place)) runtime->commit(current, WARPGROUP);
}
template <int pending> EMULATE_LAMBDA void wait_for_products(void** operands, const void* place) {
    if (whole(operands, 128, place)) runtime->wait(current, WARPGROUP, pending);
}
EMULATE_LAMBDA static inline void fence_products(void** operands, const void* place) {
    if (whole(operands, 128, place)) runtime->fence(current, FENCE_PRODUCT);
}

} // namespace emulate

static EMULATE_CALL unsigned shared_address(const void* p) {
    return emulate::runtime->shared_offset(emulate::current, p);
}

static EMULATE_CALL void copy_async_16(void* to, const void* from, int valid = 16) {
    emulate::copy_async(to, from, 16, valid, EMULATE_PLACE);
}
static EMULATE_CALL void copy_async_4(void* to, const void* from, int valid = 4) {
    emulate::copy_async(to, from, 4, valid, EMULATE_PLACE);
}
static EMULATE_CALL void copy_async_commit() { emulate::runtime->commit(emulate::current, emulate::THREAD); }
template <int PENDING> EMULATE_CALL void copy_async_wait() {
    emulate::runtime->wait(emulate::current, emulate::THREAD, PENDING);
}

static EMULATE_CALL void load_matrix_x4(unsigned (&r)[4], const void* row) {
    emulate::note(row, 16, emulate::READ, EMULATE_PLACE);
    emulate::MatrixRow operand{static_cast<const char*>(row), r};
    emulate::runtime->meet(emulate::current, emulate::WARP, ~0u, &operand, emulate::load_matrices, EMULATE_PLACE);
}
static EMULATE_CALL void load_matrix_x4_transposed(unsigned (&r)[4], const void* row) {
    emulate::note(row, 16, emulate::READ, EMULATE_PLACE);
    emulate::MatrixRow operand{static_cast<const char*>(row), r};
    emulate::runtime->meet(emulate::current, emulate::WARP, ~0u, &operand, emulate::load_matrices_transposed,
                           EMULATE_PLACE);
}

static EMULATE_CALL void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    emulate::Fragments operand{d, a, {b0, b1}};
    emulate::runtime->meet(emulate::current, emulate::WARP, ~0u, &operand, emulate::multiply_bf16, EMULATE_PLACE);
}
static EMULATE_CALL void mma_tf32_16x8x8(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    emulate::Fragments operand{d, a, {b0, b1}};
    emulate::runtime->meet(emulate::current, emulate::WARP, ~0u, &operand, emulate::multiply_tf32, EMULATE_PLACE);
}

// Ties away from zero: half of the last bit that stays is added to the magnitude.
static inline unsigned round_to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? (bits + 0x1000u) & 0xffffe000u : bits;
}

static EMULATE_CALL void fence_async_proxy() { emulate::runtime->fence(emulate::current, emulate::FENCE_PROXY); }
static EMULATE_CALL void wgmma_fence() {
    unsigned operand = 0;
    emulate::runtime->meet(emulate::current, emulate::WARPGROUP, ~0u, &operand, emulate::fence_products, EMULATE_PLACE);
}
static EMULATE_CALL void wgmma_commit() {
    unsigned operand = 0;
    emulate::runtime->meet(emulate::current, emulate::WARPGROUP, ~0u, &operand, emulate::commit_products, EMULATE_PLACE);
}
template <int PENDING> EMULATE_CALL void wgmma_wait() {
    unsigned operand = 0;
    emulate::runtime->meet(emulate::current, emulate::WARPGROUP, ~0u, &operand, emulate::wait_for_products<PENDING>,
                           EMULATE_PLACE);
}
template <int N, bool A_MN_MAJOR = false, bool B_MN_MAJOR = false>
EMULATE_CALL void wgmma_bf16(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool accumulate = true) {
    static_assert(N == 64 || N == 128 || N == 256, "the widths that ptx.cuh has");
    emulate::ProductOperand operand{d, a, b, accumulate};
    emulate::runtime->meet(emulate::current, emulate::WARPGROUP, ~0u, &operand,
                           emulate::issue_product<N, A_MN_MAJOR, B_MN_MAJOR>, EMULATE_PLACE);
}
