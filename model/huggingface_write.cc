// Writing a bundle as a directory that transformers loads.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "model/huggingface.h"
#include "model/parameters.h"
#include "model/safetensors.h"

namespace fastserve {
namespace {

/// A directory under a hidden name that becomes `path` on publish(), and vanishes otherwise.
class PendingDirectory {
 public:
  static Result<PendingDirectory> create(Path path) {
    path = path.lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    std::error_code error;
    if (std::filesystem::exists(std::filesystem::symlink_status(path, error)))
      return Error{ErrorCode::kAlreadyExists, "is there already", path.string(),
                   "give another name, or move it away"};
    const Path pending = path.parent_path() / fmt::format(".{}.tmp", path.filename().string());
    std::filesystem::remove_all(pending, error);  // of a writer that was killed
    FS_TRY(make_directories(pending));
    return PendingDirectory(std::move(path), pending);
  }
  PendingDirectory(PendingDirectory&& other) noexcept
      : path_(std::move(other.path_)), pending_(std::exchange(other.pending_, Path())) {}
  ~PendingDirectory() {
    std::error_code error;
    if (!pending_.empty()) std::filesystem::remove_all(pending_, error);
  }
  const Path& path() const { return pending_; }
  Status publish() {
    FS_TRY(sync_directory(pending_));
    std::error_code error;
    std::filesystem::rename(pending_, path_, error);
    if (error) {
      errno = error.value();
      return errno_error("cannot rename into", path_);
    }
    pending_.clear();
    return sync_directory(path_.parent_path());
  }

 private:
  PendingDirectory(Path path, Path pending)
      : path_(std::move(path)), pending_(std::move(pending)) {}
  Path path_, pending_;
};

/// Some tensors of another source.
class Selection final : public TensorSource {
 public:
  Selection(const TensorSource& source, std::vector<std::string> names)
      : source_(source), names_(std::move(names)) {}
  std::vector<std::string> names() const override { return names_; }
  bool contains(std::string_view name) const override {
    return std::binary_search(names_.begin(), names_.end(), name);
  }
  Result<TensorView> tensor(std::string_view name) const override { return source_.tensor(name); }
  std::string where() const override { return source_.where(); }

 private:
  const TensorSource& source_;
  std::vector<std::string> names_;
};

/// Names cut into shards of at most `limit` bytes each (one tensor at least).
Result<std::vector<std::vector<std::string>>> plan_shards(const TensorSource& tensors,
                                                          uint64_t limit, uint64_t& total) {
  std::vector<std::vector<std::string>> shards(1);
  uint64_t held = 0;
  total = 0;
  for (std::string& name : tensors.names()) {
    FS_ASSIGN(const TensorView view, tensors.tensor(name));
    if (held + view.bytes.size() > limit && !shards.back().empty()) {
      shards.emplace_back();
      held = 0;
    }
    held += view.bytes.size();
    total += view.bytes.size();
    shards.back().push_back(std::move(name));
  }
  return shards;
}

Status write_weights(const Path& directory, const TensorSource& tensors, uint64_t shard_bytes) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  uint64_t total = 0;
  FS_ASSIGN(const auto shards, plan_shards(tensors, shard_bytes, total));
  FS_TRY(require_free_space(directory, total));
  if (shards.size() == 1)
    return write_safetensors(directory / "model.safetensors", tensors, metadata);
  Json::Object weight_map;
  for (size_t i = 0; i < shards.size(); i++) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    FS_TRY(write_safetensors(directory / file, Selection(tensors, shards[i]), metadata));
    for (const std::string& name : shards[i]) weight_map.emplace_back(name, file);
  }
  const Json index = Json::object(
      {{"metadata", Json::object({{"total_size", total}})}, {"weight_map", std::move(weight_map)}});
  return write_file_atomically(directory / "model.safetensors.index.json", index.dump(2) + "\n");
}

Tensor dequantised(const QuantisedMatrix& matrix, bool transposed) {
  const size_t rows = static_cast<size_t>(matrix.rows), cols = static_cast<size_t>(matrix.cols);
  Tensor out{DType::kBF16, {matrix.rows, matrix.cols}, std::vector<std::byte>(2 * rows * cols)};
  if (transposed) std::swap(out.shape[0], out.shape[1]);
  auto* values = reinterpret_cast<BFloat16*>(out.bytes.data());
  std::vector<float> row(cols);
  for (size_t r = 0; r < rows; r++) {
    matrix.dequantise_row(static_cast<int>(r), row);
    for (size_t c = 0; c < cols; c++)
      values[transposed ? c * rows + r : r * cols + c] = to_bfloat16(row[c]);
  }
  return out;
}

