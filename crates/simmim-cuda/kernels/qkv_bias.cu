// The bias of a packed qkv layer whose keys have none, and its gradient.
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(256) qkv_bias(const float* __restrict__ q, const float* __restrict__ v, float* __restrict__ bias, int dim) {
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at < 3 * dim) bias[at] = at < dim ? q[at] : at < 2 * dim ? 0.0f : v[at - 2 * dim];
}

extern "C" __global__ void __launch_bounds__(256) qkv_bias_grad(const float* __restrict__ grad, float* __restrict__ grad_q, float* __restrict__ grad_v, int dim) {
    int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= dim) return;
    grad_q[at] += grad[at];
    grad_v[at] += grad[2 * dim + at];
}
