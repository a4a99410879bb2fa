// The indices that sort along an axis: equal elements keep their order, NaN comes last either way.
//
// An element becomes an item: a key, an unsigned number that grows as the order asks for, with the index behind it. No
// two items are equal, so any way of sorting them is stable. The versions:
//
//   1. A thread for each element       counts what comes before it: n comparisons, and all of the row is read n times.
//   2. `tiles`: a network in shared    A block sorts 2048 items, one row or several short ones, in at most 66 steps,
//      memory (Batcher 1968)           log₂ n·(log₂ n + 1)/2 for rows of n, with a barrier before each. A step compares
//                                      each item with one other.
//   3. `merge`: longer rows            Sorted runs are merged pair by pair, in ⌈log₂(n/2048)⌉ passes through scratch
//                                      memory. A block makes 2048 items of the result: where they begin in both runs is
//                                      found by bisection (merge path: Odeh et al. 2012), so that all blocks and
//                                      threads do equal work whatever the values are.
//
// Bytes an element: size + 8 for a row of up to 2048. Longer rows move items of 8 bytes (16 for 8-byte elements) once
// more out and in for each pass. Operations an element: a comparison a step, of which `tiles` has log₂ n·(log₂ n + 1)/2
// (55 for n = 1024, 66 at most) over 2 items each, so half as many; `merge` one a pass, and a bisection of 11 for every 8.
// `tiles` is bound by its steps in shared memory, `merge` by memory.
#include "prelude.cuh"

/// Items that a block sorts or merges; `TILE` of sort.rs.
constexpr int TILE = 2048;
constexpr int THREADS = 256;
constexpr int PER_THREAD = TILE / THREADS;

// ── Items ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Key and index in one word.
struct ShortItem {
    u64 word;
    __device__ __forceinline__ static ShortItem of(unsigned key, unsigned index) { return {(u64)key << 32 | index}; }
    __device__ __forceinline__ unsigned index() const { return (unsigned)word; }
    __device__ __forceinline__ bool before(ShortItem other) const { return word < other.word; }
};
struct __align__(16) LongItem {
    u64 key, place;
    __device__ __forceinline__ static LongItem of(u64 key, unsigned index) { return {key, index}; }
    __device__ __forceinline__ unsigned index() const { return (unsigned)place; }
    __device__ __forceinline__ bool before(LongItem other) const {
        return key < other.key || (key == other.key && place < other.place);
    }
};

