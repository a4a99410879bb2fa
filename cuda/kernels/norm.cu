// LayerNorm and RmsNorm over the last axis, and their derivatives.
//
// Statistics are kept in double, as on the CPU: the squares of floats cannot overflow there, and a mean that is large beside
// the spread is subtracted before anything is rounded. The variance takes a second look at the row, which registers give
// for nothing; E[x²] − mean² would cancel.
//
// What bounds them: memory. LayerNorm converts each element three times between float and double (x for the mean; x and
// x − mean for the variance), RmsNorm once; a multiprocessor converts 16 a turn of the clock, and memory gives it 2 floats
// or 4 bf16 in and out, so conversions take 3/8 of the time of a row of floats and 3/4 of one of bf16.
//
//   1. Three passes over memory                   mean, variance, result: 3 reads and 1 write of each element.
//   2. A row in registers                         1 read and 1 write; gain and bias come from the cache. Lanes, a warp or a
//                                                 block to a row (`FOR_ROWS_OF`).
//   3. Rows that do not fit                       version 1 with a block to a row: what is read again is in the cache.
//
// Bytes an element, in sizes of the dtype: layer_norm and rms_norm 2, the cotangent of x 3, those of gain and bias 2 more,
// where one kernel for both would read x and its cotangent once: 5 instead of 3. A row's sums come from threads along it, a
// column's from threads down a slab, in an order that no card changes.
// Operations: 8 and 4, the cotangent of x 12 and 9, those of gain and bias 5.
#include "columns.cuh"

// ── Statistics ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// A row, and what was subtracted from its elements and is multiplied to them: x̂ = (x − mean)·scale. Where the row is held,
/// the mean has been subtracted already.
template <typename R> struct Normalised {
    typedef typename R::W W;
    R row;
    double mean = 0, scale;

    __device__ __forceinline__ Normalised(const typename R::Element* x, i64 columns, bool vector)
        : row(x, columns, vector) {}

    /// The elements less the mean, rounded once; beyond the row's end something else.
    __device__ __forceinline__ Values<typename R::Element> centred(int p, i64 first) const {
        auto values = row.pack(p, first);
        if constexpr (!R::HELD)
#pragma unroll
            for (int k = 0; k < R::WIDTH; k++) values.at[k] = W(values.at[k] - mean);
        return values;
    }

    /// Finds mean and scale = 1/√(var + eps).
    __device__ __forceinline__ void centre(double eps) {
        double sum = 0;
        row.each_pack([&](int p, i64 first) {
            const auto x = row.pack(p, first);
#pragma unroll
            for (int k = 0; k < R::WIDTH; k++) sum += x.at[k];
        });
        mean = R::Members::reduce(sum, Sum()) / row.columns;
        double squares = 0;
        row.each_pack([&](int p, i64 first) {
            auto x = row.pack(p, first);
#pragma unroll
            for (int k = 0; k < R::WIDTH; k++) {
                const double difference = x.at[k] - mean;
                squares += first + k < row.columns ? difference * difference : 0.0;
                x.at[k] = W(difference);
            }
            if constexpr (R::HELD) row.held[p] = x;
        });
        scale = 1 / sqrt(R::Members::reduce(squares, Sum()) / row.columns + eps);
    }

    /// Finds scale = 1/√(mean(x²) + eps); the mean stays 0.
    __device__ __forceinline__ void rescale(double eps) {
        double squares = 0;
        row.each_pack([&](int p, i64 first) {
            const auto x = row.pack(p, first);
#pragma unroll
            for (int k = 0; k < R::WIDTH; k++) squares += (double)x.at[k] * x.at[k];
        });
        scale = 1 / sqrt(R::Members::reduce(squares, Sum()) / row.columns + eps);
    }
};

/// The row of this team; one that is not there has no columns.
template <typename R>
__device__ __forceinline__ Normalised<R> own_row(const typename R::Element* x, i64 stride, const Rows& rows) {
    const i64 number = R::Members::row();
    return Normalised<R>(x + number * stride, number < rows.count ? rows.columns : 0, rows.vector);
}

// ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// y = x̂∘gain + bias, or without a bias y = x̂∘gain.
template <bool BIAS, typename R>
__device__ __forceinline__ void apply(typename R::Element* y, const Normalised<R>& x, const typename R::Element* gain,
                                      const typename R::Element* bias, const Rows& rows) {
    typedef typename R::W W;
    const W scale = W(x.scale);
    x.row.each_pack([&](int p, i64 first) {
        auto values = x.centred(p, first);
        const auto gains = read_pack(gain, first, rows.columns, rows.vector);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) values.at[k] = values.at[k] * scale * gains.at[k];
        if constexpr (BIAS) {
            const auto biases = read_pack(bias, first, rows.columns, rows.vector);
#pragma unroll
            for (int k = 0; k < R::WIDTH; k++) values.at[k] += biases.at[k];
        }
        write_pack(y + R::Members::row() * rows.columns, first, rows.columns, rows.vector, values);
    });
}

/// What the cotangents of gain and bias need of each row.
struct RowStatistics {
    double mean, scale;
};

