// What the stand-in for cuDNN keeps of descriptors, and how it evaluates their graph.
#pragma once

#include <cudnn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "gpu/runtime.h"

namespace stub_cudnn {

struct Object;
using Handle = std::shared_ptr<Object>;

/// A descriptor: attributes as bytes, and the descriptors that it names.
struct Object {
  cudnnBackendDescriptorType_t type;
  std::map<int, std::vector<char>> values;
  std::map<int, std::vector<Handle>> parts;

  template <class T>
  std::vector<T> all(int name) const {
    const std::vector<char>& bytes = values.at(name);
    std::vector<T> out(bytes.size() / sizeof(T));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  template <class T>
  T first(int name) const {
    T value;
    std::memcpy(&value, values.at(name).data(), sizeof value);
    return value;
  }
  int64_t number(int name) const { return first<int64_t>(name); }
  bool flag(int name) const { return values.count(name) != 0 && first<bool>(name); }
  void put(int name, int64_t value) {
    const auto* const bytes = reinterpret_cast<const char*>(&value);
    values[name].assign(bytes, bytes + sizeof value);
  }
};

/// A tensor's numbers, last dimension fastest, whatever its strides.
struct Numbers {
  std::vector<int64_t> dimensions, strides;
  std::vector<float> data;

  /// Calls body(index of data, offset by `steps`) for every element.
  template <class Body>
  void each(const std::vector<int64_t>& steps, const Body& body) const {
    std::vector<int64_t> at(dimensions.size(), 0);
    for (size_t i = 0; i < data.size(); i++) {
      int64_t offset = 0;
      for (size_t d = 0; d < at.size(); d++) offset += at[d] * steps[d];
      body(i, offset);
      for (size_t d = at.size(); d-- > 0 && ++at[d] == dimensions[d];) at[d] = 0;
    }
  }
};

/// One execution. Operations in the order in which they were written down; tensors in memory are
/// read when they are first used and written when they are made; between them numbers are rounded
/// to the tensor's type.
class Evaluation {
 public:
  explicit Evaluation(fastserve::gpu::Runtime& memory) : memory_(memory) {}
  void give(int64_t name, void* pointer) { pointers_[name] = pointer; }
  /// False where an operand was given that no tensor has, or an operation is not known.
  bool all(const std::vector<Handle>& operations);

 private:
  const Numbers& read(const Handle& tensor);
  void write(const Handle& tensor, Numbers numbers);
  bool run(const Object& operation);
  bool pointwise(const Object& operation);

  fastserve::gpu::Runtime& memory_;
  std::map<int64_t, void*> pointers_;
  std::map<int64_t, Numbers> known_;
  std::map<int64_t, bool> used_;
};

}  // namespace stub_cudnn
