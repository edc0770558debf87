// One product in cuBLASLt's words.
#pragma once

#include <string>
#include <vector>

#include "gpu/cuda/libraries.h"
#include "gpu/matmul_engine.h"

namespace fastserve::gpu {

/// The descriptors of a product; gives them back. Column-major as the library is: its D is our
/// out^T [n, m], its A our b and its B our a.
///
/// Threads: one caller at a time.
class CublasLtCall {
 public:
  /// `may_split`: a sum over k may be cut into parts that are added in order, in float.
  CublasLtCall(const CublasLt& library, const Product& product, bool may_split = false);
  ~CublasLtCall();
  CublasLtCall(const CublasLtCall&) = delete;
  CublasLtCall& operator=(const CublasLtCall&) = delete;

  /// CUBLAS_STATUS_SUCCESS when every descriptor could be made.
  cublasStatus_t status() const { return status_; }

  /// The heuristic's algorithms, best first, that sum each element in one block, or as `may_split`
  /// says. None when it fails.
  std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, size_t workspace);
  /// Whether the algorithm runs these sizes with that workspace.
  bool runs(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm, size_t workspace) const;
  cublasStatus_t run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm,
                     void* workspace, size_t workspace_bytes, cudaStream_t stream) const;

 private:
  void describe_operation();
  void describe_matrices();
  void keep(cublasStatus_t status) {
    if (status_ == CUBLAS_STATUS_SUCCESS) status_ = status;
  }
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value);
  bool sums_in_order(const cublasLtMatmulAlgo_t& algorithm) const;

  const CublasLt& library_;
  const Product& product_;
  const bool may_split_;
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

}  // namespace fastserve::gpu
