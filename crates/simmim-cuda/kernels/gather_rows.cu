// Gather of rows by index, and its transpose.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows(const Values x, const int* __restrict__ index, const Values y, Index count, int dim) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at < count) y.put(at, x[static_cast<Index>(index[at / dim]) * dim + at % dim]);
}

// A block takes a row of the gradient and 128 of its columns.
extern "C" __global__ void __launch_bounds__(128) scatter_add_rows(const Values grad, const int* __restrict__ index, float* __restrict__ grad_x, int count, int dim, int accumulate) {
    int row = blockIdx.x, column = blockIdx.y * 128 + threadIdx.x;
    float sum = sum_of_rows(grad, index, count, row, column, dim);
    Index at = static_cast<Index>(row) * dim + column;
    if (column < dim) grad_x[at] = accumulate ? grad_x[at] + sum : sum;
}
