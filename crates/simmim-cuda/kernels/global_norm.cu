// Norm of all gradients, in double precision, chunk by chunk and then the chunks in an order that follows from their number.
#include "tensors.cuh"

struct NormTensor {
    const float* values;
    Index count;
};

extern "C" __global__ void __launch_bounds__(256) global_norm_parts(const NormTensor* __restrict__ tensors, const Chunk* __restrict__ chunks, double* __restrict__ parts) {
    SHARED(double, partials, [8]);
    Chunk chunk = chunks[blockIdx.x];
    NormTensor t = tensors[chunk.tensor];
    Index end = min(t.count, chunk.start + CHUNK);
    double sum = 0;
    for (Index i = chunk.start + threadIdx.x; i < end; i += 256) sum += static_cast<double>(t.values[i]) * t.values[i];
    sum = block_sum<8>(sum, partials);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Without a limit `max_norm` is negative. A norm that is not finite makes the factor NaN.
extern "C" __global__ void __launch_bounds__(256) global_norm(const double* __restrict__ parts, int count_of_parts, float max_norm, float* __restrict__ norm, float* __restrict__ clip) {
    SHARED(double, partials, [8]);
    double sum = 0;
    for (int part = threadIdx.x; part < count_of_parts; part += 256) sum += parts[part];
    sum = block_sum<8>(sum, partials);
    if (threadIdx.x == 0) {
        double value = sqrt(sum);
        bool finite = value <= 1.7976931348623157e308;
        double factor = max_norm < 0 ? 1.0 : max_norm / (value + 1e-6);
        norm[0] = static_cast<float>(value);
        clip[0] = finite ? static_cast<float>(factor < 1.0 ? factor : 1.0) : nanf("");
    }
}
