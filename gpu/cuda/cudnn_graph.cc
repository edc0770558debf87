#include "gpu/cuda/cudnn_graph.h"

#include <array>

namespace fastserve::gpu {
namespace {

Dimensions dense(const Dimensions& dimensions) {
  Dimensions strides(dimensions.size());
  int64_t step = 1;
  for (size_t i = dimensions.size(); i-- > 0;) {
    strides[i] = step;
    step *= dimensions[i];
  }
  return strides;
}

}  // namespace

Descriptor::Descriptor(const Cudnn& library, cudnnBackendDescriptorType_t type)
    : library_(&library) {
  keep(library.cudnnBackendCreateDescriptor(type, &raw_), "making a descriptor");
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(library_, other.library_);
  std::swap(raw_, other.raw_);
  std::swap(status_, other.status_);
  return *this;
}

Descriptor::~Descriptor() {
  if (raw_ != nullptr) library_->cudnnBackendDestroyDescriptor(raw_);
}

void Descriptor::keep(cudnnStatus_t code, const char* doing) {
  if (code == CUDNN_STATUS_SUCCESS || !status_.ok()) return;
  std::array<char, 512> last{};
  library_->cudnnGetLastErrorString(last.data(), last.size());
  status_ = Error{
      code == CUDNN_STATUS_ALLOC_FAILED ? ErrorCode::kResourceExhausted : ErrorCode::kUnsupported,
      std::string(doing) + " failed: " + library_->cudnnGetErrorString(code) +
          (last[0] != '\0' ? std::string(", ") + last.data() : ""),
      "cuDNN", ""};
}

Descriptor& Descriptor::set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                int64_t count, const void* values) {
  if (status_.ok())
    keep(library_->cudnnBackendSetAttribute(raw_, name, type, count, values), "describing a graph");
  return *this;
}

Descriptor& Descriptor::finalize() {
  if (status_.ok()) keep(library_->cudnnBackendFinalize(raw_), "checking a graph");
  return *this;
}

void GraphBuilder::look_at(const Descriptor& descriptor) {
  if (status_.ok()) status_ = descriptor.status();
}

void GraphBuilder::add(Descriptor operation) {
  operation.finalize();
  look_at(operation);
  operations_.push_back(std::move(operation));
}

GraphTensor GraphBuilder::tensor(int64_t name, cudnnDataType_t type, Dimensions dimensions,
                                 Dimensions strides, bool in_memory, bool by_value) {
  auto made = std::make_shared<Descriptor>(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  made->set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, dimensions)
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides)
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, name)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t{16});
  if (!in_memory) made->set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  if (by_value) made->set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, true);
  made->finalize();
  look_at(*made);
  tensors_.push_back(made);
  return {std::move(dimensions), std::move(made)};
}

GraphTensor GraphBuilder::memory(int64_t name, cudnnDataType_t type, Dimensions dimensions,
                                 Dimensions strides) {
  return tensor(name, type, std::move(dimensions), std::move(strides), true, false);
}

GraphTensor GraphBuilder::scalar(int64_t name) {
  return tensor(name, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, true, true);
}

GraphTensor GraphBuilder::between(Dimensions dimensions, cudnnDataType_t type, Dimensions strides) {
  if (strides.empty()) strides = dense(dimensions);
  return tensor(next_name_++, type, std::move(dimensions), std::move(strides), false, false);
}

void GraphBuilder::matmul(const GraphTensor& a, const GraphTensor& b, const GraphTensor& out) {
  Descriptor how(library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize();
  look_at(how);
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, *a.descriptor)
      .set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, *b.descriptor)
      .set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, *out.descriptor)
      .set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  add(std::move(operation));
}

void GraphBuilder::pointwise(cudnnPointwiseMode_t mode, const GraphTensor& out,
                             const GraphTensor& x, const GraphTensor* b, const GraphTensor* t,
                             cudnnDataType_t compute, int64_t axis) {
  Descriptor how(library_, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode)
      .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, compute);
  if (axis >= 0) how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
  how.finalize();
  look_at(how);
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, *x.descriptor)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, *out.descriptor);
  if (b != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b->descriptor);
  if (t != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t->descriptor);
  add(std::move(operation));
}

void GraphBuilder::reduce(cudnnReduceTensorOp_t how, const GraphTensor& x, const GraphTensor& out) {
  Descriptor reduction(library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, how)
      .finalize();
  look_at(reduction);
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, *x.descriptor)
      .set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, *out.descriptor)
      .set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  add(std::move(operation));
}

void GraphBuilder::reshape(const GraphTensor& x, const GraphTensor& out) {
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, *x.descriptor)
      .set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, *out.descriptor);
  add(std::move(operation));
}

GraphTensor GraphBuilder::causal(const GraphTensor& scores, const GraphTensor& never) {
  const GraphTensor row = between(scores.dimensions, CUDNN_DATA_INT32);
  const GraphTensor column = between(scores.dimensions, CUDNN_DATA_INT32);
  const GraphTensor seen = between(scores.dimensions, CUDNN_DATA_BOOLEAN);
  const GraphTensor masked = between(scores.dimensions);
  pointwise(CUDNN_POINTWISE_GEN_INDEX, row, scores, nullptr, nullptr, CUDNN_DATA_FLOAT, 2);
  pointwise(CUDNN_POINTWISE_GEN_INDEX, column, scores, nullptr, nullptr, CUDNN_DATA_FLOAT, 3);
  pointwise(CUDNN_POINTWISE_CMP_GE, seen, row, &column, nullptr, CUDNN_DATA_BOOLEAN);
  pointwise(CUDNN_POINTWISE_BINARY_SELECT, masked, scores, &never, &seen);
  return masked;
}

Result<Descriptor> GraphBuilder::finish(cudnnHandle_t handle) {
  FS_TRY(status_);
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const Descriptor& operation : operations_) raw.push_back(operation.raw());
  Descriptor graph(library_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw).finalize();
  FS_TRY(graph.status());
  return graph;
}

}  // namespace fastserve::gpu
