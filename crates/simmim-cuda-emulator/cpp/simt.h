// CUDA C++ on the processor: what kernels see. Every thread of a block is a fiber (fibers.cpp); a launch runs one block after
// another, in an order that is drawn anew each time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

// A place in a kernel's text where threads meet. Tests name it (`linear.cu:42`) and have it skipped.
struct Site {
    const char* kind;
    const char* file;
    int line;
    bool skipped;
    Site(const char* kind, const char* file, int line);
};

// What one lane gives to, and takes from, an operation of its warp.
struct Words {
    uint32_t word[8];
};
using Collective = void (*)(const Words* in, Words* out, int how);

// Ends the launch with a message; the driver reports it as a failed launch.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

void block_barrier(Site& site);
void collective(Site& site, const Words& in, Words& out, Collective run, int how);

// Shared memory of the block: the same address for every thread, filled with NaN, with guards around it.
void* shared(Site& site, size_t bytes);

// An asynchronous copy lands at once or only when it is waited for: a block draws which.
void copy_async(void* to, const void* from, size_t bytes, bool valid);
void copy_commit();
void copy_wait(Site& site, int pending);

template <class T>
inline T shuffle_xor(Site& site, T value, int mask) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves four or eight bytes");
    Words in{}, out{};
    std::memcpy(in.word, &value, sizeof(T));
    collective(site, in, out, [](const Words* in, Words* out, int mask) {
        for (int lane = 0; lane < 32; lane++) out[lane] = in[lane ^ mask];
    }, mask);
    std::memcpy(&value, out.word, sizeof(T));
    return value;
}

unsigned ballot(Site& site, bool vote);
void mma_bf16(Site& site, float* c, const unsigned* a, const unsigned* b);
void load_matrix(Site& site, unsigned* to, const void* row, bool transposed);

}  // namespace simt

#define SIMT_SITE(kind)                                   \
    ([]() -> simt::Site& {                                \
        static simt::Site site(kind, __FILE__, __LINE__); \
        return site;                                      \
    }())

#define SHARED(type, name, ...)          \
    using name##_array = type __VA_ARGS__; \
    name##_array& name = *static_cast<name##_array*>(simt::shared(SIMT_SITE("shared"), sizeof(name##_array)))

#define __syncthreads() simt::block_barrier(SIMT_SITE("barrier"))
#define __syncwarp()                                                                        \
    do {                                                                                    \
        simt::Words nothing{}, none{};                                                      \
        simt::collective(SIMT_SITE("warp barrier"), nothing, none,                          \
                         [](const simt::Words*, simt::Words*, int) {}, 0);                  \
    } while (0)
#define __shfl_xor_sync(mask, value, lanes) simt::shuffle_xor(SIMT_SITE("shuffle"), value, lanes)
#define __ballot_sync(mask, vote) simt::ballot(SIMT_SITE("ballot"), vote)
#define copy_async_4(to, from, valid) simt::copy_async(to, from, 4, valid)
#define copy_async_16(to, from, valid) simt::copy_async(to, from, 16, valid)
#define copy_async_commit() simt::copy_commit()
#define copy_async_wait(pending) simt::copy_wait(SIMT_SITE("copy wait"), pending)
#define mma_bf16_16x8x16(c, a, b) simt::mma_bf16(SIMT_SITE("mma"), c, a, b)
#define load_matrix_x4(to, row) simt::load_matrix(SIMT_SITE("ldmatrix"), to, row, false)
#define load_matrix_x4_transposed(to, row) simt::load_matrix(SIMT_SITE("ldmatrix"), to, row, true)

struct alignas(16) float4 {
    float x, y, z, w;
};
template <class T>
inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
inline T max(T a, T b) { return a < b ? b : a; }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline uint16_t bf16_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // what cvt makes of any NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float float_of(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
