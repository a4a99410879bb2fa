// One step of an optimiser for all weights of a model, and the norm of all gradients.
//
// What bounds them: memory. A weight takes 3 operations (SGD) to 13 (Adam) and is not seen again in the step.
//
//   1. A launch for each operation of the formula    Adam: some 30 reads and writes an element, and hundreds of launches of
//                                                    a few microseconds for a model of a hundred weights.
//   2. A launch for each weight                      each element read and written once, but launches of small weights
//                                                    leave the card empty.
//   3. One launch for all weights                    what this is: a table in memory says which part of which weight is a
//                                                    block's. What changes from step to step is in memory too: the count
//                                                    of steps, which the launch advances itself, the scale that clips, and
//                                                    the learning rate. So a launch that was captured is the next step in
//                                                    every replay. Of what Adam makes of count and rate, 4·log₂ t products
//                                                    in double, each weight has one thread, in a launch of its own before.
//
// Bytes an element of f32: SGD 12, with momentum 20, Adam 28, and 2 for a copy in bf16; a norm 4.
//
// Nothing is contracted, so that a step of SGD has the bits of the CPU's. Adam's may differ from them, because the CPU takes
// βᵗ from its library, but are the same on every device.
#include "prelude.cuh"

/// A part of a weight, of at most as many elements as a block takes: where it lies, with its gradient, what is remembered
/// of it, and its copy in bf16, if it has one.
struct Chunk {
    void* weight;
    const void* gradient;
    void* memory[2];
    bf16* copy;
    i64 length;
    /// The number of its weight.
    int owner;
    /// Whether packs are aligned, and whether it is its weight's first part.
    short vector, first;
};

/// What a step knows of a weight: what the learning rate is multiplied by, the decay, and how many steps were made.
struct Share {
    double scale, decay;
    i64* steps;
};

/// The learning rate: in memory, or if `at` is null a number.
struct Rate {
    const double* at;
    double number;
    __device__ __forceinline__ double value() const { return at ? *at : number; }
};

/// The norm of all gradients, and what each gradient is multiplied by: 0 if the norm is not finite, and then nothing is
/// changed.
struct Clip {
    double norm, scale;
};

// ── Rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────
// What a rule makes of a weight w, its gradient g, and what it remembers. Scalars are rounded once, from double.

/// w ← w − rate·(g + decay·w)
template <typename W> struct Plain {
    static constexpr int MEMORY = 0;
    W rate, decay;
    __device__ __forceinline__ Plain(const Share& share, double rate) : rate(rate * share.scale), decay(share.decay) {}
    __device__ __forceinline__ void update(W& w, W g, W*) const { w = w - rate * (g + decay * w); }
};

/// g ← g + decay·w, v ← momentum·v + g, w ← w − rate·v, or with Nesterov w − rate·(g + momentum·v).
template <typename W> struct Momentum {
    static constexpr int MEMORY = 1;
    W rate, decay, momentum;
    bool nesterov;
    __device__ __forceinline__ Momentum(const Share& share, double rate, double momentum, bool nesterov)
        : rate(rate * share.scale), decay(share.decay), momentum(momentum), nesterov(nesterov) {}
    __device__ __forceinline__ void update(W& w, W g, W* v) const {
        g = g + decay * w;
        v[0] = momentum * v[0] + g;
        w = w - rate * (nesterov ? g + momentum * v[0] : v[0]);
    }
};

/// Of step t of a weight with learning rate η and decay λ: rate = η/(1 − β₁ᵗ), root = √(1 − β₂ᵗ), and where the decay is
/// part of the gradient coupled = λ and kept = 1, else coupled = 0 and kept = 1 − η·λ.
struct AdamStep {
    double rate, root, coupled, kept;
};

/// βᵗ by squaring: products alone, so that every device has the same bits.
__device__ __forceinline__ double power(double beta, i64 t) {
    double product = 1;
#pragma unroll 1
    for (; t > 0; t /= 2, beta *= beta)
        if (t % 2) product *= beta;
    return product;
}

