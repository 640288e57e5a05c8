// Tiles of attention: a block holds some rows (queries, or keys) and lets columns (keys, or queries) pass by, 32 at a time.
//
// A block of 2 ROWS threads sees its ROWS x 32 scores as [i][j]: thread t has rows `t / 8 * 4 + i` and columns `t % 8 + 8 j`.
#pragma once
#include "values.cuh"

constexpr int COLUMNS = 32;
constexpr int PAD = 4;

// In the order in which a packed layer holds them.
enum Part { QUERIES, KEYS, VALUES };

// One head of a tensor: `count` rows of head_dim numbers, `stride` apart.
struct Head {
    Values start;
    Index stride;
    int count;
    int dim;
};

__device__ __forceinline__ int row_of(int i) { return threadIdx.x / 8 * 4 + i; }
__device__ __forceinline__ int column_of(int j) { return threadIdx.x % 8 + 8 * j; }
__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

// Rows `first .. first + COUNT` of a head, zeros outside of it. `which` names the rows instead where it is not null; a negative one
// is zeros.
template <int THREADS, int COUNT, int WIDTH>
__device__ __forceinline__ void load_rows(float (&tile)[COUNT][WIDTH], Head from, int first, const int* which = nullptr) {
    constexpr int DIM = WIDTH - PAD;
    for (int at = threadIdx.x; at < COUNT * DIM; at += THREADS) {
        int i = at / DIM, c = at % DIM, row = which ? which[i] : first + i;
        bool valid = row >= 0 && row < from.count && c < from.dim;
        tile[i][c] = valid ? from.start[row * from.stride + c] : 0.0f;
    }
}

// dots[i][j] = rows[i] . columns[j].
template <int ROWS, int DIM>
__device__ __forceinline__ void dots_of(float (&dots)[4][4], const float (&rows)[ROWS][DIM + PAD], const float (&columns)[COLUMNS][DIM + PAD]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) dots[i][j] = 0;
    }
#pragma unroll 4
    for (int c = 0; c < DIM; c += 4) {
        float4 left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = load4(&rows[row_of(i)][c]);
#pragma unroll
        for (int j = 0; j < 4; j++) right[j] = load4(&columns[column_of(j)][c]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float sum = fmaf(left[i].x, right[j].x, dots[i][j]);
                sum = fmaf(left[i].y, right[j].y, sum);
                sum = fmaf(left[i].z, right[j].z, sum);
                dots[i][j] = fmaf(left[i].w, right[j].w, sum);
            }
        }
    }
}

// What a thread keeps of a ROWS x DIM result: its four rows, and of each run of 32 columns the four from `t % 8 * 4` on.
template <int DIM>
struct Result {
    float value[4][DIM / 32][4];

    __device__ __forceinline__ void scale_row(int i, float factor) {
#pragma unroll
        for (int run = 0; run < DIM / 32; run++) {
#pragma unroll
            for (int c = 0; c < 4; c++) value[i][run][c] *= factor;
        }
    }

    // += weights [ROWS][32] columns [32][DIM].
    template <int ROWS>
    __device__ __forceinline__ void add(const float (&weights)[ROWS][COLUMNS + PAD], const float (&columns)[COLUMNS][DIM + PAD]) {
#pragma unroll 4
        for (int k = 0; k < COLUMNS; k++) {
            float weight[4];
#pragma unroll
            for (int i = 0; i < 4; i++) weight[i] = weights[row_of(i)][k];
#pragma unroll
            for (int run = 0; run < DIM / 32; run++) {
                float4 four = load4(&columns[k][run * 32 + threadIdx.x % 8 * 4]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    value[i][run][0] = fmaf(weight[i], four.x, value[i][run][0]);
                    value[i][run][1] = fmaf(weight[i], four.y, value[i][run][1]);
                    value[i][run][2] = fmaf(weight[i], four.z, value[i][run][2]);
                    value[i][run][3] = fmaf(weight[i], four.w, value[i][run][3]);
                }
            }
        }
    }

