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

/// Compresses one model, held as floats.
///
/// The attention and MLP projections and the output head become `spec.weights` and
/// spec.head_format(); embeddings and position tables stay floats (16 bits, unless `weights` is
/// f32), norms and biases f32. With tied embeddings a quantised head is stored beside the embedding
/// as "lm_head.weight". config.json names the formats ("fastserve": {"weights": ...}) and the new
/// widths.
///
/// Owns:     nothing of the model but its shared source; a float copy of all weights while it runs.
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
  Result<FlatModel> prune(const CompressSpec& spec);
  Status load();
  Status check_cancelled() const;
  void report(std::string_view stage, double fraction) const;
  Status mask_matrices(const CompressSpec& spec, const ParameterLayout& layout,
                       std::vector<float>& flat);
  Result<ModelBundle> pack(const CompressSpec& spec, const FlatModel& model);

  ModelBundle source_;
  CompressorHooks hooks_;
  std::optional<FlatModel> model_;     // the source as floats, read once
  std::optional<ChannelNorms> norms_;  // calibrated once
};

}  // namespace fastserve
