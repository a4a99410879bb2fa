// Softmax, its logarithm and cross-entropy over the last axis, and their derivatives.
//
// The largest logit of a row is subtracted first, so that no exponential overflows. A logit of −∞ has probability 0; a row
// that holds a NaN or +∞, or nothing but −∞, is all NaN. Sums are kept in double: beside the 1 of the largest logit, a
// float would forget what is below 2⁻²⁴, and the loss of a nearly certain prediction would be 0.
//
// What bounds them: memory. An element takes one exponential (some 10 instructions) and one addition in double.
//
//   1. Three passes over memory                   the largest, the sum, the result: 3 reads and 1 write of each element.
//   2. A row in registers                         1 read and 1 write. A row of up to 4 packs of 16 bytes is 4 lanes', of up
//                                                 to 128 a warp's, of up to 2048 a block's (`FOR_ROWS_OF`).
//   3. Rows that do not fit                       largest and sum in one pass, the sum scaled whenever a larger logit comes
//                                                 (Milakov and Gimelshein 2018): 2 reads and 1 write. A row of a large
//                                                 vocabulary is in the cache when it is read again.
//
// Bytes an element, in sizes of the dtype: softmax, log_softmax and cross_entropy_backward 2, cross_entropy 1, the other
// derivatives 3; operations 5 to 7.
#include "prelude.cuh"

// ── A row's largest element, and the sum of its exponentials ────────────────────────────────────────────────────────

/// The larger of two, or the one that is a number: a NaN reaches the sum by itself.
struct LargestNumber {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return fmax(a, b); }
};

/// What is subtracted from the elements of a row, and Σ exp(x − largest).
template <typename W> struct Extent {
    W largest;
    double total;
};

/// The extent of a row in registers, where kept(x − largest, exp(x − largest)) takes the place of x.
template <typename R, typename Kept> __device__ __forceinline__ Extent<typename R::W> measure_held(R& row, Kept kept) {
    typedef typename R::W W;
    W largest = -infinity<W>();
    row.each_pack([&](int p, i64) {
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) largest = fmax(largest, row.held[p].at[k]);
    });
    largest = R::Members::reduce(largest, LargestNumber());
    double total = 0;
    row.each_pack([&](int p, i64) {
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) {
            const W below = row.held[p].at[k] - largest, exponential = exp(below);
            total += exponential;
            row.held[p].at[k] = kept(below, exponential);
        }
    });
    return {largest, R::Members::reduce(total, Sum())};
}

/// The extent of a row that is read once, element by element. Before the first number the largest is −∞, and the sum 0.
template <typename R> __device__ __forceinline__ Extent<typename R::W> measure_online(const R& row) {
    typedef typename R::W W;
    W largest = -infinity<W>();
    double total = 0;
    row.each_pack([&](int p, i64 first) {
        const auto x = row.pack(p, first);
        W now = largest;
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) now = fmax(now, x.at[k]);
        if (now > largest) total *= exp(largest - now);
        largest = now;
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) total += x.at[k] == -infinity<W>() ? W(0) : exp(x.at[k] - largest);
    });
    const W of_row = R::Members::reduce(largest, LargestNumber());
    if (of_row > largest) total *= exp(largest - of_row);
    return {of_row, R::Members::reduce(total, Sum())};
}

// ── Functions of a row ──────────────────────────────────────────────────────────────────────────────────────────────
// `begin` is told the row, `kept` says what of (x − largest, its exponential) is needed, `end` is told the sum, and `at`
// is the result at a column.

template <typename W> struct Softmax {
    W scale;
    __device__ __forceinline__ void begin(i64) {}
    static __device__ __forceinline__ W kept(W, W exponential) { return exponential; }
    __device__ __forceinline__ void end(double total) { scale = W(1 / total); }
    __device__ __forceinline__ W at(W exponential, i64) const { return exponential * scale; }
};

template <typename W> struct LogSoftmax {
    W log_total;
    __device__ __forceinline__ void begin(i64) {}
    static __device__ __forceinline__ W kept(W below, W) { return below; }
    __device__ __forceinline__ void end(double total) { log_total = W(log(total)); }
    __device__ __forceinline__ W at(W below, i64) const { return below - log_total; }
};

/// g·(softmax(x) − onehot(label)), g the cotangent of the row's loss. A label outside the classes is none of them.
template <typename T> struct CrossEntropyBackward {
    typedef typename Wide<T>::type W;
    const i64* labels;
    const T* cotangents;
    i64 label_stride, cotangent_stride;
    i64 label;
    W g, scale;
    __device__ __forceinline__ void begin(i64 row) {
        label = labels[row * label_stride];
        g = widen(cotangents[row * cotangent_stride]);
    }
    static __device__ __forceinline__ W kept(W, W exponential) { return exponential; }
    __device__ __forceinline__ void end(double total) { scale = W(1 / total); }
    __device__ __forceinline__ W at(W exponential, i64 column) const {
        return g * (exponential * scale - (column == label ? W(1) : W(0)));
    }
};

/// y[row] = f of x[row].
template <typename R, typename F>
__device__ __forceinline__ void each_row(typename R::Element* y, const typename R::Element* x, i64 stride,
                                         const Rows& rows, F f) {
    typedef typename R::W W;
    const i64 number = R::Members::row();
    const bool is_row = number < rows.count;
    R row(x + number * stride, is_row ? rows.columns : 0, rows.vector, -infinity<W>());
    if (is_row) f.begin(number);
    Extent<W> extent;
    if constexpr (R::HELD) extent = measure_held(row, [](W below, W exponential) { return F::kept(below, exponential); });
    else extent = measure_online(row);
    f.end(extent.total);
    row.each_pack([&](int p, i64 first) {
        auto values = row.pack(p, first);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) {
            if constexpr (!R::HELD) {
                const W below = values.at[k] - extent.largest;
                values.at[k] = F::kept(below, exp(below));
            }
            values.at[k] = f.at(values.at[k], first + k);
        }
        write_pack(y + number * rows.columns, first, rows.columns, rows.vector, values);
    });
}

