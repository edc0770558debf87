// The functions of NVIDIA's libraries that are used, by name and type, filled when a library opens.
#pragma once

#include <cublasLt.h>
#include <cudnn.h>
#include <nccl.h>

#include "gpu/cuda/shared_library.h"
#include "gpu/inventory.h"

namespace fastserve::gpu {

#define FS_CUBLASLT_FUNCTIONS(X)          \
  X(cublasLtGetVersion)                   \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)          \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulAlgoConfigGetAttribute) \
  X(cublasLtMatmulAlgoCheck)

#define FS_CUDNN_FUNCTIONS(X)      \
  X(cudnnGetVersion)               \
  X(cudnnGetErrorString)           \
  X(cudnnGetLastErrorString)       \
  X(cudnnCreate)                   \
  X(cudnnDestroy)                  \
  X(cudnnSetStream)                \
  X(cudnnBackendCreateDescriptor)  \
  X(cudnnBackendDestroyDescriptor) \
  X(cudnnBackendSetAttribute)      \
  X(cudnnBackendGetAttribute)      \
  X(cudnnBackendFinalize)          \
  X(cudnnBackendExecute)

#define FS_NCCL_FUNCTIONS(X) \
  X(ncclGetVersion)          \
  X(ncclGetErrorString)      \
  X(ncclGetLastError)        \
  X(ncclGetUniqueId)         \
  X(ncclCommInitRankConfig)  \
  X(ncclCommGetAsyncError)   \
  X(ncclCommDestroy)         \
  X(ncclCommAbort)           \
  X(ncclGroupStart)          \
  X(ncclGroupEnd)            \
  X(ncclReduce)              \
  X(ncclBroadcast)

// Each member has its function's name, so that a call reads as it does in NVIDIA's documentation.
#define FS_DECLARE(name) decltype(&::name) name = nullptr;
struct CublasLt {
  FS_CUBLASLT_FUNCTIONS(FS_DECLARE)
};
struct Cudnn {
  FS_CUDNN_FUNCTIONS(FS_DECLARE)
};
struct Nccl {
  FS_NCCL_FUNCTIONS(FS_DECLARE)
};
#undef FS_DECLARE

/// A table, or nothing and why; `found` is for the inventory either way.
template <class Table>
struct Opened {
  const Table* table = nullptr;  ///< lives as long as the process
  GpuLibrary found;
};

/// Opened at the first call, the same answer ever after. Threads: any.
const Opened<CublasLt>& cublaslt();
const Opened<Cudnn>& cudnn();
const Opened<Nccl>& nccl();

}  // namespace fastserve::gpu
