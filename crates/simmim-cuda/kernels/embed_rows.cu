// Token rows before the first block: visible patches, templates of masked tokens, class token. Parameters that the model does not
// have are null.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(256) embed_rows(const float* __restrict__ patches, const int* __restrict__ index, const float* __restrict__ mask, const float* __restrict__ cls, const float* __restrict__ pos, float* __restrict__ rows, int visible, int templates, Index count, int dim, int offset) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at >= count) return;
    int row = static_cast<int>(at / dim), column = static_cast<int>(at % dim), position = 0;
    float value;
    if (row < visible) {
        value = patches[at];
        position = offset + index[row];
    } else if (row < visible + templates) {
        value = mask[column];
        position = offset + row - visible;
    } else {
        value = cls[column];
    }
    rows[at] = pos ? value + pos[static_cast<Index>(position) * dim + column] : value;
}

// grad_pos[p] += the rows at that position: a block takes a position and 128 columns. Position 0 belongs to the class token where
// there is one.
extern "C" __global__ void __launch_bounds__(128) embed_rows_grad_pos(const float* __restrict__ grad, const int* __restrict__ index, float* __restrict__ grad_pos, int visible, int templates, int cls, int dim, int offset) {
    int position = blockIdx.x, column = blockIdx.y * 128 + threadIdx.x, token = position - offset;
    float sum = sum_of_rows({const_cast<float*>(grad), 0, 0}, index, visible, token, column, dim);
    if (column >= dim) return;
    if (token >= 0 && token < templates) sum += grad[static_cast<Index>(visible + token) * dim + column];
    if (cls && position == 0) sum += grad[static_cast<Index>(visible + templates) * dim + column];
    grad_pos[static_cast<Index>(position) * dim + column] += sum;
}

// sum [dim] += the rows of grad [rows][dim], in their order.
extern "C" __global__ void __launch_bounds__(128) embed_rows_grad_token(const float* __restrict__ grad, float* __restrict__ sum, int rows, int dim) {
    int column = blockIdx.x * 128 + threadIdx.x;
    if (column >= dim) return;
    float total = 0;
    for (int row = 0; row < rows; row++) total += grad[static_cast<Index>(row) * dim + column];
    sum[column] += total;
}
