#include "gpu/cuda/cublaslt_call.h"

#include <array>

namespace fastserve::gpu {
namespace {

constexpr uint32_t kAlignment = 16;  // bytes, of every pointer that the engine takes
constexpr int kCandidates = 32;

cudaDataType_t type_of(Precision precision) {
  return precision == Precision::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
}

cudaDataType_t out_type(const Product& p) {
  return p.epilogue == ProductEpilogue::kStore ? type_of(p.precision) : CUDA_R_32F;
}

}  // namespace

CublasLtCall::CublasLtCall(const CublasLt& library, const Product& product, bool may_split)
    : library_(library), product_(product), may_split_(may_split) {
  describe_operation();
  describe_matrices();
}

CublasLtCall::~CublasLtCall() {
  for (cublasLtMatrixLayout_t layout : {a_, b_, d_})
    if (layout != nullptr) library_.cublasLtMatrixLayoutDestroy(layout);
  if (operation_ != nullptr) library_.cublasLtMatmulDescDestroy(operation_);
}

template <class T>
void CublasLtCall::set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
  if (status_ == CUBLAS_STATUS_SUCCESS)
    keep(library_.cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value));
}

void CublasLtCall::describe_operation() {
  keep(library_.cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  // b is [n, k] in x W^T and [k, n] elsewhere; a is [k, m] in dy^T x and [m, k] elsewhere.
  // Row-major memory is the transposed matrix column by column.
  const auto transposed = [](bool yes) { return yes ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(CUBLASLT_MATMUL_DESC_TRANSA, transposed(product_.kind == ProductKind::kForward));
  set(CUBLASLT_MATMUL_DESC_TRANSB, transposed(product_.kind == ProductKind::kWeightGrad));
  if (product_.bias == nullptr) return;
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product_.bias);
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
      product_.short_bias ? type_of(product_.precision) : CUDA_R_32F);
}

void CublasLtCall::describe_matrices() {
  const auto n = static_cast<uint64_t>(product_.n), m = static_cast<uint64_t>(product_.m),
             k = static_cast<uint64_t>(product_.k);
  const cudaDataType_t type = type_of(product_.precision);
  const bool b_by_out = product_.kind == ProductKind::kForward;
  const bool a_by_rows = product_.kind != ProductKind::kWeightGrad;
  keep(library_.cublasLtMatrixLayoutCreate(&a_, type, b_by_out ? k : n, b_by_out ? n : k,
                                           product_.ldb));
  keep(library_.cublasLtMatrixLayoutCreate(&b_, type, a_by_rows ? k : m, a_by_rows ? m : k,
                                           product_.lda));
  keep(library_.cublasLtMatrixLayoutCreate(&d_, out_type(product_), n, m, product_.out_ld));
}

bool CublasLtCall::sums_in_order(const cublasLtMatmulAlgo_t& algorithm) const {
  uint32_t splits = 0, reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
  size_t written = 0;
  const auto ask = [&](cublasLtMatmulAlgoConfigAttributes_t which, uint32_t& into) {
    return library_.cublasLtMatmulAlgoConfigGetAttribute(&algorithm, which, &into, sizeof into,
                                                         &written) == CUBLAS_STATUS_SUCCESS;
  };
  if (!ask(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, splits) ||
      !ask(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, reduction))
    return false;
  if (splits <= 1) return reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
  // The parts lie in the workspace, and another kernel adds them.
  return may_split_ && reduction == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

std::vector<cublasLtMatmulAlgo_t> CublasLtCall::candidates(cublasLtHandle_t handle,
                                                           size_t workspace) {
  if (status_ != CUBLAS_STATUS_SUCCESS) return {};
  cublasLtMatmulPreference_t preference = nullptr;
  cublasStatus_t status = library_.cublasLtMatmulPreferenceCreate(&preference);
  if (status != CUBLAS_STATUS_SUCCESS) return {};
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
    if (status == CUBLAS_STATUS_SUCCESS)
      status =
          library_.cublasLtMatmulPreferenceSetAttribute(preference, which, &value, sizeof value);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  const uint32_t parts = may_split_ ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : 0;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_NONE | parts);
  for (const auto which :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(which, kAlignment);
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
  int count = 0;
  if (status == CUBLAS_STATUS_SUCCESS)
    status = library_.cublasLtMatmulAlgoGetHeuristic(handle, operation_, a_, b_, d_, d_, preference,
                                                     kCandidates, found.data(), &count);
  library_.cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS) return {};
  std::vector<cublasLtMatmulAlgo_t> good;
  for (int i = 0; i < count; i++)
    if (found[size_t(i)].state == CUBLAS_STATUS_SUCCESS && sums_in_order(found[size_t(i)].algo))
      good.push_back(found[size_t(i)].algo);
  return good;
}

bool CublasLtCall::runs(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm,
                        size_t workspace) const {
  if (status_ != CUBLAS_STATUS_SUCCESS || !sums_in_order(algorithm)) return false;
  cublasLtMatmulHeuristicResult_t result{};
  return library_.cublasLtMatmulAlgoCheck(handle, operation_, a_, b_, d_, d_, &algorithm,
                                          &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= workspace;
}

cublasStatus_t CublasLtCall::run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm,
                                 void* workspace, size_t workspace_bytes,
                                 cudaStream_t stream) const {
  if (status_ != CUBLAS_STATUS_SUCCESS) return status_;
  const bool adds = product_.epilogue == ProductEpilogue::kAddResidual;
  const float one = 1, beta = adds ? 1.0f : 0.0f;
  const void* c = adds ? product_.residual : product_.out;
  return library_.cublasLtMatmul(handle, operation_, &one, product_.b, a_, product_.a, b_, &beta, c,
                                 d_, product_.out, d_, &algorithm, workspace, workspace_bytes,
                                 stream);
}

}  // namespace fastserve::gpu
