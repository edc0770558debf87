// From a model to its smaller variant, under a contract.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/json.h"
#include "compress/calibration.h"
#include "compress/contract.h"
#include "compress/neurons.h"
#include "compress/quantisers.h"

namespace fastserve {

/// What the compressor needs from outside.
struct CompressorHooks {
  std::function<Result<Measurement>(const ModelBundle&)> measure;     ///< required
  std::function<Result<ChannelNorms>(const ModelBundle&)> calibrate;  ///< for Wanda and neurons
  std::function<void(std::string_view stage, double fraction)> progress;
  const CancelFlag* cancel = nullptr;
  ParallelFor parallel;  ///< spreads rows over threads; the result does not depend on it
};

struct CompressedModel {
  ModelBundle bundle;
  Measurement before, after;
  Json card;  ///< settings and every figure, for the variant's record
};

/// Compresses one model whose weights are floats.
///
/// The attention and MLP projections and the output head become `spec.weights` and
/// spec.head_format(); embeddings and position tables stay floats (16 bits, unless `weights` is
/// f32), norms and biases f32. With tied embeddings a quantised head is stored beside the embedding
/// as "lm_head.weight". config.json names the formats ("fastserve": {"weights": ...}) and the new
/// widths.
///
/// Owns:     nothing of the model but its shared source; the variant in the making, and one matrix
///           at a time as floats.
/// Threads:  one caller.
/// Promises: the same source, spec and calibration give the same bytes, whatever `parallel` does.
/// Refuses:  a model that is quantised already (kUnsupported), a spec that does not validate,
///           kContractBroken as judge() has it, kCancelled.
class Compressor {
 public:
  Compressor(ModelBundle source, CompressorHooks hooks);

  /// Measures, compresses, measures again and judges. When the contract is broken, other settings
  /// are tried to say what would pass.
  Result<CompressedModel> run(const CompressSpec& spec);

  /// The compression alone, without figures or contract.
  Result<ModelBundle> compress(const CompressSpec& spec);

 private:
  class Packer;

  /// What pruning has to know of the whole model before the first matrix is packed.
  struct Plan {
    ModelConfig config;  ///< of the variant
    std::optional<NeuronChoice> neurons;
  };
  Status prepare();
  Result<Plan> plan(const CompressSpec& spec);
  /// One parameter of the source as floats, pruned as the plan has it.
  Result<std::vector<float>> pruned(const CompressSpec& spec, const Plan& plan,
                                    const Parameter& parameter) const;
  Status mask(const CompressSpec& spec, const Parameter& parameter, std::span<float> values) const;
  Result<std::vector<float>> read(const Parameter& parameter) const;
  Status check_cancelled() const;
  void report(std::string_view stage, double fraction) const;

  ModelBundle source_;
  CompressorHooks hooks_;
  ModelConfig config_;
  std::optional<ParameterLayout> layout_;  // of the source, once it was found fit
  std::optional<ChannelNorms> norms_;      // calibrated once
};

}  // namespace fastserve
