// Stands in for cuBLASLt: products of column-major matrices of floats or bfloat16 with a bias of floats, in the order of their terms.

#include "queue.h"
#include "simt.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

enum Status { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15 };
constexpr int kFloat = 0;         // CUDA_R_32F
constexpr int kBfloat16 = 14;     // CUDA_R_16BF
constexpr int kCompute32 = 68;    // CUBLAS_COMPUTE_32F
constexpr int kEpilogueNone = 1;  // CUBLASLT_EPILOGUE_DEFAULT
constexpr int kEpilogueBias = 4;  // CUBLASLT_EPILOGUE_BIAS

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Product {
    int compute;
    int transposed_a = 0, transposed_b = 0;
    int epilogue = kEpilogueNone;
    const float* bias = nullptr;
};

float at(const void* matrix, const Layout& layout, bool transposed, uint64_t row, uint64_t column) {
    uint64_t place = transposed ? row * layout.stride + column : column * layout.stride + row;
    if (layout.type == kFloat) return static_cast<const float*>(matrix)[place];
    return float_of(static_cast<const uint16_t*>(matrix)[place]);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

size_t cublasLtGetVersion() { return 120000; }
int cublasLtCreate(void** handle) {
    *handle = reinterpret_cast<void*>(16);
    return kSuccess;
}
int cublasLtDestroy(void*) { return kSuccess; }
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if ((type != kFloat && type != kBfloat16) || stride < static_cast<int64_t>(rows)) return kInvalidValue;
    *layout = new Layout{type, rows, columns, stride};
    return kSuccess;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return kSuccess;
}
int cublasLtMatmulDescCreate(void** product, int compute, int scale) {
    if (compute != kCompute32 || scale != kFloat) return kNotSupported;
    *product = new Product{compute};
    return kSuccess;
}
int cublasLtMatmulDescDestroy(void* product) {
    delete static_cast<Product*>(product);
    return kSuccess;
}
int cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    auto* product = static_cast<Product*>(handle);
    switch (attribute) {
        case 3: std::memcpy(&product->transposed_a, value, sizeof(int)); return bytes == 4 ? kSuccess : kInvalidValue;
        case 4: std::memcpy(&product->transposed_b, value, sizeof(int)); return bytes == 4 ? kSuccess : kInvalidValue;
        case 7: std::memcpy(&product->epilogue, value, sizeof(int)); return bytes == 4 ? kSuccess : kInvalidValue;
        case 8: std::memcpy(&product->bias, value, sizeof(void*)); return bytes == 8 ? kSuccess : kInvalidValue;
        default: return kInvalidValue;
    }
}
int cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = std::malloc(8);
    return kSuccess;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
    std::free(preference);
    return kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return kSuccess; }

// cublasLtMatmulHeuristicResult_t: an algorithm of 64 bytes, the working memory it needs, a status, waves, and reserved room.
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int asked, Heuristic* results, int* found) {
    if (asked < 1) return kInvalidValue;
    *results = Heuristic{};
    results->algorithm[0] = 42;
    *found = 1;
    return kSuccess;
}

int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* layout_a, const void* b, void* layout_b, const void* beta,
                   const void* c, void* layout_c, void* d, void* layout_d, const void* algorithm, void*, size_t, void* stream) {
    Product product = *static_cast<Product*>(description);
    Layout la = *static_cast<Layout*>(layout_a), lb = *static_cast<Layout*>(layout_b), lc = *static_cast<Layout*>(layout_c),
           ld = *static_cast<Layout*>(layout_d);
    uint64_t inner = product.transposed_a ? la.rows : la.columns;
    bool fits = (product.transposed_a ? la.columns : la.rows) == ld.rows && (product.transposed_b ? lb.rows : lb.columns) == ld.columns &&
                inner == (product.transposed_b ? lb.columns : lb.rows) && lc.rows == ld.rows && lc.columns == ld.columns;
    bool biased = product.epilogue == kEpilogueBias;
    // The operands are of one type; of bfloat16, the result may be floats, and a bias has the type of the result.
    bool types = la.type == lb.type && lc.type == ld.type && (la.type == kBfloat16 || ld.type == kFloat) && !(biased && ld.type != kFloat);
    if (!fits || !types || (!biased && product.epilogue != kEpilogueNone) || (biased && !product.bias) || *static_cast<const uint64_t*>(algorithm) != 42) {
        return kInvalidValue;
    }
    float scale, keep;
    std::memcpy(&scale, alpha, 4);
    std::memcpy(&keep, beta, 4);
    return emulator_put(stream, [=] {
        std::vector<float> column(ld.rows);
        for (uint64_t n = 0; n < ld.columns; n++) {
            for (uint64_t m = 0; m < ld.rows; m++) {
                float sum = 0;
                for (uint64_t k = 0; k < inner; k++) {
                    sum += at(a, la, product.transposed_a, m, k) * at(b, lb, product.transposed_b, k, n);
                }
                sum *= scale;
                if (keep != 0) sum += keep * at(c, lc, false, m, n);
                if (biased) sum += product.bias[m];
                column[m] = sum;
            }
            for (uint64_t m = 0; m < ld.rows; m++) {
                if (ld.type == kFloat) static_cast<float*>(d)[n * ld.stride + m] = column[m];
                else static_cast<uint16_t*>(d)[n * ld.stride + m] = bf16_of(column[m]);
            }
        }
    }) ? 14 : kSuccess;
}

}  // extern "C"
#pragma GCC visibility pop
