// What every kernel of a matrix product shares: where the factors lie, which part of the work a block has, and what
// happens to a sum on its way to memory.
//
//     y[i, j] = f(Σ_p a[i, p]·b[p, j] + bias[j]) + r[i, j]        for each matrix of a batch
//
// Both factors are seen alike, as vectors along the sum: a has one for each row of the result, b one for each column.
// The number of such a vector is its `outer` index, the position in it the `term`; a factor is transposed by exchanging
// two steps.
#pragma once
#include "prelude.cuh"

/// A factor: element (outer, term) lies outer·outer_step + term·term_step elements behind the first.
struct Factor {
    const void* data;
    i64 outer_step, term_step;
    int along_terms; // whether threads walk the terms, because neighbours lie closer together there than along `outer`
    int vector;      // whether 16 bytes (or 4 elements, if less) may be read at once along that axis, at multiples
};

/// A product for each matrix of a batch. The sum over k terms is cut into `splits` parts of `depth` terms each (the
/// last may have fewer), so that few and long sums keep a card busy too. Sizes and splits follow from shapes alone.
struct MatrixProduct {
    int m, n, k, splits, depth, batches;
    Factor a, b;
    Walk<2> batch;
};

/// What is done to a finished sum: plus bias[column], if there is one, then the activation, plus the element of the
/// residual, if there is one, which lies as the result does.
struct Finish {
    const void* bias;
    i64 bias_step;
    const void* residual;
    int activation; // 0 none, 1 relu, 2 tanh, 3 sigmoid
    int vector;     // whether the residual begins at a multiple of 16 bytes
};

/// f(x), NaN for NaN.
template <typename W> __device__ __forceinline__ W activated(W x, int activation) {
    if (activation == 1) return x > W(0) || is_nan(x) ? x : W(0);
    if (activation == 2) return tanh(x);
    if (activation == 3) {
        const W e = exp(-fabs(x));
        return (x < W(0) ? e : W(1)) / (W(1) + e);
    }
    return x;
}

// ── Where a block works ─────────────────────────────────────────────────────────────────────────────────────────────

/// The first row and column of a block's tile of the result, the terms that it sums, and where its matrices begin.
struct Tile {
    int row, column, first, last;
    i64 a, b; // elements behind the first of each factor
    i64 y;    // elements before this matrix in the result, or in the partial sums
};

/// Rows of tiles whose blocks run one after the other. Their factors are read again while they are still in the cache.
constexpr int TILES_TOGETHER = 8;

/// The tile of ROWS×COLUMNS of block number `block`: tiles of a matrix, in bands of TILES_TOGETHER rows, are
/// innermost, then the parts of the sum, then the batch.
template <int ROWS, int COLUMNS> __device__ __forceinline__ Tile tile_of(const MatrixProduct& p, unsigned block) {
    const unsigned down = (p.m + ROWS - 1) / ROWS, across = (p.n + COLUMNS - 1) / COLUMNS;
    const unsigned index = block % (down * across), part = block / (down * across);
    const unsigned split = part % p.splits, matrix = part / p.splits;
    const unsigned band = index / (TILES_TOGETHER * across), in_band = index % (TILES_TOGETHER * across);
    const unsigned rest = down - band * TILES_TOGETHER, rows = rest < TILES_TOGETHER ? rest : TILES_TOGETHER;
    i64 start[2];
    p.batch.locate(matrix, start);
    Tile tile;
    tile.row = (band * TILES_TOGETHER + in_band % rows) * ROWS;
    tile.column = in_band / rows * COLUMNS;
    tile.first = split * p.depth;
    tile.last = p.k - tile.first < p.depth ? p.k : tile.first + p.depth;
    tile.a = start[0];
    tile.b = start[1];
    tile.y = ((i64)split * p.batches + matrix) * p.m * p.n;
    return tile;
}

// ── Where sums go ───────────────────────────────────────────────────────────────────────────────────────────────────

/// The finished sum of a column, rounded once; `residual` counts if there is one.
template <typename T>
__device__ __forceinline__ T finished(typename Wide<T>::type sum, const Finish& finish, int column, T residual) {
    if (finish.bias) sum += widen(static_cast<const T*>(finish.bias)[column * finish.bias_step]);
    sum = activated(sum, finish.activation);
    if (finish.residual) sum += widen(residual);
    return narrow<T>(sum);
}

/// The same of element `at` of the result.
template <typename T>
__device__ __forceinline__ T finished_at(i64 at, typename Wide<T>::type sum, const Finish& finish, int column) {
    T residual = {};
    if (finish.residual) residual = static_cast<const T*>(finish.residual)[at];
    return finished<T>(sum, finish, column, residual);
}

/// The first `inside` of the V elements at `from`: all of them at once if their address allows.
template <typename T, int V>
__device__ __forceinline__ Pack<T, V> get(const T* from, int inside, bool vector) {
    if (vector && inside >= V) return load_pack<T, V>(from);
    Pack<T, V> values = {};
#pragma unroll
    for (int v = 0; v < V; v++)
        if (v < inside) values.at[v] = from[v];
    return values;
}

/// Writes `values` to the first of the V elements at `to` that lie in the matrix: all of them at once if their address
/// allows.
template <typename T, int V>
__device__ __forceinline__ void put(T* to, const Pack<T, V>& values, int inside, bool vector) {
    if (vector && inside >= V) return store_pack(to, values);
#pragma unroll
    for (int v = 0; v < V; v++)
        if (v < inside) to[v] = values.at[v];
}

/// Writes V neighbouring sums of a row, of which some may lie outside the matrix: finished, or as they are if they are
/// parts.
template <typename T, int V>
__device__ __forceinline__ void put_sums(void* y, const MatrixProduct& p, const Finish& finish, const Tile& tile,
                                         int row, int column, const Pack<typename Wide<T>::type, V>& sums) {
    typedef typename Wide<T>::type W;
    const int inside = row < p.m ? p.n - column : 0;
    if (inside <= 0) return;
    const i64 at = tile.y + (i64)row * p.n + column;
    const bool vector = p.n % V == 0;
    if (p.splits > 1) return put(static_cast<W*>(y) + at, sums, inside, vector);
    Pack<T, V> values, residual = {};
    if (finish.residual)
        residual = get<T, V>(static_cast<const T*>(finish.residual) + at, inside, vector && finish.vector);
#pragma unroll
    for (int v = 0; v < V; v++)
        if (v < inside) values.at[v] = finished<T>(sums.at[v], finish, column + v, residual.at[v]);
    put(static_cast<T*>(y) + at, values, inside, vector);
}
