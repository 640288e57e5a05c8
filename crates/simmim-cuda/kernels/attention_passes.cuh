// Attention in one pass over the keys (Dao et al., arXiv 2205.14135): the scores of 32 keys at a time, with a running largest
// score and sum for each query; the score matrix is never written. The backward computes the probabilities again from the
// log-sum-exp.
//
// `A` says how queries, keys, values and outputs lie in memory: `Attention` for whole sequences, `Windows` for windows of maps.
#pragma once
#include "attention_tiles.cuh"

// blockIdx.x: sample and head; blockIdx.y: ROWS queries.
template <int ROWS, int DIM, class A>
__device__ __forceinline__ void forward(const A& attention, const Values& out, float* lse) {
    constexpr int THREADS = 2 * ROWS;
    SHARED(float, queries, [ROWS][DIM + PAD]);
    SHARED(float, columns, [COLUMNS][DIM + PAD]);
    SHARED(float, weights, [ROWS][COLUMNS + PAD]);
    int batch = blockIdx.x / attention.heads, head = blockIdx.x % attention.heads, first = blockIdx.y * ROWS;
    attention.template load<THREADS>(queries, QUERIES, batch, head, first);
    Result<DIM> result = {};
    float largest[4], total[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) largest[i] = -INFINITY;
    for (int key = 0; key < attention.tokens; key += COLUMNS) {
        __syncthreads();
        attention.template load<THREADS>(columns, KEYS, batch, head, key);
        __syncthreads();
        float score[4][4];
        dots_of<ROWS, DIM>(score, queries, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = min(first + row_of(i), attention.queries - 1);
            float most = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int k = key + column_of(j);
                score[i][j] = k < attention.tokens ? attention.score(score[i][j], batch, head, query, k) : -INFINITY;
                most = fmaxf(most, score[i][j]);
            }
            most = row_max(most);
            float shrink = expf(largest[i] - most), sum = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float weight = expf(score[i][j] - most);
                weights[row_of(i)][column_of(j)] = weight;
                sum += weight;
            }
            total[i] = fmaf(total[i], shrink, row_sum(sum));
            largest[i] = most;
            result.scale_row(i, shrink);
        }
        __syncthreads();
        attention.template load<THREADS>(columns, VALUES, batch, head, key);
        __syncthreads();
        result.add(weights, columns);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int query = first + row_of(i);
        if (query >= attention.queries) continue;
        Values to = attention.output_row(out, batch, head, query);
        if (to.start) result.write_row(i, to, attention.head_dim, 1.0f / total[i]);
        if (threadIdx.x % 8 == 0) lse[attention.row(batch, head, query)] = largest[i] + logf(total[i]);
    }
}

// grad_q of ROWS queries.
template <int ROWS, int DIM, class A>
__device__ __forceinline__ void grad_queries(const A& attention, const Saved& saved, const Values& grad_q) {
    constexpr int THREADS = 2 * ROWS;
    SHARED(float, queries, [ROWS][DIM + PAD]);
    SHARED(float, grads, [ROWS][DIM + PAD]);
    SHARED(float, columns, [COLUMNS][DIM + PAD]);
    SHARED(float, weights, [ROWS][COLUMNS + PAD]);
    int batch = blockIdx.x / attention.heads, head = blockIdx.x % attention.heads, first = blockIdx.y * ROWS;
    attention.template load<THREADS>(queries, QUERIES, batch, head, first);
    attention.template load_outputs<THREADS>(grads, saved.grad_out, batch, head, first);
    Result<DIM> result = {};
    for (int key = 0; key < attention.tokens; key += COLUMNS) {
        float score[4][4], grad[4][4];
        __syncthreads();
        attention.template load<THREADS>(columns, VALUES, batch, head, key);
        __syncthreads();
        dots_of<ROWS, DIM>(grad, grads, columns);
        __syncthreads();
        attention.template load<THREADS>(columns, KEYS, batch, head, key);
        __syncthreads();
        dots_of<ROWS, DIM>(score, queries, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = min(first + row_of(i), attention.queries - 1);
            Index row = attention.row(batch, head, query);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int k = key + column_of(j);
                bool valid = k < attention.tokens;
                float p = valid ? expf(attention.score(score[i][j], batch, head, query, k) - saved.lse[row]) : 0.0f;
                weights[row_of(i)][column_of(j)] = p * (grad[i][j] - attention.delta(saved, batch, head, query));
            }
        }
        // A row of the weights is written and read by eight threads of one warp.
        __syncwarp();
        result.add(weights, columns);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int query = first + row_of(i);
        if (query >= attention.queries) continue;
        Values to = attention.grad_query_row(grad_q, batch, head, query);
        if (to.start) result.write_row(i, to, attention.head_dim, attention.scale);
    }
}

// grad_k and grad_v of ROWS keys.
template <int ROWS, int DIM, class A>
__device__ __forceinline__ void grad_keys(const A& attention, const Saved& saved, const Values& grad_kv) {
    constexpr int THREADS = 2 * ROWS;
    SHARED(float, keys, [ROWS][DIM + PAD]);
    SHARED(float, values, [ROWS][DIM + PAD]);
    SHARED(float, columns, [COLUMNS][DIM + PAD]);
    SHARED(float, weights, [ROWS][COLUMNS + PAD]);
    int batch = blockIdx.x / attention.heads, head = blockIdx.x % attention.heads, first = blockIdx.y * ROWS;
    attention.template load<THREADS>(keys, KEYS, batch, head, first);
    attention.template load<THREADS>(values, VALUES, batch, head, first);
    Result<DIM> grad_k = {}, grad_v = {};
    for (int query = 0; query < attention.queries; query += COLUMNS) {
        float p[4][4], grad[4][4];
        __syncthreads();
        attention.template load<THREADS>(columns, QUERIES, batch, head, query);
        __syncthreads();
        dots_of<ROWS, DIM>(p, keys, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first + row_of(i);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int q = query + column_of(j);
                bool valid = q < attention.queries && key < attention.tokens;
                float score = valid ? attention.score(p[i][j], batch, head, q, key) - saved.lse[attention.row(batch, head, q)] : 0.0f;
                p[i][j] = valid ? expf(score) : 0.0f;
                weights[row_of(i)][column_of(j)] = p[i][j];
            }
        }
        __syncthreads();
        attention.template load_outputs<THREADS>(columns, saved.grad_out, batch, head, query);
        __syncthreads();
        grad_v.add(weights, columns);
        dots_of<ROWS, DIM>(grad, values, columns);
        __syncthreads();
        attention.template load<THREADS>(columns, QUERIES, batch, head, query);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int q = min(query + column_of(j), attention.queries - 1);
                weights[row_of(i)][column_of(j)] = p[i][j] * (grad[i][j] - attention.delta(saved, batch, head, q));
            }
        }
        __syncthreads();
        grad_k.add(weights, columns);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int key = first + row_of(i);
        if (key >= attention.tokens) continue;
        Values to = attention.grad_key_row(grad_kv, batch, head, key);
        grad_k.write_row(i, to, attention.head_dim, attention.scale);
        grad_v.write_row(i, to.from(attention.heads * attention.head_dim), attention.head_dim, 1.0f);
    }
}
