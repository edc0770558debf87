// cuDNN's backend descriptors, and the graph of operations that they make.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/cuda/libraries.h"

namespace fastserve::gpu {

/// One backend descriptor. The first call that fails is kept and the later ones do nothing, so that
/// a descriptor is written down as a whole and looked at once.
class Descriptor {
 public:
  Descriptor(const Cudnn& library, cudnnBackendDescriptorType_t type);
  Descriptor(Descriptor&& other) noexcept { *this = std::move(other); }
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  const std::vector<T>& values) {
    return set_raw(name, type, static_cast<int64_t>(values.size()), values.data());
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  const T& value) {
    return set_raw(name, type, 1, &value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.raw());
  }
  Descriptor& finalize();

  Status status() const { return status_; }
  cudnnBackendDescriptor_t raw() const { return raw_; }
  const Cudnn& library() const { return *library_; }

 private:
  Descriptor& set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                      int64_t count, const void* values);
  void keep(cudnnStatus_t code, const char* doing);

  const Cudnn* library_ = nullptr;
  cudnnBackendDescriptor_t raw_ = nullptr;
  Status status_;
};

using Dimensions = std::vector<int64_t>;

/// A tensor of a graph: of memory when it has a name that the caller gave, else between operations.
struct GraphTensor {
  Dimensions dimensions;
  std::shared_ptr<Descriptor> descriptor;
};

/// Operations in the order they are written down; what they need is kept until finish().
class GraphBuilder {
 public:
  explicit GraphBuilder(const Cudnn& library) : library_(library) {}

  /// In memory, with a stride for each dimension; `name` is the caller's, unique in the graph.
  GraphTensor memory(int64_t name, cudnnDataType_t type, Dimensions dimensions, Dimensions strides);
  /// A number that comes with each execution.
  GraphTensor scalar(int64_t name);
  /// Between operations; dense unless strides are given.
  GraphTensor between(Dimensions dimensions, cudnnDataType_t type = CUDNN_DATA_FLOAT,
                      Dimensions strides = {});

  void matmul(const GraphTensor& a, const GraphTensor& b, const GraphTensor& out);
  /// out = mode(x), mode(x, b) or mode(x, b, t).
  void pointwise(cudnnPointwiseMode_t mode, const GraphTensor& out, const GraphTensor& x,
                 const GraphTensor* b = nullptr, const GraphTensor* t = nullptr,
                 cudnnDataType_t compute = CUDNN_DATA_FLOAT, int64_t axis = -1);
  void reduce(cudnnReduceTensorOp_t how, const GraphTensor& x, const GraphTensor& out);
  void reshape(const GraphTensor& x, const GraphTensor& out);
  /// `scores` where the key is not after the query, the number `never` elsewhere.
  GraphTensor causal(const GraphTensor& scores, const GraphTensor& never);

  /// Null handle: for planning against a description of a card.
  Result<Descriptor> finish(cudnnHandle_t handle);

 private:
  GraphTensor tensor(int64_t name, cudnnDataType_t type, Dimensions dimensions, Dimensions strides,
                     bool in_memory, bool by_value);
  void add(Descriptor operation);
  void look_at(const Descriptor& descriptor);

  const Cudnn& library_;
  Status status_;
  std::vector<Descriptor> operations_;
  std::vector<std::shared_ptr<Descriptor>> tensors_;
  int64_t next_name_ = 1000;
};

}  // namespace fastserve::gpu
