// Relative position bias, spread from its table to all pairs of tokens.
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(256) relative_bias(const float* __restrict__ table, const int* __restrict__ index, float* __restrict__ bias, Index count, int pairs, int heads) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at < count) bias[at] = table[static_cast<Index>(index[at % pairs]) * heads + at / pairs];
}

// A warp takes an entry of the table and adds the pairs that name it in their order, a lane for each head.
extern "C" __global__ void __launch_bounds__(32) relative_bias_grad(const float* __restrict__ grad, const int* __restrict__ index, float* __restrict__ grad_table, int pairs, int heads) {
    int entry = blockIdx.x, head = blockIdx.y * 32 + threadIdx.x;
    float sum = 0;
    for (int first = 0; first < pairs; first += 32) {
        int pair = first + threadIdx.x;
        unsigned hits = __ballot_sync(WHOLE_WARP, pair < pairs && index[pair] == entry);
        for (; hits; hits &= hits - 1) {
            if (head < heads) sum += grad[static_cast<Index>(head) * pairs + first + __ffs(hits) - 1];
        }
    }
    if (head < heads) grad_table[static_cast<Index>(entry) * heads + head] += sum;
}
