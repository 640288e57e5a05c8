// Moving averages of all parameters in one launch.
#include "tensors.cuh"

struct AverageTensor {
    float* average;
    const float* param;
    Index count;
};

extern "C" __global__ void __launch_bounds__(256) moving_average(const AverageTensor* __restrict__ tensors, const Chunk* __restrict__ chunks, const float* __restrict__ decay) {
    Chunk chunk = chunks[blockIdx.x];
    AverageTensor t = tensors[chunk.tensor];
    Index end = min(t.count, chunk.start + CHUNK);
    for (Index i = chunk.start + threadIdx.x; i < end; i += 256) t.average[i] = fmaf(decay[0], t.average[i], (1.0f - decay[0]) * t.param[i]);
}
