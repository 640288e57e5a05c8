// Products of floats on the units that multiply and add floats: what runs where there is no cuBLASLt. Tiles of 128 x 64, sixteen
// terms at a time, which arrive by asynchronous copies while those before are multiplied.
#include "values.cuh"

namespace {

constexpr int ROWS = 128, COLUMNS = 64, TERMS = 16, THREADS = 128;
constexpr int PAD = 4;

// Where the element of a row (or column) of the result and a term lies.
struct Operand {
    const float* start;
    Index stride;
    int count;
};

struct Tiles {
    float (&a)[2][TERMS][ROWS + PAD];
    float (&b)[2][TERMS][COLUMNS + PAD];
};

// Asks for a tile of an operand: element (i, term) lies at `i stride + term` where terms are contiguous, else at `term stride + i`.
template <bool CONTIGUOUS_TERMS, int COUNT>
__device__ __forceinline__ void ask(float (&tile)[TERMS][COUNT + PAD], Operand from, int first, Index term, Index end) {
    for (int at = threadIdx.x; at < COUNT * TERMS; at += THREADS) {
        int i = CONTIGUOUS_TERMS ? at / TERMS : at % COUNT, t = CONTIGUOUS_TERMS ? at % TERMS : at / COUNT;
        bool valid = first + i < from.count && term + t < end;
        Index place = CONTIGUOUS_TERMS ? (first + i) * from.stride + term + t : (term + t) * from.stride + first + i;
        copy_async_4(&tile[t][i], from.start + (valid ? place : 0), valid);
    }
}

__device__ __forceinline__ void load4(float* to, const float* from) {
    float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
}

// Row and column of the tile that belong to a thread's sum [i][j].
__device__ __forceinline__ int row_of(int i) { return threadIdx.x / 8 * 4 + i % 4 + i / 4 * (ROWS / 2); }
__device__ __forceinline__ int column_of(int j) { return threadIdx.x % 8 * 4 + j % 4 + j / 4 * (COLUMNS / 2); }

__device__ __forceinline__ void multiply(float (&sum)[8][8], const float (&a)[TERMS][ROWS + PAD], const float (&b)[TERMS][COLUMNS + PAD]) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        float left[8], right[8];
        load4(left, &a[t][row_of(0)]);
        load4(left + 4, &a[t][row_of(4)]);
        load4(right, &b[t][column_of(0)]);
        load4(right + 4, &b[t][column_of(4)]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
        }
    }
}

// The sums of the block's tile over the terms `term .. end`.
template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
__device__ __forceinline__ void product(float (&sum)[8][8], Operand a, Operand b, Tiles tiles, Index term, Index end) {
    int row = blockIdx.x * ROWS, column = blockIdx.y * COLUMNS;
    ask<A_CONTIGUOUS, ROWS>(tiles.a[0], a, row, term, end);
    ask<B_CONTIGUOUS, COLUMNS>(tiles.b[0], b, column, term, end);
    copy_async_commit();
    for (int stage = 0; term < end; term += TERMS, stage ^= 1) {
        if (term + TERMS < end) {
            ask<A_CONTIGUOUS, ROWS>(tiles.a[stage ^ 1], a, row, term + TERMS, end);
            ask<B_CONTIGUOUS, COLUMNS>(tiles.b[stage ^ 1], b, column, term + TERMS, end);
        }
        copy_async_commit();
        copy_async_wait(1);
        __syncthreads();
        multiply(sum, tiles.a[stage], tiles.b[stage]);
        __syncthreads();
    }
}

}  // namespace

// y [rows][outputs] = x [rows][inputs] w [outputs][inputs]^T + bias; with `slope`, y is its GELU and slope the derivative.
extern "C" __global__ void __launch_bounds__(128) linear(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ y, float* __restrict__ slope, int rows, int outputs, int inputs) {
    SHARED(float, a, [2][TERMS][ROWS + PAD]);
    SHARED(float, b, [2][TERMS][COLUMNS + PAD]);
    float sum[8][8] = {};
    product<true, true>(sum, {x, inputs, rows}, {w, inputs, outputs}, {a, b}, 0, inputs);
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int row = blockIdx.x * ROWS + row_of(i), column = blockIdx.y * COLUMNS + column_of(j);
            if (row >= rows || column >= outputs) continue;
            Index at = static_cast<Index>(row) * outputs + column;
            float value = sum[i][j] + (bias ? bias[column] : 0.0f);
            if (slope) gelu_and_slope(value, &y[at], &slope[at]);
            else y[at] = value;
        }
    }
}

// grad_x [rows][inputs] = grad [rows][outputs] w [outputs][inputs], added to what is there or multiplied by `slope` where asked.
extern "C" __global__ void __launch_bounds__(128) linear_grad_input(const float* __restrict__ grad, const float* __restrict__ w, const float* __restrict__ slope, float* __restrict__ grad_x, int rows, int outputs, int inputs, int accumulate) {
    SHARED(float, a, [2][TERMS][ROWS + PAD]);
    SHARED(float, b, [2][TERMS][COLUMNS + PAD]);
    float sum[8][8] = {};
    product<true, false>(sum, {grad, outputs, rows}, {w, inputs, inputs}, {a, b}, 0, outputs);
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int row = blockIdx.x * ROWS + row_of(i), column = blockIdx.y * COLUMNS + column_of(j);
            if (row >= rows || column >= inputs) continue;
            Index at = static_cast<Index>(row) * inputs + column;
            grad_x[at] = accumulate ? grad_x[at] + sum[i][j] : slope ? slope[at] * sum[i][j] : sum[i][j];
        }
    }
}

// Part `blockIdx.z` of grad_w [outputs][inputs] = grad [rows][outputs]^T x [rows][inputs]: the sum over rows_of_part rows. One
// part is added to what is there, several go to an array of parts each (partials.cu adds them up).
extern "C" __global__ void __launch_bounds__(128) linear_grad_weight(const float* __restrict__ grad, const float* __restrict__ x, float* __restrict__ parts, int rows, int outputs, int inputs, int rows_of_part, int accumulate) {
    SHARED(float, a, [2][TERMS][ROWS + PAD]);
    SHARED(float, b, [2][TERMS][COLUMNS + PAD]);
    float sum[8][8] = {};
    Index first = static_cast<Index>(blockIdx.z) * rows_of_part;
    Index end = first + rows_of_part < rows ? first + rows_of_part : rows;
    product<false, false>(sum, {grad, outputs, outputs}, {x, inputs, inputs}, {a, b}, first, end);
    float* part = parts + static_cast<Index>(blockIdx.z) * outputs * inputs;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int row = blockIdx.x * ROWS + row_of(i), column = blockIdx.y * COLUMNS + column_of(j);
            if (row >= outputs || column >= inputs) continue;
            Index at = static_cast<Index>(row) * inputs + column;
            part[at] = accumulate ? part[at] + sum[i][j] : sum[i][j];
        }
    }
}

// y = GELU(y), slope = GELU'(y): after a product of cuBLASLt, whose own GELU is the tanh form.
extern "C" __global__ void __launch_bounds__(256) gelu(float* __restrict__ y, float* __restrict__ slope, Index count) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at < count) gelu_and_slope(y[at], &y[at], &slope[at]);
}

// grad *= slope.
extern "C" __global__ void __launch_bounds__(256) gelu_grad(float* __restrict__ grad, const Values slope, Index count) {
    Index at = static_cast<Index>(blockIdx.x) * 256 + threadIdx.x;
    if (at < count) grad[at] *= slope[at];
}
