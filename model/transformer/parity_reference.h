// The recorded truth of a model, and what it means to agree with it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "model/huggingface.h"
#include "model/parameters.h"
#include "model/safetensors.h"
#include "model/trainable.h"
#include "model/transformer/parity.h"

namespace fastserve {

/// reference.json and the reference.safetensors that it means.
class ParityReference {
 public:
  static Result<ParityReference> open(const Path& directory);

  bool has(std::string_view name) const { return tensors_->contains(name); }
  /// Exactly `shape`, or kCorrupt; an extent of -1 takes any.
  Result<std::vector<double>> doubles(std::string_view name, std::vector<int64_t> shape) const;
  Result<std::vector<int64_t>> integers(std::string_view name, std::vector<int64_t> shape) const;
  Result<std::vector<int64_t>> shape(std::string_view name) const;
  /// How far float32 may be off in `quantity`: `suggested`, which suits most models, or a few times
  /// the error that stock float32 code made on this very one, as reference.json recorded it
  /// ("f32_vs_f64_error"; `tensor` names a member where errors are listed by tensor).
  double tolerance(double suggested, std::string_view quantity, std::string_view tensor = {}) const;
  const Json& json() const { return json_; }
  const std::string& where() const { return where_; }

 private:
  Result<TensorView> checked(std::string_view name, const std::vector<int64_t>& shape) const;

  Json json_;
  std::string where_;
  std::shared_ptr<const SafetensorsFile> tensors_;
};

/// The model under test: its own config and weights, flat.
struct ParityModel {
  ModelConfig config;
  ParameterLayout layout;
  std::vector<float> weights;
  ModelBundle bundle;
};

/// Appends checks to a ModelParity.
class ParityLog {
 public:
  explicit ParityLog(ModelParity& parity) : parity_(parity) {}
  void compare(std::string quantity, double error, double tolerance, std::string note = {});
  void skip(std::string quantity, std::string note);

 private:
  ModelParity& parity_;
};

/// The worst of several tensors by error over tolerance, as one check. Each tensor outside its
/// tolerance gets a check of its own as well.
class WorstTensor {
 public:
  WorstTensor(ParityLog& log, std::string quantity) : log_(log), quantity_(std::move(quantity)) {}
  void add(const std::string& tensor, double error, double tolerance);
  /// With no tensor seen: a skipped check.
  void finish();

 private:
  ParityLog& log_;
  std::string quantity_, worst_;
  double error_ = 0, tolerance_ = 0, ratio_ = -1;
};

double largest_difference(std::span<const double> truth, std::span<const float> value);
/// ||value - truth|| / ||truth||; 0 when both are 0.
double relative_l2(std::span<const double> truth, std::span<const float> value);

/// Rows of `ids` and unshifted `labels`, both [batch, length], as one microbatch: position t's
/// target is label t+1, and -100 is not counted. kCorrupt for an id outside the vocabulary.
Result<Microbatch> labelled_batch(const ModelConfig& config, std::span<const int64_t> ids,
                                  std::span<const int64_t> labels, int64_t batch, int64_t length);

/// GPT-2's key bias, whose gradient is zero in theory and rounding noise in practice: the middle
/// third of c_attn.bias. Empty for other parameters.
struct NoiseRange {
  size_t begin = 0, end = 0;
};
NoiseRange noise_range(const Parameter& parameter);

Status check_forward(const ParityModel& model, const ParityReference& reference, Device& device,
                     Precision precision, ParityLog& log);
Status check_training(const ParityModel& model, const ParityReference& reference, Device& device,
                      ParityLog& log);
Status check_greedy(const ParityModel& model, const ParityReference& reference, Device& device,
                    ParityLog& log);

}  // namespace fastserve
