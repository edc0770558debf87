#include "model/transformer/parity_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastserve {
namespace {

/// Another order of summation lands within a few times the recorded error.
constexpr double kTimesRecorded = 4;
/// A record beyond this tells of a broken reference, not of a model that rounds badly: following it
/// would let mistakes through.
constexpr double kTimesSuggested = 10;

Result<Json> read_reference_json(const Path& path) {
  FS_ASSIGN(const std::string text, read_file(path, uint64_t{64} << 20));
  return Json::parse(text, path.string());
}

std::string text_of(const std::vector<int64_t>& shape) {
  TensorView view;
  view.shape = shape;
  return view.shape_text();
}

}  // namespace

Result<ParityReference> ParityReference::open(const Path& directory) {
  ParityReference reference;
  FS_ASSIGN(reference.json_, read_reference_json(directory / "reference.json"));
  Path tensors = directory / "reference.safetensors";
  FS_ASSIGN(const std::string elsewhere, reference.json_.string_or("reference", ""));
  if (!elsewhere.empty()) {
    tensors = directory / elsewhere;
    FS_ASSIGN(reference.json_, read_reference_json(tensors.parent_path() / "reference.json"));
  }
  reference.where_ = tensors.string();
  FS_ASSIGN(reference.tensors_, SafetensorsFile::open(tensors));
  return reference;
}

Result<TensorView> ParityReference::checked(std::string_view name,
                                            const std::vector<int64_t>& shape) const {
  FS_ASSIGN(const TensorView view, tensors_->tensor(name));
  bool same = view.shape.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = shape[i] == -1 || shape[i] == view.shape[i];
  if (!same)
    return Error{ErrorCode::kCorrupt,
                 "the tensor \"" + std::string(name) + "\" has the shape " + view.shape_text() +
                     ", and " + text_of(shape) + " was expected (-1: any)",
                 where_, "the reference does not belong to this model"};
  return view;
}

Result<std::vector<double>> ParityReference::doubles(std::string_view name,
                                                     std::vector<int64_t> shape) const {
  FS_ASSIGN(const TensorView view, checked(name, shape));
  if (view.dtype == DType::kF64) {
    std::vector<double> out(static_cast<size_t>(view.elements()));
    std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
    return out;
  }
  const std::vector<float> floats = view.to_floats();
  return std::vector<double>(floats.begin(), floats.end());
}

Result<std::vector<int64_t>> ParityReference::integers(std::string_view name,
                                                       std::vector<int64_t> shape) const {
  FS_ASSIGN(const TensorView view, checked(name, shape));
  if (view.dtype != DType::kI64)
    return Error{ErrorCode::kCorrupt,
                 "the tensor \"" + std::string(name) + "\" is " + dtype_name(view.dtype) +
                     ", and I64 was expected",
                 where_, "record the reference again"};
  std::vector<int64_t> out(static_cast<size_t>(view.elements()));
  std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
  return out;
}

Result<std::vector<int64_t>> ParityReference::shape(std::string_view name) const {
  FS_ASSIGN(const TensorView view, tensors_->tensor(name));
  return view.shape;
}

double ParityReference::tolerance(double suggested, std::string_view quantity,
                                  std::string_view tensor) const {
  const Json* recorded = json_.find_set("f32_vs_f64_error");
  if (recorded != nullptr) recorded = recorded->find_set(quantity);
  if (recorded != nullptr && recorded->is_object()) recorded = recorded->find_set(tensor);
  // The worst of several tensors is recorded with its name.
  if (recorded != nullptr && recorded->is_array() && !recorded->as_array().empty())
    recorded = &recorded->as_array().front();
  if (recorded == nullptr || !recorded->is_number()) return suggested;
  const double error = recorded->as_double();
  if (!std::isfinite(error)) return suggested;
  return std::clamp(kTimesRecorded * error, suggested, kTimesSuggested * suggested);
}

void ParityLog::compare(std::string quantity, double error, double tolerance, std::string note) {
  // A NaN error must fail, so the comparison is this way round.
  parity_.checks.push_back(
      {std::move(quantity), error, tolerance, error <= tolerance, false, std::move(note)});
}

void ParityLog::skip(std::string quantity, std::string note) {
  parity_.checks.push_back({std::move(quantity), 0, 0, true, true, std::move(note)});
}

void WorstTensor::add(const std::string& tensor, double error, double tolerance) {
  const bool passed = error <= tolerance;
  if (!passed) log_.compare(quantity_ + ": " + tensor, error, tolerance);
  const double ratio = std::isnan(error) ? INFINITY : error / tolerance;
  if (ratio <= ratio_) return;
  worst_ = tensor;
  error_ = error;
  tolerance_ = tolerance;
  ratio_ = ratio;
}

void WorstTensor::finish() {
  if (ratio_ < 0)
    log_.skip(quantity_, "not in the reference");
  else
    log_.compare(quantity_, error_, tolerance_, "worst: " + worst_);
}

double largest_difference(std::span<const double> truth, std::span<const float> value) {
  FS_CHECK(truth.size() == value.size());
  double worst = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double difference = std::abs(truth[i] - value[i]);
    if (!(difference <= worst)) worst = difference;
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

double relative_l2(std::span<const double> truth, std::span<const float> value) {
  FS_CHECK(truth.size() == value.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    difference += (value[i] - truth[i]) * (value[i] - truth[i]);
    norm += truth[i] * truth[i];
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / norm);
}

Result<Microbatch> labelled_batch(const ModelConfig& config, std::span<const int64_t> ids,
                                  std::span<const int64_t> labels, int64_t batch, int64_t length) {
  const auto outside = [&](int64_t id) { return id < 0 || id >= config.vocab_size; };
  const auto refuse = [](int64_t id) {
    return Error{ErrorCode::kCorrupt,
                 "the reference has the token " + std::to_string(id) + ", outside the vocabulary",
                 "reference.safetensors", "the reference does not belong to this model"};
  };
  if (length > config.max_positions)
    return Error{ErrorCode::kCorrupt, "the reference's sequences are longer than the context",
                 "reference.safetensors", "the reference does not belong to this model"};
  Microbatch out;
  out.starts.push_back(0);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < length; ++t) {
      const size_t i = static_cast<size_t>(b * length + t);
      if (outside(ids[i])) return refuse(ids[i]);
      const int64_t label = t + 1 < length ? labels[i + 1] : -100;
      if (label != -100 && outside(label)) return refuse(label);
      out.tokens.push_back(static_cast<int32_t>(ids[i]));
      out.targets.push_back(label == -100 ? -1 : static_cast<int32_t>(label));
    }
    out.starts.push_back(static_cast<int32_t>(out.tokens.size()));
  }
  return out;
}

NoiseRange noise_range(const Parameter& parameter) {
  if (!parameter.name.ends_with("attn.c_attn.bias")) return {};
  const size_t third = parameter.size() / 3;
  return {third, 2 * third};
}

}  // namespace fastserve
