// AdamW over all parameters in one launch.
#include "tensors.cuh"
#include "values.cuh"

struct AdamWTensor {
    float* param;
    float* grad;
    float* m;
    float* v;
    uint16_t* copy;  // the parameter in bfloat16, or null
    Index count;
    float beta1, beta2, eps, weight_decay, lr_scale, unused;
};

// step = (learning rate, 1 - beta1^t, sqrt(1 - beta2^t), floor). A clip that is not finite leaves all but the gradients as they are.
extern "C" __global__ void __launch_bounds__(256) adamw(const AdamWTensor* __restrict__ tensors, const Chunk* __restrict__ chunks, const float* __restrict__ step, const float* __restrict__ clip) {
    Chunk chunk = chunks[blockIdx.x];
    AdamWTensor t = tensors[chunk.tensor];
    float factor = clip[0], lr = step[0] * t.lr_scale + step[3] * (1.0f - t.lr_scale);
    bool finite = fabsf(factor) <= 3.4028235e38f;
    float keep = 1.0f - lr * t.weight_decay, rate = lr / step[1], root = 1.0f / step[2];
    Index end = min(t.count, chunk.start + CHUNK);
    for (Index i = chunk.start + threadIdx.x; i < end; i += 256) {
        float g = t.grad[i] * factor;
        t.grad[i] = 0;
        if (!finite) continue;
        float m = fmaf(t.beta1, t.m[i], (1.0f - t.beta1) * g);
        float v = fmaf(t.beta2, t.v[i], (1.0f - t.beta2) * g * g);
        t.m[i] = m;
        t.v[i] = v;
        float param = t.param[i] * keep - rate * m / (sqrtf(v) * root + t.eps);
        t.param[i] = param;
        if (t.copy) t.copy[i] = bf16_of(param);
    }
}
