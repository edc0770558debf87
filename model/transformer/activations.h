// Where each activation of a training pass lies in its one allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/train_ops.h"
#include "model/trainable.h"

namespace fastserve {

/// Bytes of one element of the training precision.
size_t compute_bytes(Precision precision);

/// Byte offsets of what one layer's backward needs from its forward.
struct LayerActivations {
  size_t input;       ///< float [rows, hidden]: the residual stream into the layer
  size_t stats1;      ///< float [rows, 2]
  size_t normed1;     ///< compute [rows, hidden]
  size_t projected;   ///< compute [rows, qkv_width]: before the head norms; equals qkv without them
  size_t head_stats;  ///< float [rows, heads + kv_heads], with head norms only
  size_t qkv;         ///< compute [rows, qkv_width]: rotated
  size_t softmax;     ///< float [heads, rows, 2]
  size_t attended;    ///< compute [rows, heads * head_dim]
  size_t middle;      ///< float [rows, hidden]: the residual stream after attention
  size_t stats2;      ///< float [rows, 2]
  size_t normed2;     ///< compute [rows, hidden]
  size_t slope;       ///< [rows, mlp_width or 2 mlp_width]: see MatmulForward
  size_t gated;       ///< compute [rows, mlp_width]
};

/// The plan for `max_rows` tokens. Gradients of activations share memory where their lives do not
/// overlap: the classifier's with the MLP's with attention's. Where layers are recomputed all share
/// one place for everything but their input.
struct ActivationPlan {
  ActivationPlan(const ModelConfig& config, Precision precision, int max_rows,
                 Recompute recompute = Recompute::kNone);

  std::vector<LayerActivations> layers;
  size_t output = 0;        ///< float [rows, hidden]: the residual stream after the last layer
  size_t output_stats = 0;  ///< float [rows, 2]
  size_t normed = 0;        ///< compute [rows, hidden]: what the classifier sees
  size_t losses = 0;        ///< double [rows]

  size_t dresidual = 0;          ///< float [rows, hidden]
  size_t dresidual_compute = 0;  ///< its compute copy
  size_t dnormed = 0;            ///< [rows, hidden]: gradient of a norm's output, as its device has it
  size_t dlogits = 0;            ///< compute [rows, classifier_ld]
  size_t dhidden = 0;            ///< compute [rows, mlp_width or 2 mlp_width]; shares with dlogits
  size_t dqkv = 0;               ///< compute [rows, qkv_width]; shares with dlogits
  size_t dattended = 0;          ///< compute [rows, heads * head_dim]; shares with dlogits

  int classifier_ld = 0;  ///< vocabulary rounded up to 64
  size_t bytes = 0;       ///< of all
};

}  // namespace fastserve
