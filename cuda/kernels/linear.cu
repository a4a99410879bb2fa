// Where the derivative of a linear layer begins: from its result y = act(z) and the cotangent g of that, the cotangents
// z̄ = g∘act′(y) of what the activation was applied to, and b̄ = Σ_rows z̄ of the bias. (The layer is a product: matmul.cuh.)
//
// act′ is a function of the result: 1, sign(y), 1 − y² for tanh, y·(1 − y) for the sigmoid. z̄ is computed as the words for
// elements compute it, to the bit, and rounded once; b̄ is the sum of what was not rounded yet, in double.
//
// What bounds it: memory. An element is converted to double once, of which a multiprocessor does 16 a turn of the clock;
// memory gives it 2 floats or 4 bf16 in that time, y, g and z̄ together.
//
//   1. A word for each step                       relu reads and writes 6 sizes an element (sign, product, sum), tanh 8, the
//                                                 sigmoid 9.
//   2. One pass                                   a thread has a pack of columns, 16 bytes, and goes down the rows of its
//                                                 slab: y and g in, z̄ out, the sums in registers (columns.cuh).
//   3. Four rows under way                        their 8 loads stand before the first store. Left to itself the compiler
//                                                 keeps the order, since z̄ might be y.
//   4. Few columns                                a row of up to 4 packs is 4 lanes', 64 rows at once: of 32 lanes most
//                                                 would be idle.
//   5. Few rows                                   are one slab, whose sum is b̄: there is no second launch.
//
// Bytes an element: 3 sizes of the dtype, and for a slab of 128 rows or more at most 1/8 byte: a double, written and read.
// Operations: 2 to 4.
#include "columns.cuh"

/// The elements of a pack that was loaded.
template <typename T> __device__ __forceinline__ Values<T> widened(const Pack<T, pack_width<T>()>& pack) {
    Values<T> values;
#pragma unroll
    for (int k = 0; k < pack_width<T>(); k++) values.at[k] = widen(pack.at[k]);
    return values;
}

// act′, given the activation's result.

struct Identity {
    template <typename W> __device__ __forceinline__ W operator()(W) const { return W(1); }
};
struct Relu {
    template <typename W> __device__ __forceinline__ W operator()(W y) const {
        return y > W(0) ? W(1) : y < W(0) ? W(-1) : is_nan(y) ? y : W(0);
    }
};
struct Tanh {
    template <typename W> __device__ __forceinline__ W operator()(W y) const { return W(1) - y * y; }
};
struct Sigmoid {
    template <typename W> __device__ __forceinline__ W operator()(W y) const { return y * (W(1) - y); }
};

/// The rows of a slab, for one pack of columns a lane: block (tile, slab), sums [slabs, columns]. Without `slabs` there is
/// one, and its sum is b̄.
template <typename Derivative, int LANES, typename T>
__device__ __forceinline__ void pull_slab(T* dz, T* db, double* slabs, const T* y, i64 stride, const T* g, i64 g_stride,
                                          i64 slab, const Rows& rows) {
    constexpr int WIDTH = pack_width<T>(), LINES = lines<LANES>(), AHEAD = 4;
    const i64 first = first_column<LANES, WIDTH>(), begin = blockIdx.y * slab + threadIdx.x / LANES;
    const i64 end = (blockIdx.y + 1) * slab < rows.count ? (blockIdx.y + 1) * slab : rows.count;
    double sums[WIDTH] = {};
    const auto pull = [&](Values<T> values, const Values<T>& cotangents) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            values.at[k] = cotangents.at[k] * Derivative()(values.at[k]);
            sums[k] += values.at[k];
        }
        return values;
    };
    if (first < rows.columns && rows.vector) { // then every pack is whole
#pragma unroll 1
        for (i64 row = begin; row < end; row += AHEAD * LINES) {
            Pack<T, WIDTH> values[AHEAD], cotangents[AHEAD];
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ahead++) {
                const i64 at = row + ahead * LINES;
                if (at >= end) continue;
                values[ahead] = load_pack<T, WIDTH>(y + at * stride + first);
                cotangents[ahead] = load_pack<T, WIDTH>(g + at * g_stride + first);
            }
#pragma unroll
            for (int ahead = 0; ahead < AHEAD; ahead++) {
                const i64 at = row + ahead * LINES;
                if (at >= end) continue;
                const auto pulled = pull(widened(values[ahead]), widened(cotangents[ahead]));
                write_pack(dz + at * rows.columns, first, rows.columns, true, pulled);
            }
        }
    } else if (first < rows.columns) {
#pragma unroll 1
        for (i64 row = begin; row < end; row += LINES) {
            const auto values = read_pack(y + row * stride, first, rows.columns, false);
            const auto cotangents = read_pack(g + row * g_stride, first, rows.columns, false);
            write_pack(dz + row * rows.columns, first, rows.columns, false, pull(values, cotangents));
        }
    }
    add_up_lines<LANES>(sums, rows.columns, [&](i64 column, double sum) {
        if (slabs) slabs[blockIdx.y * rows.columns + column] = sum;
        else db[column] = total<T>(sum);
    });
}

#define LINEAR_ENTRY(name, Derivative, dtype, T, kind, LANES)                                                          \
    KERNEL(256, linear_backward_##name##_##dtype##_##kind,                                                             \
           (T * dz, T * db, double* slabs, const T* y, i64 stride, const T* g, i64 g_stride, i64 slab, Rows rows)) {   \
        pull_slab<Derivative, LANES>(dz, db, slabs, y, stride, g, g_stride, slab, rows);                               \
    }
#define LINEAR_ENTRIES(dtype, T, kind, LANES)                                                                          \
    LINEAR_ENTRY(identity, Identity, dtype, T, kind, LANES)                                                            \
    LINEAR_ENTRY(relu, Relu, dtype, T, kind, LANES)                                                                    \
    LINEAR_ENTRY(tanh, Tanh, dtype, T, kind, LANES)                                                                    \
    LINEAR_ENTRY(sigmoid, Sigmoid, dtype, T, kind, LANES)
#define DTYPE_ENTRIES(dtype, T)                                                                                        \
    LINEAR_ENTRIES(dtype, T, four, 4)                                                                                  \
    LINEAR_ENTRIES(dtype, T, warp, 32)                                                                                 \
    KERNEL(256, linear_slabs_##dtype, (T * db, const double* slabs, i64 count, i64 columns)) {                         \
        sum_slabs(db, slabs, count, columns);                                                                          \
    }

FOR_FLOATS(DTYPE_ENTRIES)
