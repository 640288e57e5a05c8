// What all kernels start from. They are written in the part of CUDA C++ that both NVRTC and a C++ compiler take (the second for
// the emulator, which defines the same names in simt.h); what only the GPU knows stands in the wrappers below and nowhere else.
//
// Every thread of a block reaches every barrier; nobody leaves early. Shuffles are of whole warps. No atomics on floats: sums have
// an order that follows from the shapes.
#pragma once

#ifdef SIMMIM_EMULATOR
#include "simt.h"
#else

// An array of the block: SHARED(float, tile, [16][65]).
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__

// Asynchronous copies from global into shared memory; zeros where not valid. A thread's own copies have landed after
// copy_async_wait(pending) but for those of the last `pending` commits; those of others after a barrier.
__device__ __forceinline__ void copy_async_4(void* to, const void* from, bool valid) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
#define copy_async_commit() asm volatile("cp.async.commit_group;\n" ::: "memory")
#define copy_async_wait(pending) asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory")

// c [16][8] += a [16][16] b [16][8] of bfloat16, in the fragments of the PTX manual.
__device__ __forceinline__ void mma_bf16_16x8x16(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void load_matrix_x4(unsigned* to, const void* row) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared) : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(unsigned* to, const void* row) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared) : "memory");
}

typedef unsigned short uint16_t;
__device__ __forceinline__ uint16_t bf16_of(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ float float_of(uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

#endif

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define WHOLE_WARP 0xffffffffu

// Elements of a tensor may number more than 2^31.
typedef long long Index;

__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, lanes);
    return value;
}
__device__ __forceinline__ double warp_sum(double value) {
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, lanes);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
    for (int lanes = 16; lanes; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(WHOLE_WARP, value, lanes));
    return value;
}

// Sum over the block of WARPS warps, known to every thread. `partials` has room for one value of each warp.
template <int WARPS, class T>
__device__ __forceinline__ T block_sum(T value, T* partials) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = partials[0];
    for (int w = 1; w < WARPS; w++) sum += partials[w];
    return sum;
}
template <int WARPS>
__device__ __forceinline__ float block_max(float value, float* partials) {
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = value;
    __syncthreads();
    float most = partials[0];
    for (int w = 1; w < WARPS; w++) most = fmaxf(most, partials[w]);
    return most;
}

// Exact GELU and its derivative.
__device__ __forceinline__ void gelu_and_slope(float z, float* gelu, float* slope) {
    // erfc keeps the digits of the tail that 1 + erf loses.
    float below = 0.5f * erfcf(-0.70710678f * z);
    *gelu = z * below;
    *slope = fmaf(0.39894228f * z, expf(-0.5f * z * z), below);
}
