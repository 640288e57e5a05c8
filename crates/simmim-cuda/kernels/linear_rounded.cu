// Products of bfloat16 on tensor cores, whose sums are floats: tiles of 128 x 128, 32 terms at a time, which arrive by asynchronous
// copies while those before are multiplied. Each of eight warps has 64 x 32 of a tile.
//
// An operand lies in shared memory as in global memory, so that both move it in pieces of eight numbers: `[row][term]` where its terms
// are contiguous, else `[term][row]`, which ldmatrix transposes. Eight numbers of padding put rows into different banks.
#include "values.cuh"

namespace {

constexpr int TILE = 128, TERMS = 32, THREADS = 256, PAD = 8, PIECE = 8;

// Numbers of a tile of an operand in either layout.
constexpr int NUMBERS = TILE * (TERMS + PAD);
static_assert(TERMS * (TILE + PAD) <= NUMBERS, "both layouts fit");

// `count` rows (or columns) of the result; element (row, term) lies at `row stride + term` where terms are contiguous, else at
// `term stride + row`.
struct Operand {
    const uint16_t* start;
    Index stride;
    int count;

    // Whether pieces are aligned, and no piece has numbers within and outside.
    __device__ __forceinline__ bool in_pieces() const { return stride % PIECE == 0 && reinterpret_cast<size_t>(start) % 16 == 0; }
};

template <bool CONTIGUOUS>
__device__ __forceinline__ constexpr int width() {
    return (CONTIGUOUS ? TERMS : TILE) + PAD;
}

// Asks for a tile of an operand, zeros outside of it.
template <bool CONTIGUOUS>
__device__ __forceinline__ void ask(uint16_t* tile, const Operand& from, bool in_pieces, int first, Index term, Index end) {
    constexpr int PIECES = (CONTIGUOUS ? TERMS : TILE) / PIECE;
    for (int at = threadIdx.x; at < TILE * TERMS / PIECE; at += THREADS) {
        int line = at / PIECES, along = at % PIECES * PIECE;
        Index row = first + (CONTIGUOUS ? line : along), t = term + (CONTIGUOUS ? along : line);
        uint16_t* to = tile + line * width<CONTIGUOUS>() + along;
        const uint16_t* source = from.start + (CONTIGUOUS ? row * from.stride + t : t * from.stride + row);
        bool valid = row < from.count && t < end;
        if (in_pieces) {
            copy_async_16(to, valid ? source : from.start, valid);
            continue;
        }
        Index inside = CONTIGUOUS ? end - t : from.count - row;
        for (int i = 0; i < PIECE; i++) to[i] = valid && i < inside ? source[i] : static_cast<uint16_t>(0);
    }
}

// Four 8 x 8 matrices of a tile as fragments: those of rows `row` and `row + 8` and of terms `term` and `term + 8`. Lanes 8 m to
// 8 m + 7 name the lines of matrix m; `ROWS_FIRST` says whether matrix 1 is that of the next rows or of the next terms.
template <bool CONTIGUOUS, bool ROWS_FIRST>
__device__ __forceinline__ void fragments(unsigned* to, const uint16_t* tile, int row, int term) {
    int lane = threadIdx.x % 32, line = lane % 8, next = lane / 8 % 2 * 8, last = lane / 16 * 8;
    row += ROWS_FIRST ? next : last;
    term += ROWS_FIRST ? last : next;
    if (CONTIGUOUS) load_matrix_x4(to, tile + (row + line) * width<true>() + term);
    else load_matrix_x4_transposed(to, tile + (term + line) * width<false>() + row);
}

// First row and column of the warp's part of a tile.
__device__ __forceinline__ int row_of_warp() { return threadIdx.x / 32 / 4 * 64; }
__device__ __forceinline__ int column_of_warp() { return threadIdx.x / 32 % 4 * 32; }

template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
__device__ __forceinline__ void multiply(float (&sum)[4][4][4], const uint16_t* a, const uint16_t* b) {
#pragma unroll
    for (int term = 0; term < TERMS; term += 16) {
        unsigned left[4][4], right[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) fragments<A_CONTIGUOUS, true>(left[i], a, row_of_warp() + 16 * i, term);
#pragma unroll
        for (int j = 0; j < 2; j++) fragments<B_CONTIGUOUS, false>(right[j], b, column_of_warp() + 16 * j, term);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) mma_bf16_16x8x16(sum[i][j], left[i], &right[j / 2][j % 2 * 2]);
        }
    }
}

