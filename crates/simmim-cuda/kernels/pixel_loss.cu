// Regression loss on pixels. `kind`: 0 absolute, 1 squared, 2 smooth with `beta`. `weight`, one for each row, may be null.
#include "values.cuh"

namespace {
__device__ __forceinline__ float value_of(float d, int kind, float beta) {
    if (kind == 1) return d * d;
    float size = fabsf(d);
    if (kind == 0) return size;
    return size < beta ? d * d / (2.0f * beta) : size - 0.5f * beta;
}
__device__ __forceinline__ float derivative_of(float d, int kind, float beta) {
    // What is neither above nor below zero is zero, or not a number and stays so.
    float sign = d > 0 ? 1.0f : d < 0 ? -1.0f : d * 0.0f;
    if (kind == 1) return 2.0f * d;
    if (kind == 0) return sign;
    return fabsf(d) < beta ? d / beta : sign;
}
}  // namespace

// The sum over 4096 elements goes to a part.
extern "C" __global__ void __launch_bounds__(256) pixel_loss_parts(const float* __restrict__ prediction, const float* __restrict__ target, const float* __restrict__ weight, double* __restrict__ parts, Index count, int columns, int kind, float beta) {
    SHARED(double, partials, [8]);
    Index first = static_cast<Index>(blockIdx.x) * 4096, end = min(count, first + 4096);
    double sum = 0;
    for (Index at = first + threadIdx.x; at < end; at += 256) {
        float value = value_of(prediction[at] - target[at], kind, beta);
        sum += weight ? static_cast<double>(value) * weight[at / columns] : static_cast<double>(value);
    }
    sum = block_sum<8>(sum, partials);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) pixel_loss_grad(const float* __restrict__ prediction, const float* __restrict__ target, const float* __restrict__ weight, const Values grad, Index count, int columns, int kind, float beta, float scale) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    float factor = weight ? scale * weight[at / columns] : scale;
    grad.put(at, factor * derivative_of(prediction[at] - target[at], kind, beta));
}
