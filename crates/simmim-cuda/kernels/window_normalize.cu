// Normalises every pixel by mean and variance of the window around it. A block takes some rows of a plane: sums over the window's rows
// slide down the columns in working memory, sums of those along the row make the window's.
#include "simt.cuh"

constexpr int THREADS = 256;

// sums [planes][strips][2][width]; blockIdx.x: plane, blockIdx.y: strip of so many rows.
extern "C" __global__ void __launch_bounds__(THREADS) window_normalize(const float* __restrict__ images, float* __restrict__ out, double* __restrict__ sums, int height, int width, int half, int rows_of_strip, float eps) {
    const float* x = images + static_cast<Index>(blockIdx.x) * height * width;
    float* y = out + static_cast<Index>(blockIdx.x) * height * width;
    double* ones = sums + (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * 2 * width;
    double* squares = ones + width;
    int first = blockIdx.y * rows_of_strip, end = min(height, first + rows_of_strip);
    for (int row = first; row < end; row++) {
        for (int column = threadIdx.x; column < width; column += THREADS) {
            double one = 0, square = 0;
            int from = row + half, to = min(row + half + 1, height);
            if (row == first) {
                from = max(0, row - half);
            } else {
                one = ones[column];
                square = squares[column];
                if (row > half) {
                    double gone = x[static_cast<Index>(row - half - 1) * width + column];
                    one -= gone;
                    square -= gone * gone;
                }
            }
            for (int r = from; r < to; r++) {
                double v = x[static_cast<Index>(r) * width + column];
                one += v;
                square += v * v;
            }
            ones[column] = one;
            squares[column] = square;
        }
        __syncthreads();
        int rows = min(height, row + half + 1) - max(0, row - half);
        for (int column = threadIdx.x; column < width; column += THREADS) {
            int left = max(0, column - half), right = min(width, column + half + 1);
            double one = 0, square = 0, count = static_cast<double>(rows) * (right - left);
            for (int c = left; c < right; c++) {
                one += ones[c];
                square += squares[c];
            }
            double mean = one / count, variance = (square - one * mean) / fmax(count - 1.0, 1.0);
            Index at = static_cast<Index>(row) * width + column;
            y[at] = static_cast<float>((x[at] - mean) / sqrt(fmax(variance, 0.0) + eps));
        }
        __syncthreads();
    }
}
