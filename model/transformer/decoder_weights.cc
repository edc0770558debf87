#include "model/transformer/decoder_weights.h"

#include <algorithm>
#include <string>

#include "model/huggingface.h"

namespace fastserve {
namespace {

constexpr const char* kSeparateHead = "lm_head.weight";

size_t padded(const Block& block) { return (block.size() + 15) / 16 * 16; }

}  // namespace

/// Reads a bundle's parameters and hands them to the device.
class DecoderLoad::Loader {
 public:
  Loader(Device& device, DecodeOps& ops, const ModelBundle& bundle, const ModelConfig& config,
         std::map<std::string, WeightFormat> formats, WeightFormat float_format)
      : device_(device),
        ops_(ops),
        tensors_(bundle.tensors),
        source_(*tensors_),
        config_(config),
        layout_(config),
        formats_(std::move(formats)),
        float_format_(float_format) {}

  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;
  /// The device may still read the tensors.
  ~Loader() {
    if (!finished_) ops_.loaded();
  }

  Status tables(DecoderWeights& weights);
  Status layer(DecoderWeights& weights, int l);
  Status head(DecoderWeights& weights);
  /// Nothing more comes. Errors: kCorrupt when the device found a number out of range.
  Status finish();
  const ParameterLayout& layout() const { return layout_; }

 private:
  Result<std::unique_ptr<DecodeMatrix>> matrix(const Block& block, bool swiglu);
  Result<std::unique_ptr<DecodeMatrix>> head_matrix();
  /// The rows as they are stored; quantised ones become half precision.
  Status token_table(DecoderWeights& weights);
  Status position_table(DecoderWeights& weights);
  /// Puts a vector behind those before it; copy_vectors() copies those since the last time.
  Result<const float*> vector(DecoderWeights& weights, const Block& block);
  Status copy_vectors(DecoderWeights& weights);

  size_t vector_floats() const;
  /// Of all matrices, about.
  size_t matrix_bytes() const;
  std::span<const Parameter> parts(const Block& block) const;
  Result<WeightFormat> common_format(std::span<const Parameter> parts) const;
  Result<std::unique_ptr<DecodeMatrix>> quantised(std::span<const Parameter> parts, int in,
                                                  WeightFormat format, bool swiglu);
  Result<std::unique_ptr<DecodeMatrix>> stored(std::span<const Parameter> parts, int in,
                                               WeightFormat format, bool swiglu);
  Result<std::unique_ptr<DecodeMatrix>> stored_quantised(std::span<const Parameter> parts, int in,
                                                         WeightFormat format, bool swiglu);
  Result<StoredQuantised> find(const Parameter& parameter, WeightFormat format) const;
  Status copy(void* to, std::span<const std::byte> from);

