// Attention within windows of a map: the rows of a window are named by an index, so that nothing is rolled, cut up or copied.
#include "attention_passes.cuh"

namespace {

// How windows lie in memory. A sample is a window of an image: number image * windows + window.
struct Windows {
    Values qkv;         // [images][map][3 dim]
    const int* index;   // [windows][places]: the token at each place, `map` and more for none
    const int* region;  // [windows][places], or null
    const float* bias;  // [heads][places][places], or null
    const float* pad;   // [3 dim], what stands beyond the map, or null
    float* grad_pads;   // [images][windows][places][2 dim]: gradients of keys and values beyond the map, or null
    // Queries and tokens are the places.
    int map, windows, queries, tokens, heads, head_dim;
    float scale;

    __device__ __forceinline__ int token(int sample, int place) const {
        return index[static_cast<Index>(sample % windows) * tokens + place];
    }
    __device__ __forceinline__ Index dim() const { return static_cast<Index>(heads) * head_dim; }

    // Places `first .. first + COUNT` of a part; zeros behind the last.
    template <int THREADS, int COUNT, int WIDTH>
    __device__ __forceinline__ void load(float (&tile)[COUNT][WIDTH], Part part, int sample, int head, int first) const {
        constexpr int DIM = WIDTH - PAD;
        Index column = part * dim() + head * head_dim, image = sample / windows;
        for (int at = threadIdx.x; at < COUNT * DIM; at += THREADS) {
            int i = at / DIM, c = at % DIM, place = first + i;
            float value = 0;
            if (place < tokens && c < head_dim) {
                int t = token(sample, place);
                if (t < map) {
                    value = qkv[(image * map + t) * 3 * dim() + column + c];
                } else if (pad) {
                    value = pad[column + c];
                }
            }
            tile[i][c] = value;
        }
    }
    template <int THREADS, int COUNT, int WIDTH>
    __device__ __forceinline__ void load_outputs(float (&tile)[COUNT][WIDTH], const Values& start, int sample, int head, int first) const {
        constexpr int DIM = WIDTH - PAD;
        Index image = sample / windows;
        for (int at = threadIdx.x; at < COUNT * DIM; at += THREADS) {
            int i = at / DIM, c = at % DIM, place = first + i;
            int t = place < tokens && c < head_dim ? token(sample, place) : map;
            tile[i][c] = t < map ? start[(image * map + t) * dim() + head * head_dim + c] : 0.0f;
        }
    }

    // The values from `at` on, null beyond the map.
    __device__ __forceinline__ Values row_of_map(const Values& values, int token, Index at) const {
        return token < map ? values.from(at) : Values{nullptr, 0, 0};
    }
    __device__ __forceinline__ Values output_row(const Values& out, int sample, int head, int place) const {
        int t = token(sample, place);
        return row_of_map(out, t, (static_cast<Index>(sample / windows) * map + t) * dim() + head * head_dim);
    }
    __device__ __forceinline__ Values grad_query_row(const Values& grad, int sample, int head, int place) const {
        int t = token(sample, place);
        return row_of_map(grad, t, (static_cast<Index>(sample / windows) * map + t) * 3 * dim() + head * head_dim);
    }
    __device__ __forceinline__ Values grad_key_row(const Values& grad, int sample, int head, int place) const {
        int t = token(sample, place);
        if (t >= map) return {grad_pads + (static_cast<Index>(sample) * tokens + place) * 2 * dim() + head * head_dim, 0, 0};
        return grad.from(((static_cast<Index>(sample / windows) * map + t) * 3 + 1) * dim() + head * head_dim);
    }