__device__ __forceinline__ AdamStep adam_step(const Share& share, double rate, double beta1, double beta2,
                                              bool decoupled) {
    const i64 t = *share.steps + 1;
    rate *= share.scale;
    const double corrected = rate / (1 - power(beta1, t)), root = sqrt(1 - power(beta2, t));
    if (decoupled) return {corrected, root, 0, 1 - rate * share.decay};
    return {corrected, root, share.decay, 1};
}

/// g ← g + coupled·w, m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², w ← kept·w − rate·m/(√v/root + ε)
template <typename W> struct Adam {
    static constexpr int MEMORY = 2;
    W rate, root, coupled, kept, beta1, beta2, rest1, rest2, eps;
    __device__ __forceinline__ Adam(const AdamStep& step, double beta1, double beta2, double eps)
        : rate(step.rate), root(step.root), coupled(step.coupled), kept(step.kept), beta1(beta1), beta2(beta2),
          rest1(1 - beta1), rest2(1 - beta2), eps(eps) {}
    __device__ __forceinline__ void update(W& w, W g, W* memory) const {
        W &m = memory[0], &v = memory[1];
        g = g + coupled * w;
        m = beta1 * m + rest1 * g;
        v = beta2 * v + rest2 * (g * g);
        w = kept * w - rate * m / (sqrt(v) / root + eps);
    }
};

// ── A chunk ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Steps N neighbouring weights.
template <int N, typename W, typename G, typename Rule>
__device__ __forceinline__ void step_pack(const Chunk& chunk, i64 first, const Rule& rule, W scale) {
    W* const weight = static_cast<W*>(chunk.weight) + first;
    Pack<W, N> w = load_pack<W, N>(weight);
    const Pack<G, N> g = load_pack<G, N>(static_cast<const G*>(chunk.gradient) + first);
    Pack<W, N> memory[2];
#pragma unroll
    for (int m = 0; m < Rule::MEMORY; m++) memory[m] = load_pack<W, N>(static_cast<W*>(chunk.memory[m]) + first);
#pragma unroll
    for (int k = 0; k < N; k++) {
        W remembered[2];
#pragma unroll
        for (int m = 0; m < Rule::MEMORY; m++) remembered[m] = memory[m].at[k];
        rule.update(w.at[k], W(widen(g.at[k])) * scale, remembered);
#pragma unroll
        for (int m = 0; m < Rule::MEMORY; m++) memory[m].at[k] = remembered[m];
    }
    store_pack(weight, w);
#pragma unroll
    for (int m = 0; m < Rule::MEMORY; m++) store_pack(static_cast<W*>(chunk.memory[m]) + first, memory[m]);
    if (chunk.copy) {
        Pack<bf16, N> copy;
#pragma unroll
        for (int k = 0; k < N; k++) copy.at[k] = round_to_bf16((float)w.at[k]);
        store_pack(chunk.copy + first, copy);
    }
}

/// Steps a chunk, and counts the step where that is the first of a weight; `clip` may be null.
template <typename W, typename G, typename Rule>
__device__ __forceinline__ void step_chunk(const Chunk& chunk, const Rule& rule, const Clip* clip, i64* steps) {
    constexpr int WIDTH = pack_width<W>();
    const W scale = clip ? W(clip->scale) : W(1);
    if (clip && clip->scale == 0) return;
    if (chunk.first && threadIdx.x == 0) ++*steps;
    const i64 packs = chunk.vector ? chunk.length / WIDTH : 0;
#pragma unroll 1
    for (i64 i = threadIdx.x; i < packs; i += blockDim.x) step_pack<WIDTH, W, G>(chunk, i * WIDTH, rule, scale);
#pragma unroll 1
    for (i64 i = packs * WIDTH + threadIdx.x; i < chunk.length; i += blockDim.x)
        step_pack<1, W, G>(chunk, i, rule, scale);
}

