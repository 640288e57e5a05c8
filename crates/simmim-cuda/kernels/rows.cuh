// Sums over the rows that an index names, in the order of the index.
#pragma once
#include "values.cuh"

// Sum of x[i][column] over those i below `count` for which index[i] is `row`. A warp tests 32 entries at once; all its lanes come
// along, also those whose column is outside.
__device__ __forceinline__ float sum_of_rows(const Values& x, const int* index, int count, int row, int column, int dim) {
    float sum = 0;
    int lane = threadIdx.x % 32;
    for (int first = 0; first < count; first += 32) {
        unsigned hits = __ballot_sync(WHOLE_WARP, first + lane < count && index[first + lane] == row);
        for (; hits; hits &= hits - 1) {
            int i = first + __ffs(hits) - 1;
            if (column < dim) sum += x[static_cast<Index>(i) * dim + column];
        }
    }
    return sum;
}
