// Directories of safetensors files, read as one source.
#include <fmt/format.h>

#include "base/json.h"
#include "model/safetensors.h"

namespace fastserve {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

class ShardedTensors final : public TensorSource {
 public:
  ShardedTensors(std::string where,
                 std::map<std::string, std::shared_ptr<SafetensorsFile>, std::less<>> tensors)
      : where_(std::move(where)), tensors_(std::move(tensors)) {}

  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, file] : tensors_) out.push_back(name);
    return out;
  }
  bool contains(std::string_view name) const override {
    return tensors_.find(name) != tensors_.end();
  }
  Result<TensorView> tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return found->second->tensor(name);
    return Error{ErrorCode::kNotFound, fmt::format("there is no tensor \"{}\"", name), where_, ""};
  }
  std::string where() const override { return where_; }

 private:
  std::string where_;
  std::map<std::string, std::shared_ptr<SafetensorsFile>, std::less<>> tensors_;
};

Error bad_index(const Path& index, std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), index.string(),
          "download the directory again, with all its shards"};
}

/// Shards lie beside their index: a name that leaves the directory is refused.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find('/') == name.npos &&
         name.find('\0') == name.npos;
}

Result<std::shared_ptr<const TensorSource>> open_shards(const Path& directory, const Path& index) {
  FS_ASSIGN(const std::string text, read_file(index, uint64_t{256} << 20));
  FS_ASSIGN(const Json json, Json::parse(text, index.string()));
  const Json* weight_map = json.find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->as_object().empty())
    return bad_index(index, "has no weight_map from tensors to shards");
  std::map<std::string, std::shared_ptr<SafetensorsFile>> shards;
  std::map<std::string, std::shared_ptr<SafetensorsFile>, std::less<>> tensors;
  for (const auto& [tensor, shard_json] : weight_map->as_object()) {
    if (!shard_json.is_string() || !is_plain_name(shard_json.as_string()))
      return bad_index(index, fmt::format("tensor \"{}\" is in {}, which is not a file name",
                                          tensor, shard_json.dump()));
    const std::string& shard = shard_json.as_string();
    std::shared_ptr<SafetensorsFile>& file = shards[shard];
    if (file == nullptr) {
      Result<std::shared_ptr<SafetensorsFile>> opened = SafetensorsFile::open(directory / shard);
      if (!opened.ok() && opened.error().code == ErrorCode::kNotFound)
        return bad_index(index, fmt::format("names the shard {}, which is not there", shard));
      if (!opened.ok()) return std::move(opened).error();
      file = *opened;
    }
    if (!file->contains(tensor))
      return bad_index(
          index, fmt::format("says that tensor \"{}\" is in {}, which lacks it", tensor, shard));
    tensors.emplace(tensor, file);
  }
  return std::shared_ptr<const TensorSource>(
      std::make_shared<ShardedTensors>(directory.string(), std::move(tensors)));
}

}  // namespace

Result<std::shared_ptr<const TensorSource>> open_safetensors_directory(const Path& directory) {
  std::error_code error;
  if (std::filesystem::exists(directory / kSingle, error)) {
    FS_ASSIGN(std::shared_ptr<SafetensorsFile> file, SafetensorsFile::open(directory / kSingle));
    return std::shared_ptr<const TensorSource>(std::move(file));
  }
  if (std::filesystem::exists(directory / kIndex, error))
    return open_shards(directory, directory / kIndex);
  const bool pickled = std::filesystem::exists(directory / "pytorch_model.bin", error) ||
                       std::filesystem::exists(directory / "pytorch_model.bin.index.json", error);
  return Error{ErrorCode::kNotFound, fmt::format("holds neither {} nor {}", kSingle, kIndex),
               directory.string(),
               pickled
                   ? "its weights are a pickle, which could run code: convert them to safetensors"
                   : "give the directory of a Hugging Face model"};
}

}  // namespace fastserve