    // Writes row i, times `factor`, to a row of a head.
    __device__ __forceinline__ void write_row(int i, const Values& to, int dim, float factor) const {
#pragma unroll
        for (int run = 0; run < DIM / 32; run++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int column = run * 32 + threadIdx.x % 8 * 4 + c;
                if (column < dim) to.put(column, value[i][run][c] * factor);
            }
        }
    }
};

// Sum and largest over the eight threads that share a row.
__device__ __forceinline__ float row_sum(float value) {
    for (int lanes = 4; lanes; lanes /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, lanes);
    return value;
}
__device__ __forceinline__ float row_max(float value) {
    for (int lanes = 4; lanes; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(WHOLE_WARP, value, lanes));
    return value;
}

// What the backward reads beside the forward's inputs: delta is the sum over a head of grad_out times out.
struct Saved {
    Values grad_out;
    const float* lse;
    const float* delta;
};

// How queries, keys and values lie in memory. Packed: `kv` is `q` from `dim` on, both strides are 3 dim, `query` is null.
struct Attention {
    Values q, kv;
    const float* bias;  // [heads][positions][tokens], or null
    const int* query;   // row of the bias of each query, or null: its own number
    Index q_stride, kv_stride;
    int queries, tokens, heads, head_dim, positions;
    float scale;

    __device__ __forceinline__ Head head_of(const Values& start, Index stride, int count, int batch, int head) const {
        return {start.from(batch * count * stride + head * head_dim), stride, count, head_dim};
    }
    __device__ __forceinline__ Head part_of(Part part, int batch, int head) const {
        if (part == QUERIES) return head_of(q, q_stride, queries, batch, head);
        return head_of(kv.from(part == KEYS ? 0 : heads * head_dim), kv_stride, tokens, batch, head);
    }
    // A tensor of the shape of the output.
    __device__ __forceinline__ Head outputs_of(const Values& start, int batch, int head) const {
        return head_of(start, heads * head_dim, queries, batch, head);
    }
    template <int THREADS, int COUNT, int WIDTH>
    __device__ __forceinline__ void load(float (&tile)[COUNT][WIDTH], Part part, int batch, int head, int first) const {
        load_rows<THREADS>(tile, part_of(part, batch, head), first);
    }
    template <int THREADS, int COUNT, int WIDTH>
    __device__ __forceinline__ void load_outputs(float (&tile)[COUNT][WIDTH], const Values& start, int batch, int head, int first) const {
        load_rows<THREADS>(tile, outputs_of(start, batch, head), first);
    }
    __device__ __forceinline__ Values output_row(const Values& out, int batch, int head, int of) const {
        return out.from(((static_cast<Index>(batch) * queries + of) * heads + head) * head_dim);
    }
    __device__ __forceinline__ Values grad_query_row(const Values& grad_q, int batch, int head, int of) const {
        return grad_q.from((static_cast<Index>(batch) * queries + of) * q_stride + head * head_dim);
    }
    __device__ __forceinline__ Values grad_key_row(const Values& grad_kv, int batch, int head, int key) const {
        return grad_kv.from((static_cast<Index>(batch) * tokens + key) * kv_stride + head * head_dim);
    }
    __device__ __forceinline__ float delta(const Saved& saved, int batch, int head, int of) const {
        return saved.delta[row(batch, head, of)];
    }
    // Number of a query's score among [batch][heads][queries].
    __device__ __forceinline__ Index row(int batch, int head, int of) const {
        return (static_cast<Index>(batch) * heads + head) * queries + of;
    }
    // The score of a query and a key whose dot product is given. Both are inside.
    __device__ __forceinline__ float score(float dot, int batch, int head, int of, int key) const {
        if (!bias) return dot * scale;
        int position = query ? query[static_cast<Index>(batch) * queries + of] : of;
        return fmaf(dot, scale, bias[(static_cast<Index>(head) * positions + position) * tokens + key]);
    }
};