/// loss[row] = ln Σ exp(x − largest) − (x[label] − largest). A label outside the classes is a fault, and its loss NaN.
template <typename R>
__device__ __forceinline__ void each_loss(typename R::Element* loss, const typename R::Element* x, i64 stride,
                                          const i64* labels, i64 label_stride, const Rows& rows, const Fault& fault) {
    typedef typename R::W W;
    const i64 number = R::Members::row();
    const bool is_row = number < rows.count;
    R row(x + number * stride, is_row ? rows.columns : 0, rows.vector, -infinity<W>());
    Extent<W> extent;
    if constexpr (R::HELD) extent = measure_held(row, [](W below, W) { return below; });
    else extent = measure_online(row);
    if (!is_row || R::Members::member() != 0) return;
    const i64 label = labels[number * label_stride];
    double chosen = not_a_number<double>();
    if (fault.admits(label, rows.columns, number)) chosen = widen(x[number * stride + label]) - (double)extent.largest;
    loss[number] = narrow<typename R::Element>(W(log(extent.total) - chosen));
}

// ── Derivatives from the result ─────────────────────────────────────────────────────────────────────────────────────
// Of y and its cotangent g: `weighed` is summed over the row, `at` is the cotangent of x.

/// y∘(g − Σ g∘y)
template <typename W> struct SoftmaxBackward {
    static __device__ __forceinline__ double weighed(W y, W g) { return (double)y * g; }
    static __device__ __forceinline__ W at(W y, W g, W total) { return y * (g - total); }
};
/// g − exp(y)·Σ g
template <typename W> struct LogSoftmaxBackward {
    static __device__ __forceinline__ double weighed(W, W g) { return g; }
    static __device__ __forceinline__ W at(W y, W g, W total) { return g - exp(y) * total; }
};

template <typename R, typename F>
__device__ __forceinline__ void each_cotangent(typename R::Element* dx, const typename R::Element* y, i64 y_stride,
                                               const typename R::Element* g, i64 g_stride, const Rows& rows, F f) {
    typedef typename R::W W;
    const i64 number = R::Members::row();
    const i64 columns = number < rows.count ? rows.columns : 0;
    const R result(y + number * y_stride, columns, rows.vector);
    const R cotangent(g + number * g_stride, columns, rows.vector);
    double sum = 0;
    result.each_pack([&](int p, i64 first) {
        const auto y = result.pack(p, first), g = cotangent.pack(p, first);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) sum += f.weighed(y.at[k], g.at[k]);
    });
    const W total = W(R::Members::reduce(sum, Sum()));
    result.each_pack([&](int p, i64 first) {
        auto y = result.pack(p, first);
        const auto g = cotangent.pack(p, first);
#pragma unroll
        for (int k = 0; k < R::WIDTH; k++) y.at[k] = f.at(y.at[k], g.at[k], total);
        write_pack(dx + number * rows.columns, first, rows.columns, rows.vector, y);
    });
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define SOFTMAX_ENTRIES(dtype, T, kind, lanes, packs)                                                                    \
    KERNEL(Team<lanes>::THREADS, softmax_##dtype##_##kind, (T * y, const T* x, i64 stride, Rows rows)) {               \
        each_row<Row<T, lanes, packs>>(y, x, stride, rows, Softmax<Wide<T>::type>());                                    \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, log_softmax_##dtype##_##kind, (T * y, const T* x, i64 stride, Rows rows)) {           \
        each_row<Row<T, lanes, packs>>(y, x, stride, rows, LogSoftmax<Wide<T>::type>());                                 \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, cross_entropy_##dtype##_##kind,                                                       \
           (T * loss, const T* x, i64 stride, const i64* labels, i64 label_stride, Rows rows, Fault fault)) {          \
        each_loss<Row<T, lanes, packs>>(loss, x, stride, labels, label_stride, rows, fault);                             \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, cross_entropy_backward_##dtype##_##kind,                                              \
           (T * dx, const T* x, i64 stride, const i64* labels, i64 label_stride, const T* g, i64 g_stride,             \
            Rows rows)) {                                                                                              \
        CrossEntropyBackward<T> f;                                                                                     \
        f.labels = labels, f.cotangents = g, f.label_stride = label_stride, f.cotangent_stride = g_stride;             \
        each_row<Row<T, lanes, packs>>(dx, x, stride, rows, f);                                                          \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, softmax_backward_##dtype##_##kind,                                                    \
           (T * dx, const T* y, i64 y_stride, const T* g, i64 g_stride, Rows rows)) {                                  \
        each_cotangent<Row<T, lanes, packs>>(dx, y, y_stride, g, g_stride, rows, SoftmaxBackward<Wide<T>::type>());      \
    }                                                                                                                  \
    KERNEL(Team<lanes>::THREADS, log_softmax_backward_##dtype##_##kind,                                                \
           (T * dx, const T* y, i64 y_stride, const T* g, i64 g_stride, Rows rows)) {                                  \
        each_cotangent<Row<T, lanes, packs>>(dx, y, y_stride, g, g_stride, rows, LogSoftmaxBackward<Wide<T>::type>());   \
    }

FOR_ROWS(SOFTMAX_ENTRIES)
