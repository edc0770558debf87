// The safetensors format: 8 bytes of header length, a JSON header, tensor bytes.
// Source: github.com/huggingface/safetensors, README "Format".
#pragma once

#include <map>
#include <optional>

#include "base/file.h"
#include "model/tensor.h"

namespace fastserve {

/// A mapped .safetensors file. Refuses (kCorrupt, naming the file, the tensor and the offset) a
/// header that is cut off, over 100 MB, not JSON, with a key twice; offsets that are negative,
/// overlap, leave holes or pass the end; a shape that contradicts its bytes; an unknown dtype.
class SafetensorsFile final : public TensorSource {
 public:
  static Result<std::shared_ptr<SafetensorsFile>> open(const Path& path);
  /// The same checks on bytes in memory, which must outlive the result.
  static Result<std::shared_ptr<SafetensorsFile>> parse(std::span<const std::byte> bytes, std::string where);

  std::vector<std::string> names() const override;
  bool contains(std::string_view name) const override;
  Result<TensorView> tensor(std::string_view name) const override;
  std::string where() const override { return where_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;
  std::string where_;
  std::optional<MappedFile> file_;
  std::map<std::string, TensorView, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A directory's model.safetensors, or the shards of its model.safetensors.index.json, as one source.
Result<std::shared_ptr<const TensorSource>> open_safetensors_directory(const Path& directory);

/// Writes one complete file or none (write, sync, rename). Tensors in the order of names().
Status write_safetensors(const Path& path, const TensorSource& tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace fastserve
