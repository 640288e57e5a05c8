// Mean over the tokens of each image, the first ones left out.
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(128) mean_tokens(const float* __restrict__ x, float* __restrict__ y, int tokens, int skip, int dim) {
    int image = blockIdx.x, column = blockIdx.y * 128 + threadIdx.x;
    if (column >= dim) return;
    float sum = 0;
    for (int token = skip; token < tokens; token++) sum += x[(static_cast<Index>(image) * tokens + token) * dim + column];
    y[static_cast<Index>(image) * dim + column] = sum / (tokens - skip);
}

extern "C" __global__ void __launch_bounds__(256) mean_tokens_grad(const float* __restrict__ grad, float* __restrict__ grad_x, Index count, int tokens, int skip, int dim) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    Index row = at / dim;
    grad_x[at] = row % tokens < skip ? 0.0f : grad[row / tokens * dim + at % dim] / (tokens - skip);
}