  Device& device_;
  DecodeOps& ops_;
  const std::shared_ptr<const TensorSource> tensors_;
  const TensorSource& source_;
  const ModelConfig config_;
  const ParameterLayout layout_;
  const std::map<std::string, WeightFormat> formats_;
  const WeightFormat float_format_;
  std::vector<float> floats_, vectors_;
  size_t vectors_copied_ = 0;  ///< floats before those in vectors_
  bool finished_ = false;
  /// Quantised matrices that were given as they are stored.
  std::vector<std::pair<std::string, WeightFormat>> unread_;
};

std::span<const Parameter> DecoderLoad::Loader::parts(const Block& block) const {
  const auto& all = layout_.parameters();
  const auto from = std::lower_bound(all.begin(), all.end(), block.offset,
                                     [](const Parameter& p, size_t at) { return p.offset < at; });
  auto to = from;
  while (to != all.end() && to->offset < block.offset + block.size()) ++to;
  return {from, to};
}

Result<WeightFormat> DecoderLoad::Loader::common_format(std::span<const Parameter> parts) const {
  const auto format = [&](const Parameter& p) {
    const auto found = formats_.find(p.name);
    return found == formats_.end() ? float_format_ : found->second;
  };
  for (const Parameter& p : parts)
    if (format(p) != format(parts.front()))
      return Error{ErrorCode::kUnsupported,
                   "\"" + p.name + "\" is " + weight_format_name(format(p)) + " and \"" +
                       parts.front().name + "\" is " + weight_format_name(format(parts.front())) +
                       ", but they are multiplied as one matrix",
                   source_.where(), "compress both in the same format"};
  return format(parts.front());
}

Result<StoredQuantised> DecoderLoad::Loader::find(const Parameter& p, WeightFormat format) const {
  FS_ASSIGN(StoredQuantised m, find_quantised(source_, p.name, format, p.cols));
  if (m.rows != p.rows || m.cols != p.cols)
    return Error{ErrorCode::kCorrupt,
                 "\"" + p.name + "\" is [" + std::to_string(m.rows) + ", " +
                     std::to_string(m.cols) + "], but config.json asks for [" +
                     std::to_string(p.rows) + ", " + std::to_string(p.cols) + "]",
                 source_.where(), "compress the model again"};
  return m;
}

Result<std::unique_ptr<DecodeMatrix>> DecoderLoad::Loader::quantised(
    std::span<const Parameter> parts, int in, WeightFormat format, bool swiglu) {
  if (ops_.takes_stored()) {
    FS_ASSIGN(auto matrix, stored_quantised(parts, in, format, swiglu));
    if (matrix) return matrix;
  }
  std::vector<QuantisedMatrix> matrices;
  for (const Parameter& p : parts) {
    FS_TRY(find(p, format));
    FS_ASSIGN(QuantisedMatrix m, read_quantised(source_, p.name, format, p.cols));
    matrices.push_back(std::move(m));
  }
  std::vector<DecodeMatrixSource::Part> sources;
  for (const QuantisedMatrix& m : matrices) sources.push_back({{}, &m, m.rows});
  return ops_.make_matrix({sources, in, format, swiglu});
}

/// Codes and scales as they lie in their file; null when the scales are of several types.
Result<std::unique_ptr<DecodeMatrix>> DecoderLoad::Loader::stored_quantised(
    std::span<const Parameter> parts, int in, WeightFormat format, bool swiglu) {
  std::vector<DecodeMatrixSource::Part> sources;
  for (const Parameter& p : parts) {
    FS_ASSIGN(const StoredQuantised m, find(p, format));
    if (!sources.empty() && m.scales.dtype != sources.front().type)
      return std::unique_ptr<DecodeMatrix>();
    sources.push_back({{}, nullptr, m.rows, m.codes.bytes, m.scales.dtype, m.scales.bytes});
  }
  for (const Parameter& p : parts) unread_.emplace_back(p.name, format);
  return ops_.make_matrix({sources, in, format, swiglu});
}

/// From the bytes as they lie in their file; null when these are of several types or transposed.
Result<std::unique_ptr<DecodeMatrix>> DecoderLoad::Loader::stored(std::span<const Parameter> parts,
                                                                  int in, WeightFormat format,
                                                                  bool swiglu) {
  std::vector<DecodeMatrixSource::Part> sources;
  for (const Parameter& p : parts) {
    FS_ASSIGN(const TensorView view, find_parameter(p, source_));
    if (p.transposed || (!sources.empty() && view.dtype != sources.front().type))
      return std::unique_ptr<DecodeMatrix>();
    sources.push_back({{}, nullptr, p.rows, view.bytes, view.dtype});
  }
  return ops_.make_matrix({sources, in, format, swiglu});
}

Result<std::unique_ptr<DecodeMatrix>> DecoderLoad::Loader::matrix(const Block& block, bool swiglu) {
  const std::span<const Parameter> members = parts(block);
  FS_ASSIGN(const WeightFormat format, common_format(members));
  if (is_quantised(format)) return quantised(members, block.cols, format, swiglu);
  if (ops_.takes_stored()) {
    FS_ASSIGN(auto matrix, stored(members, block.cols, format, swiglu));
    if (matrix) return matrix;
  }
  floats_.resize(block.size());
  std::vector<DecodeMatrixSource::Part> sources;
  for (const Parameter& p : members) {
    const std::span<float> to(floats_.data() + (p.offset - block.offset), p.size());
    FS_ASSIGN(const TensorView view, find_parameter(p, source_));
    read_parameter(p, view, to);
    sources.push_back({to, nullptr, p.rows});
  }
  return ops_.make_matrix({sources, block.cols, format, swiglu});
}

Result<std::unique_ptr<DecodeMatrix>> DecoderLoad::Loader::head_matrix() {
  if (const auto own = formats_.find(kSeparateHead);
      own != formats_.end() && config_.tied_embeddings) {
    Parameter p;
    p.name = kSeparateHead;
    p.rows = config_.vocab_size;
    p.cols = config_.hidden_size;
    return quantised({&p, 1}, p.cols, own->second, false);
  }
  return matrix(layout_.head(), false);
}

Status DecoderLoad::Loader::token_table(DecoderWeights& weights) {
  const Parameter& p = parts(layout_.token_embedding()).front();
  if (const auto found = formats_.find(p.name); found != formats_.end()) {
    FS_ASSIGN(const QuantisedMatrix m, read_quantised(source_, p.name, found->second, p.cols));
    FS_ASSIGN(weights.token_table, device_.allocate(p.size() * sizeof(Float16)));
    weights.token_type = DType::kF16;
    const size_t cols = static_cast<size_t>(p.cols);
    std::vector<float> row(cols);
    std::vector<Float16> halves(cols);
    for (int r = 0; r < p.rows; ++r) {
      m.dequantise_row(r, row);
      std::transform(row.begin(), row.end(), halves.begin(), to_float16);
      device_.copy_in(
          static_cast<Float16*>(weights.token_table->data()) + static_cast<size_t>(r) * cols,
          halves.data(), cols * sizeof(Float16));
    }
    return {};
  }
  FS_ASSIGN(const TensorView view, find_parameter(p, source_));
  weights.token_type = view.dtype;
  FS_ASSIGN(weights.token_table, device_.allocate(view.bytes.size()));
  return copy(weights.token_table->data(), view.bytes);
}

Status DecoderLoad::Loader::copy(void* to, std::span<const std::byte> from) {
  if (ops_.takes_stored()) return ops_.load(to, from);
  device_.copy_in(to, from.data(), from.size());
  return {};
}

Status DecoderLoad::Loader::position_table(DecoderWeights& weights) {
  const Block& block = layout_.position_embedding();
  if (block.empty()) return {};
  const Parameter& p = parts(block).front();
  FS_ASSIGN(const TensorView view, find_parameter(p, source_));
  floats_.resize(p.size());
  read_parameter(p, view, floats_);
  FS_ASSIGN(weights.position_table, device_.allocate(p.size() * sizeof(float)));
  return copy(weights.position_table->data(), std::as_bytes(std::span(floats_)));
}

size_t DecoderLoad::Loader::vector_floats() const {
  size_t floats = padded(layout_.final_norm()) + padded(layout_.final_norm_bias());
  for (int l = 0; l < config_.layers; ++l) {
    const LayerBlocks& b = layout_.layer(l);
    for (const Block* v : {&b.norm1, &b.norm1_bias, &b.qkv_bias, &b.q_norm, &b.k_norm,
                           &b.output_bias, &b.norm2, &b.norm2_bias, &b.up_bias, &b.down_bias})
      floats += padded(*v);
  }
  return floats;
}

Result<const float*> DecoderLoad::Loader::vector(DecoderWeights& weights, const Block& block) {
  if (block.empty()) return static_cast<const float*>(nullptr);
  const size_t at = vectors_.size();
  vectors_.resize(at + padded(block));
  for (const Parameter& p : parts(block)) {
    FS_ASSIGN(const TensorView view, find_parameter(p, source_));
    read_parameter(p, view, {vectors_.data() + at + (p.offset - block.offset), p.size()});
  }
  return static_cast<const float*>(weights.vectors->data()) + vectors_copied_ + at;
}

Status DecoderLoad::Loader::copy_vectors(DecoderWeights& weights) {
  FS_TRY(copy(static_cast<float*>(weights.vectors->data()) + vectors_copied_,
              std::as_bytes(std::span(vectors_))));
  vectors_copied_ += vectors_.size();
  vectors_.clear();
  return {};
}

size_t DecoderLoad::Loader::matrix_bytes() const {
  size_t bytes = 0;
  const auto add = [&](const Block& block) {
    for (const Parameter& p : parts(block)) {
      const auto found = formats_.find(p.name);
      const WeightFormat format = found == formats_.end() ? float_format_ : found->second;
      bytes += p.size() * static_cast<size_t>(format_bits(format)) / 8;
      if (const int group = format_group(format); group > 0)
        bytes += p.size() / static_cast<size_t>(group) * sizeof(Float16);
    }
  };
  for (int l = 0; l < config_.layers; ++l) {
    const LayerBlocks& b = layout_.layer(l);
    for (const Block* block : {&b.qkv, &b.output, &b.up, &b.down}) add(*block);
  }
  add(layout_.head());
  return bytes;
}

Status DecoderLoad::Loader::tables(DecoderWeights& weights) {
  const size_t vector_bytes = vector_floats() * sizeof(float);
  FS_ASSIGN(weights.vectors, device_.allocate(vector_bytes));
  weights.bytes_per_token += vector_bytes;
  ops_.expect(matrix_bytes());
  FS_TRY(token_table(weights));
  return position_table(weights);
}

Status DecoderLoad::Loader::layer(DecoderWeights& weights, int l) {
  const LayerBlocks& blocks = layout_.layer(l);
  DecoderLayer layer;
  FS_ASSIGN(layer.norm1, vector(weights, blocks.norm1));
  FS_ASSIGN(layer.norm1_bias, vector(weights, blocks.norm1_bias));
  FS_ASSIGN(layer.qkv, matrix(blocks.qkv, false));
  FS_ASSIGN(layer.qkv_bias, vector(weights, blocks.qkv_bias));
  FS_ASSIGN(layer.q_norm, vector(weights, blocks.q_norm));
  FS_ASSIGN(layer.k_norm, vector(weights, blocks.k_norm));
  FS_ASSIGN(layer.output, matrix(blocks.output, false));
  FS_ASSIGN(layer.output_bias, vector(weights, blocks.output_bias));
  FS_ASSIGN(layer.norm2, vector(weights, blocks.norm2));
  FS_ASSIGN(layer.norm2_bias, vector(weights, blocks.norm2_bias));
  FS_ASSIGN(layer.up, matrix(blocks.up, config_.mlp == MlpKind::kSwiGlu));
  FS_ASSIGN(layer.up_bias, vector(weights, blocks.up_bias));
  FS_ASSIGN(layer.down, matrix(blocks.down, false));
  FS_ASSIGN(layer.down_bias, vector(weights, blocks.down_bias));
  FS_TRY(copy_vectors(weights));
  for (const auto* m : {&layer.qkv, &layer.output, &layer.up, &layer.down})
    weights.bytes_per_token += (*m)->bytes();
  weights.layers.push_back(std::move(layer));
  return {};
}

Status DecoderLoad::Loader::head(DecoderWeights& weights) {
  FS_ASSIGN(weights.final_norm, vector(weights, layout_.final_norm()));
  FS_ASSIGN(weights.final_norm_bias, vector(weights, layout_.final_norm_bias()));
  FS_TRY(copy_vectors(weights));
  FS_ASSIGN(weights.head, head_matrix());
  weights.bytes_per_token += weights.head->bytes();
  return {};
}

Status DecoderLoad::Loader::finish() {
  finished_ = true;
  const std::optional<StoredFault> fault = ops_.loaded();
  if (!fault) return device_.sync();
  const auto& [name, format] = unread_.at(fault->part);
  return fault->in_codes ? code_out_of_range(source_, name, format)
                         : scale_not_finite(source_, name);
}

Result<std::unique_ptr<DecoderLoad>> DecoderLoad::begin(Device& device, DecodeOps& ops,
                                                        const ModelBundle& bundle,
                                                        const ModelConfig& config,
                                                        WeightFormat float_format, Watch watch) {
  FS_ASSIGN(auto formats, bundle_weight_formats(bundle));
  auto loader =
      std::make_unique<Loader>(device, ops, bundle, config, std::move(formats), float_format);
  return std::unique_ptr<DecoderLoad>(new DecoderLoad(std::move(loader), config, std::move(watch)));
}

DecoderLoad::DecoderLoad(std::unique_ptr<Loader> loader, const ModelConfig& config, Watch watch)
    : loader_(std::move(loader)), layers_(config.layers), watch_(std::move(watch)) {}

DecoderLoad::~DecoderLoad() = default;

Status DecoderLoad::take(DecoderWeights& weights, size_t parts) {
  while (failure_.ok() && taken_ < parts) {
    FS_TRY(keep(take_next(weights)));
    ++taken_;
    if (watch_.progress) report();
  }
  return failure_;
}

Status DecoderLoad::keep(const Status& told) {
  if (failure_.ok()) failure_ = told;
  return failure_;
}

Status DecoderLoad::take_next(DecoderWeights& weights) {
  if (watch_.stopped && watch_.stopped())
    return Error{ErrorCode::kCancelled, "stopped while its weights were being loaded", "", ""};
  if (taken_ < kTables) return loader_->tables(weights);
  const int layer = static_cast<int>(taken_ - kTables);
  if (layer < layers_) return loader_->layer(weights, layer);
  return layer == layers_ ? loader_->head(weights) : loader_->finish();
}

/// Of layers that are there, and of all.
void DecoderLoad::report() const {
  const ParameterLayout& layout = loader_->layout();
  const size_t total = layout.elements();
  size_t done = total;
  if (taken_ < head()) {
    if (taken_ == kTables) return;
    const Block& last = layout.layer(static_cast<int>(taken_ - kTables) - 1).down;
    done = std::min(total, last.offset + last.size());
  } else if (taken_ < parts()) {
    return;
  }
  watch_.progress(static_cast<double>(done) / static_cast<double>(total));
}

}  // namespace fastserve
