#include "tests/gpu/stub_driver/cublaslt.h"

#include <cublasLt.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "base/half.h"

using fastserve::BFloat16;
using fastserve::Float16;
using fastserve::to_bfloat16;
using fastserve::to_float;
using fastserve::to_float16;
using stub_cublaslt::state;

namespace stub_cublaslt {
State& state() {
  static State only;
  return only;
}
}  // namespace stub_cublaslt

namespace {

struct Operation {
  std::map<int, std::vector<char>> attributes;
  template <class T>
  T get(int attribute, T otherwise) const {
    const auto found = attributes.find(attribute);
    if (found != attributes.end()) std::memcpy(&otherwise, found->second.data(), sizeof otherwise);
    return otherwise;
  }
};

struct Layout {
  cudaDataType type;
  uint64_t rows, columns;
  int64_t ld;
};

template <class To, class From>
To* as(From* from) {
  return reinterpret_cast<To*>(from);
}

bool fails() { return state().calls++ == state().fail_at; }

#define STUB_CALL() \
  if (fails()) return CUBLAS_STATUS_INTERNAL_ERROR

template <class T, class Handle>
cublasStatus_t make(Handle* out, T value) {
  *out = as<std::remove_pointer_t<Handle>>(new T(std::move(value)));
  state().live++;
  return CUBLAS_STATUS_SUCCESS;
}

template <class T, class Handle>
cublasStatus_t destroy(Handle handle) {
  delete as<T>(handle);
  state().live--;
  return CUBLAS_STATUS_SUCCESS;
}

float read(const void* data, const Layout& layout, uint64_t row, uint64_t column) {
  const size_t at = row + column * static_cast<size_t>(layout.ld);
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(data)[at];
  if (layout.type == CUDA_R_16F) return to_float(static_cast<const Float16*>(data)[at]);
  return to_float(static_cast<const BFloat16*>(data)[at]);
}

void write(void* data, const Layout& layout, uint64_t row, uint64_t column, float value) {
  const size_t at = row + column * static_cast<size_t>(layout.ld);
  if (layout.type == CUDA_R_32F)
    static_cast<float*>(data)[at] = value;
  else if (layout.type == CUDA_R_16F)
    static_cast<Float16*>(data)[at] = to_float16(value);
  else
    static_cast<BFloat16*>(data)[at] = to_bfloat16(value);
}

/// Kinds: the heuristic's first; a faster one of the same bits; the fastest, of other bits.
enum Kind : uint64_t { kFirst, kFaster, kOther };

cublasLtMatmulAlgo_t algorithm(uint64_t splits, Kind kind = kFirst) {
  cublasLtMatmulAlgo_t made{};
  made.data[0] = splits;
  made.data[1] = kind;
  made.data[7] = 0x57ab;
  return made;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() {
  const char* version = std::getenv("FASTSERVE_STUB_CUBLASLT");
  return version != nullptr ? std::strtoul(version, nullptr, 10) : 130100;
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  STUB_CALL();
  return make(handle, 0);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy<int>(handle); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation,
                                        cublasComputeType_t compute, cudaDataType_t scale) {
  STUB_CALL();
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  return make(operation, Operation());
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  return destroy<Operation>(operation);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  STUB_CALL();
  const char* first = static_cast<const char*>(value);
  as<Operation>(operation)->attributes[attribute].assign(first, first + bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  STUB_CALL();
  return make(layout, Layout{type, rows, columns, ld});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return destroy<Layout>(layout);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  STUB_CALL();
  return make(preference, Operation());
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy<Operation>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t,
                                                    const void*, size_t) {
  STUB_CALL();
  return CUBLAS_STATUS_SUCCESS;
}
/// First one that splits k, which must be passed over; then one of each kind.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* count) {
  STUB_CALL();
  state().searches++;
  const cublasLtMatmulAlgo_t all[] = {algorithm(4), algorithm(1), algorithm(1, kFaster),
                                      algorithm(1, kOther)};
  *count = 0;
  for (const cublasLtMatmulAlgo_t& one : all) {
    results[*count].algo = one;
    results[(*count)++].state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t which,
                                                    void* value, size_t bytes, size_t* written) {
  const auto splits = static_cast<uint32_t>(algo->data[0]);
  const uint32_t answer = which == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? splits : splits > 1 ? 2 : 0;
  if (bytes != sizeof answer) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, &answer, sizeof answer);
  *written = sizeof answer;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  STUB_CALL();
  result->workspaceSize = 1024;
  return algo->data[7] == 0x57ab ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void*, size_t, cudaStream_t) {
  STUB_CALL();
  if (algo->data[0] != 1) return CUBLAS_STATUS_INVALID_VALUE;
  state().products++;
  state().nanoseconds += algo->data[1] == kFirst ? 100 : algo->data[1] == kFaster ? 50 : 10;
  state().fastest_run += algo->data[1] == kFaster;
  const auto& op = *as<const Operation>(operation);
  const auto &la = *as<const Layout>(a_layout), &lb = *as<const Layout>(b_layout),
             &lc = *as<const Layout>(c_layout), &ld = *as<const Layout>(d_layout);
  const bool ta = op.get(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_N) == CUBLAS_OP_T;
  const bool tb = op.get(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N) == CUBLAS_OP_T;
  const uint64_t depth = ta ? la.rows : la.columns;
  if ((ta ? la.columns : la.rows) != ld.rows || (tb ? lb.rows : lb.columns) != ld.columns ||
      (tb ? lb.columns : lb.rows) != depth)
    return CUBLAS_STATUS_INVALID_VALUE;
  const auto* bias = op.get<const void*>(CUBLASLT_MATMUL_DESC_BIAS_POINTER, nullptr);
  const Layout of_bias{op.get(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F), ld.rows, 1, 1};
  const bool biased =
      op.get(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT) == CUBLASLT_EPILOGUE_BIAS;
  const float scale = *static_cast<const float*>(alpha), add = *static_cast<const float*>(beta);
  for (uint64_t column = 0; column < ld.columns; column++)
    for (uint64_t row = 0; row < ld.rows; row++) {
      double sum = 0;
      for (uint64_t k = 0; k < depth; k++)
        sum += double(ta ? read(a, la, k, row) : read(a, la, row, k)) *
               double(tb ? read(b, lb, column, k) : read(b, lb, k, column));
      float value = scale * static_cast<float>(sum);
      if (add != 0) value += add * read(c, lc, row, column);
      if (algo->data[1] == kOther) value *= 1.0078125f;
      write(d, ld, row, column, biased ? value + read(bias, of_bias, row, 0) : value);
    }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
