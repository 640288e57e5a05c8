// Operations over many tensors in one launch: a table of tensors, and chunks that name a part of one each.
#pragma once
#include "simt.cuh"

constexpr int CHUNK = 4096;

// Block b works on the elements `start .. start + CHUNK` of a tensor.
struct Chunk {
    int tensor;
    int unused;
    Index start;
};
