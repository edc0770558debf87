// All trainable numbers of a model as ONE flat float buffer in layer order, and the names inside
// it.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"

namespace fastserve {

/// One Hugging Face parameter inside the flat buffer.
///
/// Matrices lie as [out, in] row-major, whatever the checkpoint does (GPT-2's Conv1D is [in, out]).
/// q, k and v of a layer are neighbours, so that their fusion is the matrix [qkv_width, hidden];
/// so are gate and up: [2 * mlp_width, hidden].
struct Parameter {
  std::string name;            ///< Hugging Face name, e.g. "model.layers.0.mlp.gate_proj.weight"
  std::vector<int64_t> shape;  ///< shape in the checkpoint
  bool transposed = false;     ///< checkpoint holds [in, out]
  size_t offset = 0;           ///< first float in the flat buffer
  int rows = 1, cols = 0;      ///< as it lies in the flat buffer; vectors have rows = 1
  bool decay = false;          ///< weight decay applies: two or more dimensions
  size_t size() const { return static_cast<size_t>(rows) * static_cast<size_t>(cols); }
};

/// One unit of the model that a device op takes whole: a fused matrix, a table or a vector.
struct Block {
  size_t offset = 0;
  int rows = 0, cols = 0;
  size_t size() const { return static_cast<size_t>(rows) * static_cast<size_t>(cols); }
  bool empty() const { return rows == 0; }
};

/// The blocks of one layer; absent ones are empty().
struct LayerBlocks {
  Block norm1, norm1_bias, qkv, qkv_bias, q_norm, k_norm, output, output_bias;
  Block norm2, norm2_bias, up, up_bias, down, down_bias;  ///< up: gate and up fused for SwiGLU
};

/// Where every parameter lies. Blocks begin on multiples of 16 floats; the gaps are zero, have zero
/// gradient and stay zero.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);

  size_t elements() const { return elements_; }    ///< floats in the flat buffer
  size_t trainable() const { return trainable_; }  ///< without the gaps
  const std::vector<Parameter>& parameters() const { return parameters_; }  ///< by offset
  const Block& token_embedding() const { return token_embedding_; }         ///< [vocab, hidden]
  const Block& position_embedding() const { return position_embedding_; }   ///< empty unless GPT-2
  const LayerBlocks& layer(int i) const { return layers_[static_cast<size_t>(i)]; }
  const Block& final_norm() const { return final_norm_; }
  const Block& final_norm_bias() const { return final_norm_bias_; }
  /// The output matrix [vocab, hidden]; the token embedding itself when tied.
  const Block& head() const { return head_; }

 private:
  class Builder;
  void add_gpt2(const ModelConfig& config, Builder& builder);
  void add_llama_family(const ModelConfig& config, Builder& builder);

  size_t elements_ = 0, trainable_ = 0;
  std::vector<Parameter> parameters_;
  Block token_embedding_, position_embedding_, final_norm_, final_norm_bias_, head_;
  std::vector<LayerBlocks> layers_;
};

/// Fills `flat` (layout.elements() floats) from a checkpoint. Accepts f32, f16 and bf16, names with
/// or without their prefix ("transformer.", "model."), and ignores the causal-mask buffers of old
/// GPT-2 files. kCorrupt for a missing tensor or a wrong shape, naming both shapes.
Status load_parameters(const ParameterLayout& layout, const TensorSource& source,
                       std::span<float> flat);

/// One parameter's tensor in a checkpoint, by the rules of load_parameters, checked and not yet
/// read.
Result<TensorView> find_parameter(const Parameter& parameter, const TensorSource& source);
/// Reads it as it lies in the flat buffer, [rows, cols]; `out` has parameter.size() floats.
void read_parameter(const Parameter& parameter, const TensorView& view, std::span<float> out);

/// The inverse: Hugging Face names, shapes and orientation, as `dtype` (kF32, kBF16, kF16).
TensorMap save_parameters(const ParameterLayout& layout, std::span<const float> flat, DType dtype);

/// Fresh weights: normal(0, 0.02), residual projections scaled by 1/sqrt(2 * layers) (GPT-2), norms
/// 1, biases 0. The bits depend on `seed` alone.
void initialise_parameters(const ModelConfig& config, const ParameterLayout& layout, uint64_t seed,
                           std::span<float> flat);

}  // namespace fastserve