// The sums of the block's tile over the terms `term .. end`.
template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
__device__ __forceinline__ void product(float (&sum)[4][4][4], const Operand& a, const Operand& b, uint16_t (&tiles)[2][2][NUMBERS], Index term, Index end) {
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    bool a_in_pieces = a.in_pieces(), b_in_pieces = b.in_pieces();
    ask<A_CONTIGUOUS>(tiles[0][0], a, a_in_pieces, row, term, end);
    ask<B_CONTIGUOUS>(tiles[0][1], b, b_in_pieces, column, term, end);
    copy_async_commit();
    for (int stage = 0; term < end; term += TERMS, stage ^= 1) {
        if (term + TERMS < end) {
            ask<A_CONTIGUOUS>(tiles[stage ^ 1][0], a, a_in_pieces, row, term + TERMS, end);
            ask<B_CONTIGUOUS>(tiles[stage ^ 1][1], b, b_in_pieces, column, term + TERMS, end);
        }
        copy_async_commit();
        copy_async_wait(1);
        __syncthreads();
        multiply<A_CONTIGUOUS, B_CONTIGUOUS>(sum, tiles[stage][0], tiles[stage][1]);
        __syncthreads();
    }
}

// Calls `write(row, column, sum)` for what the thread has of a result of that extent.
template <class Write>
__device__ __forceinline__ void each(const float (&sum)[4][4][4], int rows, int columns, Write write) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int row = blockIdx.x * TILE + row_of_warp() + 16 * i + lane / 4 + k / 2 * 8;
                int column = blockIdx.y * TILE + column_of_warp() + 8 * j + lane % 4 * 2 + k % 2;
                if (row < rows && column < columns) write(row, column, sum[i][j][k]);
            }
        }
    }
}

}  // namespace

// As `linear` of linear.cu.
extern "C" __global__ void __launch_bounds__(THREADS) linear_rounded(const uint16_t* __restrict__ x, const uint16_t* __restrict__ w, const float* __restrict__ bias, const Values y, const Values slope, int rows, int outputs, int inputs) {
    SHARED(uint16_t, tiles, [2][2][NUMBERS]);
    float sum[4][4][4] = {};
    product<true, true>(sum, {x, inputs, rows}, {w, inputs, outputs}, tiles, 0, inputs);
    each(sum, rows, outputs, [&](int row, int column, float value) {
        Index at = static_cast<Index>(row) * outputs + column;
        if (bias) value += bias[column];
        if (slope.start) {
            float derivative;
            gelu_and_slope(value, &value, &derivative);
            slope.put(at, derivative);
        }
        y.put(at, value);
    });
}

// As `linear_grad_input` of linear.cu.
extern "C" __global__ void __launch_bounds__(THREADS) linear_grad_input_rounded(const uint16_t* __restrict__ grad, const uint16_t* __restrict__ w, const Values slope, const Values grad_x, int rows, int outputs, int inputs, int accumulate) {
    SHARED(uint16_t, tiles, [2][2][NUMBERS]);
    float sum[4][4][4] = {};
    product<true, false>(sum, {grad, outputs, rows}, {w, inputs, inputs}, tiles, 0, outputs);
    each(sum, rows, inputs, [&](int row, int column, float value) {
        Index at = static_cast<Index>(row) * inputs + column;
        grad_x.put(at, accumulate ? grad_x[at] + value : slope.start ? slope[at] * value : value);
    });
}

// As `linear_grad_weight` of linear.cu.
extern "C" __global__ void __launch_bounds__(THREADS) linear_grad_weight_rounded(const uint16_t* __restrict__ grad, const uint16_t* __restrict__ x, float* __restrict__ parts, int rows, int outputs, int inputs, int rows_of_part, int accumulate) {
    SHARED(uint16_t, tiles, [2][2][NUMBERS]);
    float sum[4][4][4] = {};
    Index first = static_cast<Index>(blockIdx.z) * rows_of_part;
    Index end = first + rows_of_part < rows ? first + rows_of_part : rows;
    product<false, false>(sum, {grad, outputs, outputs}, {x, inputs, inputs}, tiles, first, end);
    float* part = parts + static_cast<Index>(blockIdx.z) * outputs * inputs;
    each(sum, outputs, inputs, [&](int row, int column, float value) {
        Index at = static_cast<Index>(row) * inputs + column;
        part[at] = accumulate ? part[at] + value : value;
    });
}