/// x̄ = scale·(ĝ − mean(ĝ) − x̂·mean(ĝ∘x̂)) with ĝ = g∘gain; an RmsNorm's has no mean(ĝ).
template <bool CENTRED, typename R>
__device__ __forceinline__ void apply_backward(typename R::Element* dx, RowStatistics* statistics, const Normalised<R>& x,
                                               const typename R::Element* gain, const typename R::Element* g,
                                               i64 g_stride, const Rows& rows) {
    typedef typename R::W W;
    const i64 number = R::Members::row();
    const W scale = W(x.scale);
    R cotangent(g + number * g_stride, x.row.columns, rows.vector);
    const auto weighed = [&](int p, i64 first) {
        auto values = cotangent.pack(p, first);
        const auto gains = read_pack(gain, first, rows.columns, rows.vector);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) values.at[k] *= gains.at[k];
        return values;
    };
    double sum = 0, product = 0;
    x.row.each_pack([&](int p, i64 first) {
        const auto centred = x.centred(p, first), values = weighed(p, first);
        if constexpr (R::HELD) cotangent.held[p] = values;
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) {
            if constexpr (CENTRED) sum += values.at[k];
            product += (double)(centred.at[k] * scale) * values.at[k];
        }
    });
    const W mean = CENTRED ? W(R::Members::reduce(sum, Sum()) / rows.columns) : W(0);
    const W along = W(R::Members::reduce(product, Sum()) / rows.columns);
    x.row.each_pack([&](int p, i64 first) {
        auto values = x.centred(p, first);
        const auto weights = R::HELD ? cotangent.pack(p, first) : weighed(p, first);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++)
            values.at[k] = scale * (weights.at[k] - mean - values.at[k] * scale * along);
        write_pack(dx + number * rows.columns, first, rows.columns, rows.vector, values);
    });
    if (R::Members::member() == 0 && number < rows.count) statistics[number] = {x.mean, x.scale};
}

#define NORM_ENTRIES(dtype, T, kind, lanes, packs)                                                                     \
    KERNEL(Team<lanes>::THREADS, layer_norm_##dtype##_##kind,                                                          \
           (T * y, const T* x, i64 stride, const T* gain, const T* bias, double eps, Rows rows)) {                     \
        auto normalised = own_row<Row<T, lanes, packs>>(x, stride, rows);                                              \
        normalised.centre(eps);                                                                                        \
        apply<true>(y, normalised, gain, bias, rows);                                                                  \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, rms_norm_##dtype##_##kind,                                                            \
           (T * y, const T* x, i64 stride, const T* gain, double eps, Rows rows)) {                                    \
        auto normalised = own_row<Row<T, lanes, packs>>(x, stride, rows);                                              \
        normalised.rescale(eps);                                                                                       \
        apply<false>(y, normalised, gain, gain, rows);                                                                 \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, layer_norm_backward_##dtype##_##kind,                                                 \
           (T * dx, RowStatistics * statistics, const T* x, i64 stride, const T* gain, const T* g, i64 g_stride,       \
            double eps, Rows rows)) {                                                                                  \
        auto normalised = own_row<Row<T, lanes, packs>>(x, stride, rows);                                              \
        normalised.centre(eps);                                                                                        \
        apply_backward<true>(dx, statistics, normalised, gain, g, g_stride, rows);                                     \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, rms_norm_backward_##dtype##_##kind,                                                   \
           (T * dx, RowStatistics * statistics, const T* x, i64 stride, const T* gain, const T* g, i64 g_stride,       \
            double eps, Rows rows)) {                                                                                  \
        auto normalised = own_row<Row<T, lanes, packs>>(x, stride, rows);                                              \
        normalised.rescale(eps);                                                                                       \
        apply_backward<false>(dx, statistics, normalised, gain, g, g_stride, rows);                                    \
    }

FOR_ROWS(NORM_ENTRIES)

// ── Columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// The cotangents of gain and bias, Σ_rows g∘x̂ and Σ_rows g, by slabs of rows (columns.cuh).

/// The sums of a slab of rows, for one pack of columns a lane: block (tile, slab), results [slabs, columns].
template <typename T>
__device__ __forceinline__ void sum_slab(double* gains, double* biases, const RowStatistics* statistics, const T* x,
                                         i64 stride, const T* g, i64 g_stride, i64 slab, const Rows& rows) {
    typedef typename Wide<T>::type W;
    constexpr int WIDTH = pack_width<T>(), LANES = 32, LINES = lines<LANES>();
    const i64 first = first_column<LANES, WIDTH>();
    const i64 begin = blockIdx.y * slab, end = begin + slab < rows.count ? begin + slab : rows.count;
    double gain[WIDTH] = {}, bias[WIDTH] = {};
    if (first < rows.columns) {
#pragma unroll 1
        for (i64 row = begin + threadIdx.x / LANES; row < end; row += LINES) {
            const RowStatistics of = statistics[row];
            const auto values = read_pack(x + row * stride, first, rows.columns, rows.vector);
            const auto cotangents = read_pack(g + row * g_stride, first, rows.columns, rows.vector);
            const W scale = W(of.scale);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                gain[k] += cotangents.at[k] * (W(values.at[k] - of.mean) * scale);
                bias[k] += cotangents.at[k];
            }
        }
    }
    add_up_lines<LANES>(gain, rows.columns, ToSlab{gains + blockIdx.y * rows.columns});
    if (biases) add_up_lines<LANES>(bias, rows.columns, ToSlab{biases + blockIdx.y * rows.columns});
}

#define COLUMN_ENTRIES(dtype, T)                                                                                       \
    KERNEL(256, norm_columns_##dtype,                                                                                  \
           (double* gains, double* biases, const RowStatistics* statistics, const T* x, i64 stride, const T* g,        \
            i64 g_stride, i64 slab, Rows rows)) {                                                                      \
        sum_slab(gains, biases, statistics, x, stride, g, g_stride, slab, rows);                                       \
    }                                                                                                                  \
    KERNEL(256, norm_slabs_##dtype, (T * sums, const double* slabs, i64 count, i64 columns)) {                         \
        sum_slabs(sums, slabs, count, columns);                                                                        \
    }

FOR_FLOATS(COLUMN_ENTRIES)
