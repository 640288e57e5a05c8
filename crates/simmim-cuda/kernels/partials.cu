// Sums over rows, in a partition that follows from the shape: first the parts, then the parts in their order.
#include "values.cuh"

// Part `blockIdx.y` of the sums of the columns of x [rows][columns].
extern "C" __global__ void __launch_bounds__(256) column_sums(const Values x, float* __restrict__ parts, int rows, int columns, int rows_of_part) {
    SHARED(float, sums, [8][32]);
    int lane = threadIdx.x % 32, group = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    int first = blockIdx.y * rows_of_part, end = min(rows, first + rows_of_part);
    float sum = 0;
    if (column < columns) {
        for (int row = first + group; row < end; row += 8) sum += x[static_cast<Index>(row) * columns + column];
    }
    sums[group][lane] = sum;
    __syncthreads();
    if (group == 0 && column < columns) {
        for (int g = 1; g < 8; g++) sum += sums[g][lane];
        parts[static_cast<Index>(blockIdx.y) * columns + column] = sum;
    }
}

// sum += the parts, each of `count`, in their order.
extern "C" __global__ void __launch_bounds__(256) add_parts(float* __restrict__ sum, const float* __restrict__ parts, int count_of_parts, Index count) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    float total = 0;
    for (int part = 0; part < count_of_parts; part++) total += parts[part * count + at];
    sum[at] += total;
}

// value = scale times the sum of the parts, in an order that follows from their number.
extern "C" __global__ void __launch_bounds__(256) sum_parts(float* __restrict__ value, const double* __restrict__ parts, int count_of_parts, float scale) {
    SHARED(double, partials, [8]);
    double sum = 0;
    for (int part = threadIdx.x; part < count_of_parts; part += 256) sum += parts[part];
    sum = block_sum<8>(sum, partials);
    if (threadIdx.x == 0) value[0] = static_cast<float>(sum * scale);
}
