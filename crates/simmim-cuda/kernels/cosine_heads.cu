// Queries and keys of unit length. Values stay as they are.
#include "values.cuh"

namespace {

// A warp takes a head of the queries (part 0) or keys (part 1) of a row; `valid` is false for warps behind the last.
struct Place {
    Index row;
    int part, head;
    bool valid;

    __device__ __forceinline__ Place(Index rows, int heads) {
        Index at = static_cast<Index>(blockIdx.x) * 4 + threadIdx.x / 32;
        valid = at < rows * 2 * heads;
        at = valid ? at : 0;
        head = static_cast<int>(at % heads);
        part = static_cast<int>(at / heads % 2);
        row = at / heads / 2;
    }
    // Where its columns begin.
    __device__ __forceinline__ Index start(int heads, int head_dim) const {
        return ((row * 3 + part) * heads + head) * head_dim;
    }
    // Where its length stands.
    __device__ __forceinline__ Index length(int heads) const { return (row * 2 + part) * heads + head; }
};

constexpr float LARGEST_LOGIT_SCALE = 4.6051702f;
constexpr float SMALLEST_LENGTH = 1e-12f;

__device__ __forceinline__ float factor(float logit_scale) { return expf(fminf(logit_scale, LARGEST_LOGIT_SCALE)); }

}  // namespace

// In place.
extern "C" __global__ void __launch_bounds__(128) cosine_heads(const Values qkv, const float* __restrict__ logit_scale, float* __restrict__ rnorm, Index rows, int heads, int head_dim) {
    Place place(rows, heads);
    Values head = qkv.from(place.start(heads, head_dim));
    float sum = 0;
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) sum = fmaf(head[c], head[c], sum);
    sum = warp_sum(sum);
    if (!place.valid) return;
    float inverse = 1.0f / fmaxf(sqrtf(sum), SMALLEST_LENGTH);
    float scale = inverse * (place.part == 0 ? factor(logit_scale[place.head]) : 1.0f);
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) head.put(c, head[c] * scale);
    if (threadIdx.x % 32 == 0) rnorm[place.length(heads)] = inverse;
}

// In place; dots [rows][heads] receives what the gradient of the scale is the sum of.
extern "C" __global__ void __launch_bounds__(128) cosine_heads_grad(const Values grad, const Values y, const float* __restrict__ rnorm, const float* __restrict__ logit_scale, float* __restrict__ dots, Index rows, int heads, int head_dim) {
    Place place(rows, heads);
    Index start = place.start(heads, head_dim);
    float dot = 0;
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) dot = fmaf(grad[start + c], y[start + c], dot);
    dot = warp_sum(dot);
    if (!place.valid) return;
    float scale = place.part == 0 ? factor(logit_scale[place.head]) : 1.0f;
    float inverse = rnorm[place.length(heads)], along = dot / scale;
    for (int c = threadIdx.x % 32; c < head_dim; c += 32) {
        grad.put(start + c, inverse * (scale * grad[start + c] - y[start + c] * along));
    }
    if (place.part == 0 && threadIdx.x % 32 == 0) dots[place.row * heads + place.head] = dot;
}

// grad_logit_scale += the parts, in their order, where the scale is not cut off.
extern "C" __global__ void __launch_bounds__(32) cosine_heads_grad_scale(float* __restrict__ grad_logit_scale, const float* __restrict__ logit_scale, const float* __restrict__ parts, int count_of_parts, int heads) {
    int head = blockIdx.x * 32 + threadIdx.x;
    if (head >= heads || logit_scale[head] > LARGEST_LOGIT_SCALE) return;
    float sum = 0;
    for (int part = 0; part < count_of_parts; part++) sum += parts[part * heads + head];
    grad_logit_scale[head] += sum;
}
