// a += b.
#include "simt.cuh"

extern "C" __global__ void __launch_bounds__(256) add(float* __restrict__ a, const float* __restrict__ b, Index count) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at < count) a[at] += b[at];
}