// ── The norm ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// The sum of the squares of a chunk's gradient, in double.
template <typename G> __device__ __forceinline__ void sum_squares(double* sum, const Chunk& chunk) {
    SHARED(double, partial, [256 / 32]);
    const G* gradient = static_cast<const G*>(chunk.gradient);
    double squares = 0;
#pragma unroll 4
    for (i64 i = threadIdx.x; i < chunk.length; i += blockDim.x) {
        const double g = widen(gradient[i]);
        squares += g * g;
    }
    squares = reduce_block<256>(squares, Sum(), partial);
    if (threadIdx.x == 0) *sum = squares;
}

// ── Entries: of weights and gradients ───────────────────────────────────────────────────────────────────────────────

#define OPTIMIZER_ENTRIES(name, W, G)                                                                                  \
    KERNEL(256, sgd_##name, (const Chunk* chunks, const Share* shares, Rate rate, const Clip* clip)) {                 \
        const Chunk chunk = chunks[blockIdx.x];                                                                        \
        const Share share = shares[chunk.owner];                                                                       \
        step_chunk<W, G>(chunk, Plain<W>(share, rate.value()), clip, share.steps);                                     \
    }                                                                                                                  \
    KERNEL(256, momentum_##name,                                                                                       \
           (const Chunk* chunks, const Share* shares, Rate rate, const Clip* clip, double momentum, int nesterov)) {   \
        const Chunk chunk = chunks[blockIdx.x];                                                                        \
        const Share share = shares[chunk.owner];                                                                       \
        step_chunk<W, G>(chunk, Momentum<W>(share, rate.value(), momentum, nesterov), clip, share.steps);              \
    }                                                                                                                  \
    KERNEL(256, adam_##name,                                                                                           \
           (const Chunk* chunks, const Share* shares, const AdamStep* of, const Clip* clip, double beta1,              \
            double beta2, double eps)) {                                                                               \
        const Chunk chunk = chunks[blockIdx.x];                                                                        \
        step_chunk<W, G>(chunk, Adam<W>(of[chunk.owner], beta1, beta2, eps), clip, shares[chunk.owner].steps);         \
    }

OPTIMIZER_ENTRIES(f32_f32, float, float)
OPTIMIZER_ENTRIES(f32_bf16, float, bf16)
OPTIMIZER_ENTRIES(f64_f64, double, double)

/// What the next step of each weight is made with.
KERNEL(256, adam_steps,
       (AdamStep * of, const Share* shares, i64 count, Rate rate, double beta1, double beta2, int decoupled)) {
    const i64 i = global_thread();
    if (i < count) of[i] = adam_step(shares[i], rate.value(), beta1, beta2, decoupled);
}

#define SQUARES_ENTRY(dtype, G)                                                                                        \
    KERNEL(256, squares_##dtype, (double* sums, const Chunk* chunks)) {                                                \
        const Chunk chunk = chunks[blockIdx.x];                                                                        \
        sum_squares<G>(sums + blockIdx.x, chunk);                                                                      \
    }
FOR_FLOATS(SQUARES_ENTRY)

/// The norm of which `sums` are the squares, and the scale that brings it to at most `most`; one block. Written down is the
/// first sum that is not finite, or `count` if only their sum is not.
KERNEL(256, clip_to_norm, (Clip* clip, const double* sums, i64 count, double most, Fault fault)) {
    SHARED(double, partial, [256 / 32]);
    double squares = 0;
#pragma unroll 4
    for (i64 i = threadIdx.x; i < count; i += 256) {
        const double sum = sums[i];
        if (!(sum < infinity<double>())) fault.note(i);
        squares += sum;
    }
    squares = reduce_block<256>(squares, Sum(), partial);
    if (threadIdx.x > 0) return;
    const double norm = sqrt(squares);
    const bool finite = norm < infinity<double>();
    if (!finite) fault.note(count);
    *clip = {norm, !finite ? 0 : norm > most ? most / norm : 1};
}
