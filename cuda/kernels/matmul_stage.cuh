// A stage of a product on tensor cores: pieces of both factors, copied to shared memory while others are multiplied, in
// the layout that `ldmatrix` and the products of four warps read without conflicts. And the way back, of the sums.
//
// A row is 128 bytes, in 8 chunks of 16. Chunk c of row r lies at r·128 + (c xor r % 8)·16, so that both the chunks of
// a row and eight rows of one chunk lie in 32 different banks.
#pragma once
#include "matmul.cuh"
#include "ptx.cuh"

/// Elements of a row of 128 bytes, and of one of its 8 chunks. A row's length is also the number of terms of a stage.
template <typename T> constexpr int row_of() { return 128 / (int)sizeof(T); }
template <typename T> constexpr int chunk_of() { return 16 / (int)sizeof(T); }

/// The chunk that begins with element (outer, term) of a panel. Along the terms, a row is a vector; else it is a piece
/// of one term, of 128 bytes, and the terms of a piece follow each other.
template <typename T, bool ALONG_TERMS>
__device__ __forceinline__ unsigned char* chunk_at(unsigned char* panel, int outer, int term) {
    constexpr int ROW = row_of<T>();
    const int row = ALONG_TERMS ? outer : outer / ROW * ROW + term;
    const int chunk = (ALONG_TERMS ? term : outer % ROW) / chunk_of<T>();
    return panel + row * 128 + (chunk ^ row % 8) * 16;
}

/// A factor as a block reads it: `outers` vectors from its first one on, up to term `terms`. One of the steps is 1.
template <typename T> struct View {
    const T* data;
    i64 outer_step, term_step;
    int outers, terms;

    __device__ __forceinline__ View(const Factor& factor, i64 start, int outer, int outers, int terms)
        : data(static_cast<const T*>(factor.data) + start + outer * factor.outer_step), outer_step(factor.outer_step),
          term_step(factor.term_step), outers(outers - outer), terms(terms) {}
};

/// Starts copying OUTER vectors and a stage's terms from `term` on.
template <typename T, bool ALONG_TERMS, int OUTER, int THREADS>
__device__ __forceinline__ void copy_panel(unsigned char* panel, const View<T>& view, int term) {
    constexpr int ROW = row_of<T>(), CHUNK = chunk_of<T>();
    constexpr int LINES = THREADS / 8; // rows that are copied at once
    const int line = threadIdx.x / 8, along = threadIdx.x % 8 * CHUNK;
    const T* from =
        view.data + along + (ALONG_TERMS ? line * view.outer_step + term : (term + line) * view.term_step);
    const i64 step = LINES * (ALONG_TERMS ? view.outer_step : view.term_step);
#pragma unroll
    for (int piece = 0; piece < (ALONG_TERMS ? 1 : OUTER / ROW); piece++) {
#pragma unroll
        for (int i = 0; i < (ALONG_TERMS ? OUTER : ROW); i += LINES) {
            const int outer = ALONG_TERMS ? i + line : piece * ROW + along, t = ALONG_TERMS ? along : i + line;
            const int outers_left = view.outers - outer, terms_left = view.terms - term - t;
            const int left = outers_left > 0 && terms_left > 0 ? ALONG_TERMS ? terms_left : outers_left : 0;
            const T* chunk = left > 0 ? from + piece * ROW + i / LINES * step : view.data;
            copy_async_16(chunk_at<T, ALONG_TERMS>(panel, outer, t), chunk,
                          (left < CHUNK ? left : CHUNK) * (int)sizeof(T));
        }
    }
}

/// Where a sum waits for its way to memory: in rows of COLUMNS floats, padded so that the 8 rows that a warp writes at
/// once lie in different banks.
template <int COLUMNS> __device__ __forceinline__ float* sum_at(float* sums, int row, int column) {
    return sums + row * (COLUMNS + 8) + column;
}

/// Writes a tile of sums, finished or as parts. Neighbouring threads write neighbouring columns.
template <typename T, int ROWS, int COLUMNS, int THREADS>
__device__ __forceinline__ void put_tile(void* y, const MatrixProduct& p, const Finish& finish, const Tile& tile,
                                         float* sums) {
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * COLUMNS / 4; i += THREADS) {
        const int row = i / (COLUMNS / 4), column = i % (COLUMNS / 4) * 4;
        put_sums<T, 4>(y, p, finish, tile, tile.row + row, tile.column + column,
                       load_pack<float, 4>(sum_at<COLUMNS>(sums, row, column)));
    }
}
