// Attention over whole sequences.
#include "attention_passes.cuh"

namespace {

// grad_bias of ROWS positions and 32 keys of a head, summed over the samples in their order. A position may belong to several
// queries of a sample, or to none.
template <int ROWS, int DIM>
__device__ __forceinline__ void grad_bias_of(const Attention& attention, const Saved& saved, float* grad_bias, int batches) {
    constexpr int THREADS = 2 * ROWS;
    SHARED(float, queries, [ROWS][DIM + PAD]);
    SHARED(float, columns, [COLUMNS][DIM + PAD]);
    SHARED(int, which, [ROWS]);
    SHARED(int, found, [1]);
    int head = blockIdx.x, first = blockIdx.y * ROWS, key = blockIdx.z * COLUMNS;
    float sum[4][4] = {};
    for (int batch = 0; batch < batches; batch++) {
        int next = 0;
        for (bool more = true; more;) {
            // Whoever still reads this from the round before finds zero there too: else it would have met the barriers below.
            if (threadIdx.x == 0) found[0] = 0;
            __syncthreads();
            if (threadIdx.x < ROWS) {
                int position = first + threadIdx.x;
                const int* named = attention.query + static_cast<Index>(batch) * attention.queries;
                if (attention.query) {
                    while (next < attention.queries && named[next] != position) next++;
                } else if (next == 0) {
                    next = position;
                } else {
                    next = attention.queries;
                }
                which[threadIdx.x] = next < attention.queries ? next++ : -1;
                if (which[threadIdx.x] >= 0) found[0] = 1;
            }
            __syncthreads();
            more = found[0];
            if (!more) continue;
            float score[4][4], grad[4][4];
            load_rows<THREADS>(queries, attention.part_of(QUERIES, batch, head), 0, which);
            load_rows<THREADS>(columns, attention.part_of(KEYS, batch, head), key);
            __syncthreads();
            dots_of<ROWS, DIM>(score, queries, columns);
            __syncthreads();
            load_rows<THREADS>(queries, attention.outputs_of(saved.grad_out, batch, head), 0, which);
            load_rows<THREADS>(columns, attention.part_of(VALUES, batch, head), key);
            __syncthreads();
            dots_of<ROWS, DIM>(grad, queries, columns);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = which[row_of(i)];
                if (query < 0) continue;
                Index row = attention.row(batch, head, query);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int k = key + column_of(j);
                    if (k >= attention.tokens) continue;
                    float p = expf(attention.score(score[i][j], batch, head, query, k) - saved.lse[row]);
                    sum[i][j] = fmaf(p, grad[i][j] - saved.delta[row], sum[i][j]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int position = first + row_of(i), k = key + column_of(j);
            if (position < attention.positions && k < attention.tokens) {
                grad_bias[(static_cast<Index>(head) * attention.positions + position) * attention.tokens + k] += sum[i][j];
            }
        }
    }
}

}  // namespace

// Heads of up to 32, 64, 96 and 128 columns.
extern "C" __global__ void __launch_bounds__(128, 2) attention_32(const __grid_constant__ Attention attention, const Values out, float* __restrict__ lse) { forward<64, 32>(attention, out, lse); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_64(const __grid_constant__ Attention attention, const Values out, float* __restrict__ lse) { forward<64, 64>(attention, out, lse); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_96(const __grid_constant__ Attention attention, const Values out, float* __restrict__ lse) { forward<32, 96>(attention, out, lse); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_128(const __grid_constant__ Attention attention, const Values out, float* __restrict__ lse) { forward<32, 128>(attention, out, lse); }

// delta[row] = sum over a head of grad_out out, the rows [batch][heads][queries]: a warp takes a row.
extern "C" __global__ void __launch_bounds__(128) attention_grad_delta(const Values grad_out, const Values out, float* __restrict__ delta, Index rows, int queries, int heads, int head_dim) {
    Index row = static_cast<Index>(blockIdx.x) * 4 + threadIdx.x / 32, kept = min(row, rows - 1);
    int lane = threadIdx.x % 32, query = static_cast<int>(kept % queries), head = static_cast<int>(kept / queries % heads);
    Index start = ((kept / queries / heads * queries + query) * heads + head) * head_dim;
    float sum = 0;
    for (int c = lane; c < head_dim; c += 32) sum = fmaf(grad_out[start + c], out[start + c], sum);
    sum = warp_sum(sum);
    if (row < rows && lane == 0) delta[row] = sum;
}

extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_queries_32(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_q) { grad_queries<32, 32>(attention, saved, grad_q); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_queries_64(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_q) { grad_queries<32, 64>(attention, saved, grad_q); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_queries_96(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_q) { grad_queries<32, 96>(attention, saved, grad_q); }
extern "C" __global__ void __launch_bounds__(32, 8) attention_grad_queries_128(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_q) { grad_queries<16, 128>(attention, saved, grad_q); }

extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_keys_32(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_kv) { grad_keys<32, 32>(attention, saved, grad_kv); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_keys_64(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_kv) { grad_keys<32, 64>(attention, saved, grad_kv); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_keys_96(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_kv) { grad_keys<32, 96>(attention, saved, grad_kv); }
extern "C" __global__ void __launch_bounds__(32, 8) attention_grad_keys_128(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, const Values grad_kv) { grad_keys<16, 128>(attention, saved, grad_kv); }

extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_bias_32(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, float* __restrict__ grad_bias, int batches) { grad_bias_of<32, 32>(attention, saved, grad_bias, batches); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_bias_64(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, float* __restrict__ grad_bias, int batches) { grad_bias_of<32, 64>(attention, saved, grad_bias, batches); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_bias_96(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, float* __restrict__ grad_bias, int batches) { grad_bias_of<32, 96>(attention, saved, grad_bias, batches); }
extern "C" __global__ void __launch_bounds__(64, 4) attention_grad_bias_128(const __grid_constant__ Attention attention, const __grid_constant__ Saved saved, float* __restrict__ grad_bias, int batches) { grad_bias_of<32, 128>(attention, saved, grad_bias, batches); }
