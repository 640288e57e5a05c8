// Kernels that test the emulator itself, and what the kernels of simmim will use.
#include "simt.cuh"

// Sum of 256 numbers through shared memory. The faults: 1 leaves out a barrier, 2 reads one too far in shared memory, 3 writes
// one too far in global memory, 4 lets half of the threads go before the barrier, 5 takes too much shared memory.
extern "C" __global__ void __launch_bounds__(256) self_test_sum(const float* x, float* sum, int fault) {
    SHARED(float, part, [256]);
    int t = threadIdx.x;
    part[t] = x[blockIdx.x * 256 + t];
    if (fault == 4 && t % 2) return;
    for (int half = 128; half; half /= 2) {
        if (fault != 1 || half != 16) __syncthreads();
        if (t < half) part[t] += part[t + half + (fault == 2 && half == 128 && t == 127)];
    }
#ifdef SIMMIM_EMULATOR  // ptxas would refuse it
    if (fault == 5) {
        SHARED(float, more, [12289]);
        more[t] = 0;
    }
#endif
    if (t == 0) sum[blockIdx.x + (fault == 3)] = part[0];
}

// c [16][8] = a [16][16] b [8][16]^T in bfloat16 by one warp, operands through ldmatrix. The fault swaps two registers of `a`.
extern "C" __global__ void __launch_bounds__(32) self_test_mma(const uint16_t* a, const uint16_t* b, float* c, int fault) {
    SHARED(uint16_t, left, [16][24]);
    SHARED(uint16_t, right, [8][24]);
    int lane = threadIdx.x;
    for (int i = lane; i < 16 * 16; i += 32) left[i / 16][i % 16] = a[i];
    for (int i = lane; i < 8 * 16; i += 32) right[i / 16][i % 16] = b[i];
    __syncthreads();
    unsigned fa[4], fb[4];
    load_matrix_x4(fa, &left[lane % 16][lane / 16 * 8]);
    load_matrix_x4(fb, &right[lane % 8][lane / 8 % 2 * 8]);
    if (fault) {
        unsigned kept = fa[1];
        fa[1] = fa[2];
        fa[2] = kept;
    }
    float sum[4] = {};
    mma_bf16_16x8x16(sum, fa, fb);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// y = x through shared memory by asynchronous copies of 16 bytes, in two stages. The fault forgets to wait for the last one.
extern "C" __global__ void __launch_bounds__(64) self_test_copy(const float* x, float* y, int fault) {
    SHARED(float, part, [2][256]);
    for (int stage = 0; stage < 2; stage++) {
        copy_async_16(&part[stage][threadIdx.x * 4], x + stage * 256 + threadIdx.x * 4, true);
        copy_async_commit();
    }
    copy_async_wait(1);
    if (!fault) copy_async_wait(0);
    __syncthreads();
    for (int i = threadIdx.x; i < 512; i += 64) y[i] = part[i / 256][i % 256];
}
