// Cross-entropy of soft labels: a warp takes a row.
#include "simt.cuh"

namespace {
__device__ __forceinline__ float largest(const float* logits, int classes) {
    float most = -INFINITY;
    for (int c = threadIdx.x % 32; c < classes; c += 32) most = fmaxf(most, logits[c]);
    return warp_max(most);
}
}  // namespace

// The loss of each row goes to a part.
extern "C" __global__ void __launch_bounds__(128) cross_entropy_parts(const float* __restrict__ logits, const float* __restrict__ targets, double* __restrict__ parts, int rows, int classes) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    Index start = static_cast<Index>(min(row, rows - 1)) * classes;
    float most = largest(logits + start, classes), sum = 0, loss = 0;
    for (int c = lane; c < classes; c += 32) sum += expf(logits[start + c] - most);
    float log_sum = logf(warp_sum(sum));
    // Relative to the largest logit, so that large common offsets cost no digits.
    for (int c = lane; c < classes; c += 32) loss = fmaf(targets[start + c], log_sum - (logits[start + c] - most), loss);
    loss = warp_sum(loss);
    if (row < rows && lane == 0) parts[row] = loss;
}

extern "C" __global__ void __launch_bounds__(128) cross_entropy_grad(const float* __restrict__ logits, const float* __restrict__ targets, float* __restrict__ grad, int rows, int classes, float scale) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    Index start = static_cast<Index>(min(row, rows - 1)) * classes;
    float most = largest(logits + start, classes), sum = 0, total = 0;
    for (int c = lane; c < classes; c += 32) {
        sum += expf(logits[start + c] - most);
        total += targets[start + c];
    }
    float factor = warp_sum(total) / warp_sum(sum);
    if (row >= rows) return;
    for (int c = lane; c < classes; c += 32) grad[start + c] = scale * (expf(logits[start + c] - most) * factor - targets[start + c]);
}
