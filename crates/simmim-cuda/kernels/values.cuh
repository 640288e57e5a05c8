// Numbers that are floats or bfloat16. Kernels that memory bounds ask at each number, alike in all threads; those that arithmetic bounds
// are written for one type.
#pragma once
#include "simt.cuh"

struct Values {
    void* start;
    int rounded;  // bfloat16, each the nearest to its float, of two equally near ones the even one
    int unused;

    __device__ __forceinline__ float operator[](Index at) const {
        return rounded ? float_of(static_cast<const uint16_t*>(start)[at]) : static_cast<const float*>(start)[at];
    }
    __device__ __forceinline__ void put(Index at, float value) const {
        if (rounded) static_cast<uint16_t*>(start)[at] = bf16_of(value);
        else static_cast<float*>(start)[at] = value;
    }
    // The values from that one on.
    __device__ __forceinline__ Values from(Index at) const {
        return {static_cast<char*>(start) + at * (rounded ? 2 : 4), rounded, 0};
    }
};