/// Numbers that are ordered as the elements are. Of a float without its sign bit: the bits, of a negative one mirrored.
__device__ __forceinline__ unsigned ascending(float x) {
    const unsigned bits = __float_as_uint(x == 0 ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ u64 ascending(double x) {
    const u64 bits = (u64)__double_as_longlong(x == 0 ? 0.0 : x);
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}
__device__ __forceinline__ u64 ascending(i64 x) { return (u64)x ^ 0x8000000000000000ull; }
__device__ __forceinline__ unsigned ascending(bool8 x) { return x; }

/// The key of an element. That of a NaN is larger than any other's.
template <typename K, typename A> __device__ __forceinline__ K key(A x, bool descending) {
    const K up = ascending(x);
    return is_nan(x) ? ~K(0) : descending ? ~up : up;
}

/// What comes behind all elements: no index is as large.
template <typename Item, typename K> __device__ __forceinline__ Item nothing() { return Item::of(~K(0), ~0u); }

// ── Where lines lie ─────────────────────────────────────────────────────────────────────────────────────────────────

struct Lines {
    Walk<2> starts; // in x and in y
    i64 count;
    unsigned length;
    unsigned slot;           // tiles: how many items of a tile a row has, a power of two
    i64 step_x, step_y;      // along a row
    unsigned tiles;          // of a row; 1 if a tile has several rows
    int descending;
};

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Sorts each slot of the tile: bitonic sequences of 2, 4, … items are merged, alternately up and down, the last up.
template <typename Item> __device__ void sort_slots(Item* tile, unsigned slot) {
#pragma unroll 1
    for (unsigned size = 2; size <= slot; size *= 2) {
#pragma unroll 1
        for (unsigned step = size / 2; step > 0; step /= 2) {
            __syncthreads();
#pragma unroll
            for (int k = 0; k < PER_THREAD / 2; k++) {
                const unsigned pair = threadIdx.x + k * THREADS;
                const unsigned low = 2 * pair - (pair & (step - 1)), high = low + step;
                const bool up = size == slot || (low & size) == 0;
                const Item a = tile[low], b = tile[high];
                if (b.before(a) == up) {
                    tile[low] = b;
                    tile[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

/// Sorts tile after tile of a row, or several short rows in a tile: into y if a row has one tile, else into `items`.
template <typename T, typename K, typename Item>
__device__ void tiles(i64* y, Item* items, const T* x, const Lines& p) {
    SHARED(Item, tile, [TILE]);
    const unsigned row_of_block = blockIdx.x / p.tiles, first = (blockIdx.x - row_of_block * p.tiles) * TILE;
    const i64 first_row = (i64)row_of_block * (TILE / p.slot);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < TILE; i += THREADS) {
        const i64 row = first_row + i / p.slot;
        const unsigned index = first + i % p.slot;
        Item item = nothing<Item, K>();
        if (row < p.count && index < p.length) {
            i64 at[2];
            p.starts.locate(row, at);
            item = Item::of(key<K>(widen(x[at[0] + index * p.step_x]), p.descending), index);
        }
        tile[i] = item;
    }
    sort_slots(tile, p.slot);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < TILE; i += THREADS) {
        const i64 row = first_row + i / p.slot;
        const unsigned index = first + i % p.slot;
        if (row >= p.count || index >= p.length) continue;
        if (p.tiles > 1) {
            items[row * p.length + index] = tile[i];
        } else {
            i64 at[2];
            p.starts.locate(row, at);
            y[at[1] + index * p.step_y] = tile[i].index();
        }
    }
}

// ── Merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// How many of the first `count` items of the merged runs are of run a: the least that leaves no item of a that comes
/// before the last taken of b.
template <typename Item>
__device__ __forceinline__ unsigned taken(const Item* a, unsigned size_a, const Item* b, unsigned size_b,
                                          unsigned count) {
    unsigned low = count > size_b ? count - size_b : 0, high = min(count, size_a);
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (a[middle].before(b[count - 1 - middle])) low = middle + 1;
        else high = middle;
    }
    return low;
}

/// Where item i of a thread's PER_THREAD lies, so that those of neighbouring threads lie in different banks.
__device__ __forceinline__ unsigned spread(unsigned i) { return i + i / PER_THREAD; }

/// Merges pairs of runs of `run` items, of each row on its own: into y if `last`, else into `to`.
template <typename Item>
__device__ void merge(i64* y, Item* to, const Item* from, unsigned run, int last, const Lines& p) {
    SHARED(Item, tile, [TILE + THREADS]);
    SHARED(unsigned, cut, [2]);
    const unsigned row = blockIdx.x / p.tiles, first = (blockIdx.x - row * p.tiles) * TILE;
    const unsigned start = first / (2 * run) * (2 * run), skipped = first - start;
    const unsigned size_a = min(run, p.length - start), size_b = min(run, p.length - start - size_a);
    const unsigned count = min((unsigned)TILE, p.length - first);
    from += (i64)row * p.length + start;
    if (threadIdx.x < 2) {
        cut[threadIdx.x] = taken(from, size_a, from + size_a, size_b, skipped + threadIdx.x * count);
    }
    __syncthreads();
    const unsigned a = cut[0], b = skipped - a, from_a = cut[1] - a, from_b = count - from_a;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count; i += THREADS) {
        tile[i] = from[i < from_a ? a + i : size_a + b + i - from_a];
    }
    __syncthreads();

    const unsigned mine = min(threadIdx.x * PER_THREAD, count);
    unsigned at_a = taken(tile, from_a, tile + from_a, from_b, mine), at_b = from_a + mine - at_a;
    Item merged[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; k++) {
        if (mine + k >= count) break;
        const bool of_a = at_b >= count || (at_a < from_a && tile[at_a].before(tile[at_b]));
        merged[k] = tile[of_a ? at_a : at_b];
        (of_a ? at_a : at_b)++;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PER_THREAD; k++) {
        if (mine + k < count) tile[spread(mine + k)] = merged[k];
    }
    __syncthreads();

    i64 at[2];
    p.starts.locate(row, at);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count; i += THREADS) {
        const Item item = tile[spread(i)];
        if (last) y[at[1] + (first + i) * p.step_y] = item.index();
        else to[(i64)row * p.length + first + i] = item;
    }
}

// ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#define TILES_ENTRY(dtype, T, K, Item)                                                                                 \
    KERNEL(THREADS, tiles_##dtype, (i64 * y, Item * items, const T* x, Lines p)) { tiles<T, K>(y, items, x, p); }
#define MERGE_ENTRY(name, Item)                                                                                        \
    KERNEL(THREADS, merge_##name, (i64 * y, Item * to, const Item* from, unsigned run, int last, Lines p)) {           \
        merge(y, to, from, run, last, p);                                                                              \
    }

TILES_ENTRY(f32, float, unsigned, ShortItem)
TILES_ENTRY(bf16, bf16, unsigned, ShortItem)
TILES_ENTRY(bool, bool8, unsigned, ShortItem)
TILES_ENTRY(f64, double, u64, LongItem)
TILES_ENTRY(i64, i64, u64, LongItem)
MERGE_ENTRY(short, ShortItem)
MERGE_ENTRY(long, LongItem)