    // Number of a query's score among [images][heads][windows][places].
    __device__ __forceinline__ Index row(int sample, int head, int place) const {
        return ((static_cast<Index>(sample / windows) * heads + head) * windows + sample % windows) * tokens + place;
    }
    // The sums delta stand in the order [images][heads][map].
    __device__ __forceinline__ float delta(const Saved& saved, int sample, int head, int place) const {
        int t = token(sample, place);
        return t < map ? saved.delta[(static_cast<Index>(sample / windows) * heads + head) * map + t] : 0.0f;
    }
    __device__ __forceinline__ float score(float dot, int sample, int head, int query, int key) const {
        float score = dot * scale;
        if (bias) score += bias[(static_cast<Index>(head) * tokens + query) * tokens + key];
        if (region) {
            const int* of = region + static_cast<Index>(sample % windows) * tokens;
            if (of[query] != of[key]) score -= 100.0f;
        }
        return score;
    }
};

// Part of the gradient of the bias: ROWS queries and 32 keys of a head, summed over some samples in their order. blockIdx.x: head and part.
template <int ROWS, int DIM>
__device__ __forceinline__ void grad_bias_part(const Windows& windows, const Saved& saved, float* parts, int samples, int samples_of_part) {
    constexpr int THREADS = 2 * ROWS;
    SHARED(float, rows, [ROWS][DIM + PAD]);
    SHARED(float, columns, [COLUMNS][DIM + PAD]);
    int head = blockIdx.x % windows.heads, part = blockIdx.x / windows.heads;
    int query = blockIdx.y * ROWS, key = blockIdx.z * COLUMNS;
    float sum[4][4] = {};
    for (int sample = part * samples_of_part; sample < min(samples, (part + 1) * samples_of_part); sample++) {
        float score[4][4], grad[4][4];
        __syncthreads();
        windows.load<THREADS>(rows, QUERIES, sample, head, query);
        windows.load<THREADS>(columns, KEYS, sample, head, key);
        __syncthreads();
        dots_of<ROWS, DIM>(score, rows, columns);
        __syncthreads();
        windows.load_outputs<THREADS>(rows, saved.grad_out, sample, head, query);
        windows.load<THREADS>(columns, VALUES, sample, head, key);
        __syncthreads();
        dots_of<ROWS, DIM>(grad, rows, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int q = query + row_of(i);
            if (q >= windows.queries) continue;
            float lse = saved.lse[windows.row(sample, head, q)], delta = windows.delta(saved, sample, head, q);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int k = key + column_of(j);
                if (k >= windows.tokens) continue;
                float p = expf(windows.score(score[i][j], sample, head, q, k) - lse);
                sum[i][j] = fmaf(p, grad[i][j] - delta, sum[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int q = query + row_of(i), k = key + column_of(j);
            if (q < windows.queries && k < windows.tokens) {
                parts[(static_cast<Index>(blockIdx.x) * windows.queries + q) * windows.tokens + k] = sum[i][j];
            }
        }
    }
}

}  // namespace

// Heads of up to 32 and 64 columns.
extern "C" __global__ void __launch_bounds__(128, 2) window_attention_32(const __grid_constant__ Windows windows, const Values out, float* __restrict__ lse) { forward<64, 32>(windows, out, lse); }
extern "C" __global__ void __launch_bounds__(128, 2) window_attention_64(const __grid_constant__ Windows windows, const Values out, float* __restrict__ lse) { forward<64, 64>(windows, out, lse); }

extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_queries_32(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, const Values grad_qkv) { grad_queries<32, 32>(windows, saved, grad_qkv); }
extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_queries_64(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, const Values grad_qkv) { grad_queries<32, 64>(windows, saved, grad_qkv); }

extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_keys_32(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, const Values grad_qkv) { grad_keys<32, 32>(windows, saved, grad_qkv); }
extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_keys_64(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, const Values grad_qkv) { grad_keys<32, 64>(windows, saved, grad_qkv); }

extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_bias_32(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, float* __restrict__ parts, int samples, int samples_of_part) { grad_bias_part<32, 32>(windows, saved, parts, samples, samples_of_part); }
extern "C" __global__ void __launch_bounds__(64, 4) window_attention_grad_bias_64(const __grid_constant__ Windows windows, const __grid_constant__ Saved saved, float* __restrict__ parts, int samples, int samples_of_part) { grad_bias_part<32, 64>(windows, saved, parts, samples, samples_of_part); }

// grad_pad[dim + column] += the gradients of keys and values beyond the map, in their order; a thread takes a column.
extern "C" __global__ void __launch_bounds__(128) window_attention_grad_pad(const float* __restrict__ grad_pads, const int* __restrict__ index, float* __restrict__ grad_pad, int images, int places, int map, int dim) {
    int column = blockIdx.x * 128 + threadIdx.x;
    if (column >= 2 * dim) return;
    float sum = 0;
    for (int image = 0; image < images; image++) {
        for (int place = 0; place < places; place++) {
            if (index[place] >= map) sum += grad_pads[(static_cast<Index>(image) * places + place) * 2 * dim + column];
        }
    }
    grad_pad[dim + column] += sum;
}
