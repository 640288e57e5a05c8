// Cuts chosen patches out of planar images: a block takes a patch. With `normalise`, each patch gets mean zero and variance one
// over all its values; `eps` is added to the variance.
#include "values.cuh"

extern "C" __global__ void __launch_bounds__(128) patch_gather(const float* __restrict__ images, const int* __restrict__ index, const Values y, int patches, int channels, int height, int width, int patch_height, int patch_width, int normalise, float eps) {
    SHARED(float, partials, [4]);
    int size = channels * patch_height * patch_width, position = index[blockIdx.x];
    int top = position / (width / patch_width) * patch_height, left = position % (width / patch_width) * patch_width;
    const float* image = images + static_cast<Index>(blockIdx.x / patches) * channels * height * width;
    Values to = y.from(static_cast<Index>(blockIdx.x) * size);
    auto pixel = [&](int at) {
        int c = at / (patch_height * patch_width), i = at / patch_width % patch_height, j = at % patch_width;
        return image[(static_cast<Index>(c) * height + top + i) * width + left + j];
    };
    float mean = 0, rstd = 1;
    if (normalise) {
        float sum = 0, squares = 0;
        for (int at = threadIdx.x; at < size; at += 128) sum += pixel(at);
        mean = block_sum<4>(sum, partials) / size;
        for (int at = threadIdx.x; at < size; at += 128) squares = fmaf(pixel(at) - mean, pixel(at) - mean, squares);
        rstd = 1.0f / sqrtf(block_sum<4>(squares, partials) / (max(size, 2) - 1) + eps);
    }
    for (int at = threadIdx.x; at < size; at += 128) to.put(at, normalise ? (pixel(at) - mean) * rstd : pixel(at));
}
