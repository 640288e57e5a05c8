// Residual connections with layer scale and drop path. `gamma` and `keep` may be null; `group` is the number of elements that
// share a value of `keep`.
#include "values.cuh"

extern "C" __global__ void __launch_bounds__(256) residual(const float* __restrict__ x, const Values branch, const float* __restrict__ gamma, const float* __restrict__ keep, float* __restrict__ y, Index count, int dim, Index group) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    float factor = (gamma ? gamma[at % dim] : 1.0f) * (keep ? keep[at / group] : 1.0f);
    y[at] = fmaf(factor, branch[at], x[at]);
}

extern "C" __global__ void __launch_bounds__(256) residual_grad(const float* __restrict__ grad, const float* __restrict__ gamma, const float* __restrict__ keep, const Values grad_branch, Index count, int dim, Index group) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    grad_branch.put(at, (gamma ? gamma[at % dim] : 1.0f) * (keep ? keep[at / group] : 1.0f) * grad[at]);
}

// Part `blockIdx.y` of the gradient of gamma.
extern "C" __global__ void __launch_bounds__(256) residual_grad_gamma(const float* __restrict__ grad, const Values branch, const float* __restrict__ keep, float* __restrict__ parts, int rows, int dim, int rows_of_part, int rows_of_group) {
    SHARED(float, sums, [8][32]);
    int lane = threadIdx.x % 32, group = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    int first = blockIdx.y * rows_of_part, end = min(rows, first + rows_of_part);
    float sum = 0;
    if (column < dim) {
        for (int row = first + group; row < end; row += 8) {
            Index at = static_cast<Index>(row) * dim + column;
            sum = fmaf(grad[at] * branch[at], keep ? keep[row / rows_of_group] : 1.0f, sum);
        }
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group == 0 && column < dim) {
        for (int g = 1; g < 8; g++) sum += sums[g][lane];
        parts[static_cast<Index>(blockIdx.y) * dim + column] = sum;
    }
}
