// Four floats are loaded at once, from the second element on.
//
// A load of 16 bytes needs an address that is a multiple of 16. A card stops with a misaligned address. So does the
// checker, and it names the offset.
#include "prelude.cuh"

KERNEL(15, misaligned_vector, (const float* x, float* y, int n)) {
#ifdef MENDED
    const float* from = x + 4 * threadIdx.x;
#else
    const float* from = x + 1 + 4 * threadIdx.x;
#endif
    const Pack<float, 4> four = load_pack<float, 4>(from); // <- misaligned access
    store_pack(y + 4 * threadIdx.x, four);
}
