// Layer normalisation: a warp takes a row.
#include "values.cuh"

extern "C" __global__ void __launch_bounds__(128) layer_norm(const Values x, const float* __restrict__ weight, const float* __restrict__ bias, const Values y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int dim, float eps) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    // A warp without a row repeats the last one and writes nothing: all its lanes reach the sums.
    bool writes = row < rows;
    Values from = x.from(static_cast<Index>(writes ? row : rows - 1) * dim);
    float sum = 0;
    for (int c = lane; c < dim; c += 32) sum += from[c];
    float mu = warp_sum(sum) / dim;
    float squares = 0;
    for (int c = lane; c < dim; c += 32) squares = fmaf(from[c] - mu, from[c] - mu, squares);
    float r = 1.0f / sqrtf(warp_sum(squares) / dim + eps);
    if (!writes) return;
    Values to = y.from(static_cast<Index>(row) * dim);
    for (int c = lane; c < dim; c += 32) to.put(c, fmaf((from[c] - mu) * r, weight[c], bias[c]));
    if (lane == 0) {
        mean[row] = mu;
        rstd[row] = r;
    }
}

// `copy`, the result in bfloat16, may be null.
extern "C" __global__ void __launch_bounds__(128) layer_norm_grad_input(const Values grad, const Values x, const float* __restrict__ weight, const float* __restrict__ mean, const float* __restrict__ rstd, const Values grad_x, uint16_t* __restrict__ copy, int rows, int dim, int accumulate) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    bool writes = row < rows;
    Index start = static_cast<Index>(writes ? row : rows - 1) * dim;
    float mu = mean[writes ? row : rows - 1], r = rstd[writes ? row : rows - 1];
    float sum = 0, dot = 0;
    for (int c = lane; c < dim; c += 32) {
        float g = grad[start + c] * weight[c];
        sum += g;
        dot = fmaf(g, (x[start + c] - mu) * r, dot);
    }
    sum = warp_sum(sum) / dim;
    dot = warp_sum(dot) / dim;
    if (!writes) return;
    for (int c = lane; c < dim; c += 32) {
        float value = r * (grad[start + c] * weight[c] - sum - (x[start + c] - mu) * r * dot);
        if (accumulate) value += grad_x[start + c];
        grad_x.put(start + c, value);
        if (copy) copy[start + c] = bf16_of(value);
    }
}

// Part `blockIdx.y` of the gradients of weight and bias: parts [2][parts][dim].
extern "C" __global__ void __launch_bounds__(256) layer_norm_grad_parameters(const Values grad, const Values x, const float* __restrict__ mean, const float* __restrict__ rstd, float* __restrict__ parts, int rows, int dim, int rows_of_part) {
    SHARED(float, weights, [8][32]);
    SHARED(float, biases, [8][32]);
    int lane = threadIdx.x % 32, group = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    int first = blockIdx.y * rows_of_part, end = min(rows, first + rows_of_part);
    float weight = 0, bias = 0;
    if (column < dim) {
        for (int row = first + group; row < end; row += 8) {
            Index at = static_cast<Index>(row) * dim + column;
            weight = fmaf(grad[at], (x[at] - mean[row]) * rstd[row], weight);
            bias += grad[at];
        }
    }
    weights[group][lane] = weight;
    biases[group][lane] = bias;
    __syncthreads();
    if (group == 0 && column < dim) {
        for (int g = 1; g < 8; g++) {
            weight += weights[g][lane];
            bias += biases[g][lane];
        }
        parts[static_cast<Index>(blockIdx.y) * dim + column] = weight;
        parts[static_cast<Index>(gridDim.y + blockIdx.y) * dim + column] = bias;
    }
}
