#include <utility>

#include "model/transformer/train_pass.h"

namespace fastserve {

void TransformerPass::backward(const TrainWeights& weights, float* grad, PassFlow* flow) {
  start(weights, /*train=*/true, grad, flow, [&] { layers_backward(weights, grad, flow); });
  // After the head's gradient was written: a tied table adds to it.
  ops_.embed_backward({.tokens = tokens_,
                       .positions = {positions_.data(), tokens_.size()},
                       .dx = at<float>(plan_.dresidual),
                       .dtoken_table = at(grad, layout_.token_embedding()),
                       .dposition_table = at(grad, layout_.position_embedding()),
                       .channels = config_.hidden_size});
  if (flow != nullptr) flow->gradient_final(0);
}

void TransformerPass::layers_backward(const TrainWeights& weights, float* grad, PassFlow* flow) {
  const auto written = [&](size_t from) {
    if (flow != nullptr) flow->gradient_final(from);
  };
  zero_gradients(grad);
  classifier_backward(weights, grad);
  const Block none;
  norm_backward(weights, layout_.final_norm(), layout_.final_norm_bias(), plan_.output,
                plan_.output_stats, /*accumulate=*/false, config_.layers == 0,
                config_.layers == 0 ? none : layout_.layer(config_.layers - 1).down_bias, grad);
  written(layout_.final_norm().offset);
  for (int l = config_.layers - 1; l >= 0; --l) {
    recompute(weights, l);
    mlp_backward(weights, l, grad);
    written(layout_.layer(l).norm2.offset);
    attention_backward(weights, l, grad);
    written(layout_.layer(l).norm1.offset);
  }
}

/// What the layer left behind is lost, unless it was the last to go forward.
void TransformerPass::recompute(const TrainWeights& weights, int layer) {
  if (recompute_ == Recompute::kNone || layer + 1 == config_.layers) return;
  const Tap tap = std::exchange(tap_, {});  // which has seen it
  attention_forward(weights, layer, /*train=*/true);
  mlp_up(weights, layer, /*train=*/true);
  tap_ = tap;
}

void TransformerPass::zero_gradients(float* grad) {
  for (const Zeroed& range : zeroed_)
    device_.fill_zero(grad + range.offset, range.size * sizeof(float));
}

void TransformerPass::weight_gradient(const Block& weight, const Block& bias, size_t dy, int dy_ld,
                                      size_t x, float* grad) {
  ops_.matmul_backward_weight({.dy = at(dy),
                               .x = at(x),
                               .rows = rows_,
                               .out = weight.rows,
                               .in = weight.cols,
                               .dy_ld = dy_ld,
                               .x_ld = weight.cols,
                               .dweight = at(grad, weight),
                               .dbias = at(grad, bias),
                               .accumulate = false});
}

void TransformerPass::input_gradient(const TrainWeights& weights, const Block& weight, size_t dy,
                                     int dy_ld, InputGradEpilogue epilogue, size_t dx) {
  ops_.matmul_backward_input({.weight = &weights.matrix(weight),
                              .dy = at(dy),
                              .rows = rows_,
                              .dy_ld = dy_ld,
                              .epilogue = epilogue,
                              .dx = at(dx),
                              .dx_ld = weight.cols});
}

/// A bias whose gradient comes with its weight's; none where whatever reads dy anyhow has summed
/// it.
Block TransformerPass::unsummed(const Block& bias) const { return ops_.sums_dx() ? Block() : bias; }

/// How a product leaves the gradient that a norm takes.
InputGradEpilogue TransformerPass::to_norm() const {
  return ops_.norms_compute_dy() ? InputGradEpilogue::kStore : InputGradEpilogue::kStoreFloat;
}

void TransformerPass::norm_backward(const TrainWeights& weights, const Block& weight,
                                    const Block& bias, size_t in, size_t stats, bool accumulate,
                                    bool last, const Block& below, float* grad) {
  ops_.norm_backward({.kind = config_.norm,
                      .dy = at(plan_.dnormed),
                      .x = at<float>(in),
                      .weight = weights.at(weight),
                      .stats = at<float>(stats),
                      .rows = rows_,
                      .channels = config_.hidden_size,
                      .dx = at<float>(plan_.dresidual),
                      .accumulate = accumulate,
                      .dx_compute = last ? nullptr : at(plan_.dresidual_compute),
                      .dweight = at(grad, weight),
                      .dbias = at(grad, bias),
                      .dx_sums = ops_.sums_dx() ? at(grad, below) : nullptr});
}

void TransformerPass::classifier_backward(const TrainWeights& weights, float* grad) {
  const Block none;
  input_gradient(weights, layout_.head(), plan_.dlogits, plan_.classifier_ld, to_norm(),
                 plan_.dnormed);
  weight_gradient(layout_.head(), none, plan_.dlogits, plan_.classifier_ld, plan_.normed, grad);
}

void TransformerPass::mlp_backward(const TrainWeights& weights, int layer, float* grad) {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  const int hidden = config_.hidden_size;
  weight_gradient(b.down, unsummed(b.down_bias), plan_.dresidual_compute, hidden, a.gated, grad);
  ops_.matmul_backward_input({.weight = &weights.matrix(b.down),
                              .dy = at(plan_.dresidual_compute),
                              .rows = rows_,
                              .dy_ld = hidden,
                              .epilogue = InputGradEpilogue::kTimesSlope,
                              .dx = at(plan_.dhidden),
                              .dx_ld = b.up.rows,
                              .slope = at(a.slope),
                              .slope_parts = config_.mlp == MlpKind::kSwiGlu ? 2 : 1,
                              .bias = weights.at(b.up_bias),
                              .dbias = ops_.sums_dx() ? at(grad, b.up_bias) : nullptr});
  weight_gradient(b.up, unsummed(b.up_bias), plan_.dhidden, b.up.rows, a.normed2, grad);
  input_gradient(weights, b.up, plan_.dhidden, b.up.rows, to_norm(), plan_.dnormed);
  norm_backward(weights, b.norm2, b.norm2_bias, a.middle, a.stats2, /*accumulate=*/true,
                /*last=*/false, b.output_bias, grad);
}

void TransformerPass::attention_backward(const TrainWeights& weights, int layer, float* grad) {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  const int hidden = config_.hidden_size, width = config_.qkv_width();
  weight_gradient(b.output, unsummed(b.output_bias), plan_.dresidual_compute, hidden, a.attended,
                  grad);
  input_gradient(weights, b.output, plan_.dresidual_compute, hidden, InputGradEpilogue::kStore,
                 plan_.dattended);
  ops_.attention_backward({.forward = attention(layer, /*train=*/true),
                           .dout = at(plan_.dattended),
                           .dqkv = at(plan_.dqkv)});
  if (rotates())
    ops_.rotary_backward({.forward = rotary(weights, layer),
                          .dqkv = at(plan_.dqkv),
                          .dq_norm = at(grad, b.q_norm),
                          .dk_norm = at(grad, b.k_norm)});
  weight_gradient(b.qkv, b.qkv_bias, plan_.dqkv, width, a.normed1, grad);
  input_gradient(weights, b.qkv, plan_.dqkv, width, to_norm(), plan_.dnormed);
  norm_backward(weights, b.norm1, b.norm1_bias, a.input, a.stats1, /*accumulate=*/true,
                /*last=*/layer == 0, layer == 0 ? Block() : layout_.layer(layer - 1).down_bias,
                grad);
}

}  // namespace fastserve
