// Named tensors in host memory, and where they come from.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/result.h"

namespace fastserve {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

size_t dtype_bytes(DType dtype);
/// safetensors' spelling: "F32", "BF16", ...
const char* dtype_name(DType dtype);
Result<DType> parse_dtype(std::string_view name);

/// Row-major and contiguous; does not own its bytes.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;

  int64_t elements() const;
  /// Elements from..from+out.size() as float. Floating and integer types; requires the range to fit.
  void read_floats(int64_t from, std::span<float> out) const;
  std::vector<float> to_floats() const;
  std::string shape_text() const;  ///< "[4, 64]"
};

/// Owns its bytes.
struct Tensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
  TensorView view() const { return {dtype, shape, bytes}; }
  static Tensor from_floats(std::vector<int64_t> shape, std::span<const float> values,
                            DType dtype = DType::kF32);
};

/// A set of named tensors that can be read more than once: a file, some shards, a stored model.
/// Threads: const calls from any thread. Views live as long as the source.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual std::vector<std::string> names() const = 0;  ///< sorted
  virtual bool contains(std::string_view name) const = 0;
  /// kNotFound names the tensor and the source; kCorrupt when a checksum fails.
  virtual Result<TensorView> tensor(std::string_view name) const = 0;
  /// As tensor(), but its bytes may be missing: none are read where that can be avoided.
  virtual Result<TensorView> glance(std::string_view name) const { return tensor(name); }
  /// The same tensors, to be read and checked anew, since what they are stored in may have changed.
  /// Null where it cannot have.
  virtual std::shared_ptr<const TensorSource> anew() const { return nullptr; }
  virtual std::string where() const = 0;  ///< for errors
};

/// Tensors held in memory.
class TensorMap final : public TensorSource {
 public:
  explicit TensorMap(std::string where = "memory") : where_(std::move(where)) {}
  void add(std::string name, Tensor tensor) { tensors_.insert_or_assign(std::move(name), std::move(tensor)); }
  std::vector<std::string> names() const override;
  bool contains(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  Result<TensorView> tensor(std::string_view name) const override;
  std::string where() const override { return where_; }

 private:
  std::string where_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

/// A whole model as it is stored, published, imported and exported: small text files by name
/// (config.json, tokenizer.json, generation_config.json, chat_template.jinja, ...) and tensors by
/// their Hugging Face names. Quantised matrices are spelled as in model/quantised.h.
struct ModelBundle {
  std::map<std::string, std::string> documents;
  std::shared_ptr<const TensorSource> tensors;
};

}  // namespace fastserve