/// Floats of the source as they are, and quantised matrices as bf16.
class DequantisedTensors final : public TensorSource {
 public:
  static Result<std::unique_ptr<DequantisedTensors>> create(const ModelBundle& bundle) {
    FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
    FS_ASSIGN(const auto formats, bundle_weight_formats(bundle));
    std::unique_ptr<DequantisedTensors> out(new DequantisedTensors(*bundle.tensors));
    const ParameterLayout layout(config);
    for (const auto& [name, format] : formats) {
      const auto& all = layout.parameters();
      const auto parameter =
          std::find_if(all.begin(), all.end(),
                       [&wanted = name](const Parameter& p) { return p.name == wanted; });
      const bool in_layout = parameter != all.end();
      FS_ASSIGN(const QuantisedMatrix matrix,
                read_quantised(*bundle.tensors, name, format,
                               in_layout ? parameter->cols : config.hidden_size));
      out->floats_.add(name, dequantised(matrix, in_layout && parameter->transposed));
    }
    for (std::string& name : bundle.tensors->names())
      if (!name.ends_with(".codes") && !name.ends_with(".scales"))
        out->names_.insert(std::move(name));
    for (std::string& name : out->floats_.names()) out->names_.insert(std::move(name));
    return out;
  }
  std::vector<std::string> names() const override { return {names_.begin(), names_.end()}; }
  bool contains(std::string_view name) const override { return names_.contains(name); }
  Result<TensorView> tensor(std::string_view name) const override {
    return floats_.contains(name) ? floats_.tensor(name) : source_.tensor(name);
  }
  std::string where() const override { return source_.where(); }

 private:
  explicit DequantisedTensors(const TensorSource& source) : source_(source) {}
  const TensorSource& source_;
  TensorMap floats_;
  std::set<std::string, std::less<>> names_;
};

/// The name torch gives the widest type among the weights: loading in it changes no number.
Result<std::string> torch_dtype(const TensorSource& tensors) {
  bool bf16 = false, f16 = false, f32 = false;
  for (const std::string& name : tensors.names()) {
    FS_ASSIGN(const TensorView view, tensors.tensor(name));
    bf16 |= view.dtype == DType::kBF16;
    f16 |= view.dtype == DType::kF16;
    f32 |= view.dtype == DType::kF32;
  }
  if (f32 || bf16 == f16) return std::string("float32");
  return std::string(bf16 ? "bfloat16" : "float16");
}

Result<std::string> config_text(const ModelBundle& bundle, const TensorSource& written,
                                bool plain) {
  FS_ASSIGN(Json json, Json::parse(bundle.documents.at("config.json"), "config.json"));
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  FS_ASSIGN(const auto formats, bundle_weight_formats(bundle));
  if (plain && config.tied_embeddings && formats.contains("lm_head.weight"))
    json.set("tie_word_embeddings", false);
  if (const Json* own = json.find_set("fastserve"); own != nullptr && plain) {
    Json rest{Json::Object{}};
    for (const auto& [key, value] : own->as_object())
      if (key != "weights") rest.set(key, value);
    json.set("fastserve", std::move(rest));
  }
  FS_ASSIGN(const std::string dtype, torch_dtype(written));
  json.set(json.find("dtype") != nullptr ? "dtype" : "torch_dtype", dtype);
  return json.dump(2) + "\n";
}

}  // namespace

Status write_model_directory(const Path& directory, const ModelBundle& bundle, bool keep_quantised,
                             uint64_t shard_bytes) {
  FS_TRY(check_bundle(bundle));
  FS_ASSIGN(PendingDirectory pending, PendingDirectory::create(directory));
  FS_ASSIGN(const auto formats, bundle_weight_formats(bundle));
  const bool plain = !keep_quantised && !formats.empty();
  std::unique_ptr<DequantisedTensors> floats;
  if (plain) {
    FS_ASSIGN(floats, DequantisedTensors::create(bundle));
  }
  const TensorSource& tensors = plain ? *floats : *bundle.tensors;
  for (const auto& [name, text] : bundle.documents) {
    if (name == "config.json") continue;
    if (name.empty() || name.front() == '.' || name.find('/') != name.npos)
      return Error{ErrorCode::kInvalidArgument, fmt::format("\"{}\" is not a file name", name),
                   "documents", ""};
    FS_TRY(write_file_atomically(pending.path() / name, text));
  }
  FS_ASSIGN(const std::string config, config_text(bundle, tensors, plain));
  FS_TRY(write_file_atomically(pending.path() / "config.json", config));
  FS_TRY(write_weights(pending.path(), tensors, shard_bytes));
  return pending.publish();
}

}  // namespace fastserve
