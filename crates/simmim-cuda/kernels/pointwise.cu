// A function of each element: 0 is relu, 1 the logistic function times `scale`.
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(256) pointwise(const float* __restrict__ x, float* __restrict__ y, Index count, int function, float scale) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    y[at] = function == 0 ? fmaxf(x[at], 0.0f) : scale / (1.0f + expf(-x[at]));
}

// In place.
extern "C" __global__ void __launch_bounds__(256) pointwise_grad(float* __restrict__ grad, const float* __restrict__ y, Index count, int function, float scale) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    float slope = function == 0 ? (y[at] > 0 ? 1.0f : 0.0f) : y[at] * (1.0f - y[at] / scale);
    grad[at] *= slope;
}
