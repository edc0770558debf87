// The one TrainPass: ops in the order that keeps their data warm.
#pragma once

#include <string>

#include "model/trainable.h"
#include "model/transformer/activations.h"
#include "model/transformer/step_graphs.h"

namespace fastserve {

/// Which part of a pass, and all that its operations are told: they read activations besides.
struct PassPart {
  bool backward, train;
  std::weak_ptr<const void> weights;  ///< TrainWeights::identity()
  const float* grad;                  ///< that is written; null forward
  std::vector<int32_t> starts;
  bool operator==(const PassPart& other) const {
    return backward == other.backward && train == other.train && grad == other.grad &&
           starts == other.starts && !weights.owner_before(other.weights) &&
           !other.weights.owner_before(weights);
  }
};

class TransformerPass final : public TrainPass {
 public:
  static Result<std::unique_ptr<TrainPass>> make(Device& device, TrainOps& ops,
                                                 const ModelConfig& config,
                                                 const ParameterLayout& layout, int max_rows,
                                                 Recompute recompute);

  double run(const TrainWeights& weights, const Microbatch& batch, float scale, float* grad,
             std::span<double> token_losses, PassFlow* flow) override;
  void set_tap(Tap tap) override;
  std::vector<float> hidden(int i) const override;
  std::vector<float> logits(const TrainWeights& weights) override;
  size_t bytes() const override { return plan_.bytes; }

 private:
  struct Zeroed {
    size_t offset, size;
  };

  TransformerPass(Device& device, TrainOps& ops, const ModelConfig& config,
                  const ParameterLayout& layout, int max_rows, Recompute recompute);
  void find_zeroed();
  void take_batch(const Microbatch& batch);

  /// The first element behind layer `l`; l = -1: behind the embeddings.
  size_t end_of_layer(int l) const {
    return l + 1 < config_.layers ? layout_.layer(l + 1).norm1.offset : layout_.final_norm().offset;
  }

  /// Does a part of the pass, as a graph where it can be and nobody looks in between.
  void start(const TrainWeights& weights, bool train, float* written, const PassFlow* flow,
             const std::function<void()>& part);

  // Forward, train_pass.cc.
  bool layers_forward(const TrainWeights& weights, bool train, PassFlow* flow);
  void attention_forward(const TrainWeights& weights, int layer, bool train);
  void mlp_forward(const TrainWeights& weights, int layer, bool train);
  void mlp_up(const TrainWeights& weights, int layer, bool train);
  void norm_forward(const TrainWeights& weights, const Block& weight, const Block& bias, size_t in,
                    size_t out, size_t stats);
  void classify(const TrainWeights& weights, float scale, bool train);
  double take_losses(std::span<double> token_losses);
  void tap(const Block& block, size_t input);
  RotaryForward rotary(const TrainWeights& weights, int layer) const;
  AttentionForward attention(int layer, bool train) const;

  // Backward, train_backward.cc.
  void backward(const TrainWeights& weights, float* grad, PassFlow* flow);
  void layers_backward(const TrainWeights& weights, float* grad, PassFlow* flow);
  void recompute(const TrainWeights& weights, int layer);
  void zero_gradients(float* grad);
  void classifier_backward(const TrainWeights& weights, float* grad);
  void mlp_backward(const TrainWeights& weights, int layer, float* grad);
  void attention_backward(const TrainWeights& weights, int layer, float* grad);
  void norm_backward(const TrainWeights& weights, const Block& weight, const Block& bias, size_t in,
                     size_t stats, bool accumulate, bool last, const Block& below, float* grad);
  Block unsummed(const Block& bias) const;
  InputGradEpilogue to_norm() const;
  void weight_gradient(const Block& weight, const Block& bias, size_t dy, int dy_ld, size_t x,
                       float* grad);
  void input_gradient(const TrainWeights& weights, const Block& weight, size_t dy, int dy_ld,
                      InputGradEpilogue epilogue, size_t dx);

  template <class T = void>
  T* at(size_t offset) const {
    return static_cast<T*>(static_cast<void*>(base_ + offset));
  }
  static float* at(float* grad, const Block& block) {
    return block.empty() ? nullptr : grad + block.offset;
  }
  HeadShape heads() const { return {config_.heads, config_.kv_heads, config_.head_dim}; }
  int attention_width() const { return config_.heads * config_.head_dim; }
  bool rotates() const { return config_.rope.has_value() || config_.qk_norm; }

  Device& device_;
  TrainOps& ops_;
  const ModelConfig config_;
  const ParameterLayout layout_;
  const int max_rows_;
  const Recompute recompute_;
  const ActivationPlan plan_;
  std::unique_ptr<DeviceBuffer> memory_, rope_memory_;
  std::byte* base_ = nullptr;
  const float* rope_table_ = nullptr;
  std::vector<Zeroed> zeroed_;  ///< ranges of the gradient that no weight_gradient() overwrites
  Tap tap_;
  StepGraphs<PassPart> graphs_;

  // The microbatch at hand.
  int rows_ = 0;
  std::span<const int32_t> tokens_, targets_, starts_;
  std::vector<int32_t> positions_;
  std::vector<double> losses_;
};

}  // namespace fastserve
