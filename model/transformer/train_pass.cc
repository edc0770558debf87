#include "model/transformer/train_pass.h"

#include <algorithm>
#include <cmath>

#include "model/transformer/rope_table.h"

namespace fastserve {
namespace {

/// Graphs kept: forward with and without gradients, and back for each buffer of gradients, in some
/// lengths of sequences.
constexpr int kGraphs = 32;

}  // namespace

Result<std::unique_ptr<TrainPass>> TrainPass::create(Device& device, TrainOps& ops,
                                                     const ModelConfig& config,
                                                     const ParameterLayout& layout, int max_rows,
                                                     Recompute recompute) {
  return TransformerPass::make(device, ops, config, layout, max_rows, recompute);
}

TrainMemory TrainPass::estimate(const ModelConfig& config, const ParameterLayout& layout,
                                Precision precision, int max_rows, Recompute recompute) {
  TrainMemory memory;
  memory.masters = layout.elements() * sizeof(float);
  // Panels of 64 columns for each direction. Half may be computed in float, so count it as float.
  const uint64_t element = precision == Precision::kBFloat16 ? 2 : 4;
  const auto matrix = [&](const Block& block) {
    const uint64_t out = static_cast<uint64_t>(block.rows), in = static_cast<uint64_t>(block.cols);
    memory.packed += ((out + 63) / 64 * 64 * in + (in + 63) / 64 * 64 * out) * element;
  };
  for (int l = 0; l < config.layers; ++l) {
    const LayerBlocks& b = layout.layer(l);
    for (const Block* block : {&b.qkv, &b.output, &b.up, &b.down}) matrix(*block);
  }
  matrix(layout.head());
  memory.activations = ActivationPlan(config, precision, max_rows, recompute).bytes;
  return memory;
}

Result<std::unique_ptr<TrainPass>> TransformerPass::make(Device& device, TrainOps& ops,
                                                         const ModelConfig& config,
                                                         const ParameterLayout& layout,
                                                         int max_rows, Recompute recompute) {
  if (max_rows <= 0)
    return Error{ErrorCode::kInvalidArgument, "a microbatch needs at least one token", "max_rows",
                 "raise the batch size"};
  std::unique_ptr<TransformerPass> pass(
      new TransformerPass(device, ops, config, layout, max_rows, recompute));
  FS_ASSIGN(pass->memory_, device.allocate(pass->plan_.bytes));
  pass->base_ = static_cast<std::byte*>(pass->memory_->data());
  if (config.rope) {
    const std::vector<float> table = rope_table(config, std::min(config.max_positions, max_rows));
    FS_ASSIGN(pass->rope_memory_, device.allocate(table.size() * sizeof(float)));
    device.copy_in(pass->rope_memory_->data(), table.data(), table.size() * sizeof(float));
    pass->rope_table_ = static_cast<const float*>(pass->rope_memory_->data());
  }
  return std::unique_ptr<TrainPass>(std::move(pass));
}

TransformerPass::TransformerPass(Device& device, TrainOps& ops, const ModelConfig& config,
                                 const ParameterLayout& layout, int max_rows, Recompute recompute)
    : device_(device),
      ops_(ops),
      config_(config),
      layout_(layout),
      max_rows_(max_rows),
      recompute_(recompute),
      plan_(config, ops.precision(), max_rows, recompute),
      graphs_(
          device, [this] { return ops_.scratch_version(); }, kGraphs, "training passes"),
      positions_(static_cast<size_t>(max_rows)),
      losses_(static_cast<size_t>(max_rows)) {
  find_zeroed();
}

void TransformerPass::find_zeroed() {
  std::vector<Block> written;
  for (int l = 0; l < config_.layers; ++l) {
    const LayerBlocks& b = layout_.layer(l);
    for (const Block* block : {&b.qkv, &b.output, &b.up, &b.down}) written.push_back(*block);
  }
  written.push_back(layout_.head());
  std::sort(written.begin(), written.end(),
            [](const Block& a, const Block& b) { return a.offset < b.offset; });
  size_t from = 0;
  for (const Block& block : written) {
    if (block.offset > from) zeroed_.push_back({from, block.offset - from});
    from = block.offset + block.size();
  }
  if (from < layout_.elements()) zeroed_.push_back({from, layout_.elements() - from});
}

void TransformerPass::set_tap(Tap tap) {
  FS_CHECK(ops_.precision() == Precision::kFloat32);
  tap_ = std::move(tap);
}

void TransformerPass::tap(const Block& block, size_t input) {
  std::vector<float> x(static_cast<size_t>(rows_) * static_cast<size_t>(block.cols));
  device_.copy_out(x.data(), at(input), x.size() * sizeof(float));
  for (const Parameter& p : layout_.parameters())
    if (p.offset >= block.offset && p.offset < block.offset + block.size())
      tap_(p.name, x.data(), rows_, block.cols);
}

void TransformerPass::take_batch(const Microbatch& batch) {
  rows_ = static_cast<int>(batch.tokens.size());
  FS_CHECK(rows_ > 0 && rows_ <= max_rows_ && batch.targets.size() == batch.tokens.size());
  FS_CHECK(batch.starts.size() >= 2 && batch.starts.front() == 0 && batch.starts.back() == rows_);
  tokens_ = batch.tokens;
  targets_ = batch.targets;
  starts_ = batch.starts;
  for (size_t s = 0; s + 1 < starts_.size(); ++s) {
    FS_CHECK(starts_[s] <= starts_[s + 1] && starts_[s + 1] - starts_[s] <= config_.max_positions);
    for (int row = starts_[s]; row < starts_[s + 1]; ++row)
      positions_[static_cast<size_t>(row)] = row - starts_[s];
  }
  for (int32_t token : tokens_) FS_CHECK(token >= 0 && token < config_.vocab_size);
  for (int32_t target : targets_) FS_CHECK(target < config_.vocab_size);
}

double TransformerPass::run(const TrainWeights& weights, const Microbatch& batch, float scale,
                            float* grad, std::span<double> token_losses, PassFlow* flow) {
  take_batch(batch);
  const bool train = grad != nullptr;
  if (flow != nullptr && !flow->await_weights(end_of_layer(-1))) return 0;
  ops_.embed_forward({.tokens = tokens_,
                      .positions = {positions_.data(), tokens_.size()},
                      .token_table = weights.at(layout_.token_embedding()),
                      .position_table = weights.at(layout_.position_embedding()),
                      .out = at<float>(plan_.layers.empty() ? plan_.output : plan_.layers[0].input),
                      .channels = config_.hidden_size});
  bool stopped = false;
  start(weights, train, nullptr, flow, [&] { stopped = !layers_forward(weights, train, flow); });
  if (stopped) return 0;
  classify(weights, scale, train);
  if (train) backward(weights, grad, flow);
  return take_losses(token_losses);  // at the end, since it waits for the device
}

// What lies on the host and changes from one microbatch to the next (tokens, targets, the loss's
// scale) is read by the operations in between, which are always started by themselves.
void TransformerPass::start(const TrainWeights& weights, bool train, float* written,
                            const PassFlow* flow, const std::function<void()>& part) {
  if (flow != nullptr || tap_) return part();
  graphs_.run({.backward = written != nullptr,
               .train = train,
               .weights = weights.identity(),
               .grad = written,
               .starts = {starts_.begin(), starts_.end()}},
              part);
}

/// False when the flow has stopped it.
bool TransformerPass::layers_forward(const TrainWeights& weights, bool train, PassFlow* flow) {
  const auto may_read = [&](size_t end) { return flow == nullptr || flow->await_weights(end); };
  for (int l = 0; l < config_.layers; ++l) {
    if (!may_read(end_of_layer(l))) return false;
    attention_forward(weights, l, train);
    mlp_forward(weights, l, train);
  }
  if (!may_read(layout_.elements())) return false;
  norm_forward(weights, layout_.final_norm(), layout_.final_norm_bias(), plan_.output, plan_.normed,
               plan_.output_stats);
  return true;
}

void TransformerPass::norm_forward(const TrainWeights& weights, const Block& weight,
                                   const Block& bias, size_t in, size_t out, size_t stats) {
  ops_.norm_forward({.kind = config_.norm,
                     .x = at<float>(in),
                     .weight = weights.at(weight),
                     .bias = weights.at(bias),
                     .epsilon = config_.norm_epsilon,
                     .rows = rows_,
                     .channels = config_.hidden_size,
                     .out = at(out),
                     .stats = at<float>(stats)});
}

RotaryForward TransformerPass::rotary(const TrainWeights& weights, int layer) const {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  return {.shape = heads(),
          .in = at(a.projected),
          .out = at(a.qkv),
          .rows = rows_,
          .positions = {positions_.data(), static_cast<size_t>(rows_)},
          .table = rope_table_,
          .q_norm = weights.at(b.q_norm),
          .k_norm = weights.at(b.k_norm),
          .epsilon = config_.norm_epsilon,
          .stats = config_.qk_norm ? at<float>(a.head_stats) : nullptr};
}

AttentionForward TransformerPass::attention(int layer, bool train) const {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  return {.shape = heads(),
          .qkv = at(a.qkv),
          .out = at(a.attended),
          .stats = train ? at<float>(a.softmax) : nullptr,
          .starts = starts_,
          .window = config_.sliding_window,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)))};
}

void TransformerPass::attention_forward(const TrainWeights& weights, int layer, bool train) {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  const int hidden = config_.hidden_size;
  norm_forward(weights, b.norm1, b.norm1_bias, a.input, a.normed1, a.stats1);
  if (tap_) tap(b.qkv, a.normed1);
  ops_.matmul_forward({.weight = &weights.matrix(b.qkv),
                       .x = at(a.normed1),
                       .rows = rows_,
                       .x_ld = hidden,
                       .bias = weights.at(b.qkv_bias),
                       .epilogue = MatmulEpilogue::kStore,
                       .out = at(a.projected),
                       .out_ld = config_.qkv_width(),
                       .residual = nullptr,
                       .slope = nullptr});
  if (rotates()) ops_.rotary_forward(rotary(weights, layer));
  ops_.attention_forward(attention(layer, train));
  if (tap_) tap(b.output, a.attended);
  ops_.matmul_forward({.weight = &weights.matrix(b.output),
                       .x = at(a.attended),
                       .rows = rows_,
                       .x_ld = attention_width(),
                       .bias = weights.at(b.output_bias),
                       .epilogue = MatmulEpilogue::kAddResidual,
                       .out = at(a.middle),
                       .out_ld = hidden,
                       .residual = at<float>(a.input),
                       .slope = nullptr});
}

void TransformerPass::mlp_up(const TrainWeights& weights, int layer, bool train) {
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  norm_forward(weights, b.norm2, b.norm2_bias, a.middle, a.normed2, a.stats2);
  if (tap_) tap(b.up, a.normed2);
  ops_.matmul_forward({.weight = &weights.matrix(b.up),
                       .x = at(a.normed2),
                       .rows = rows_,
                       .x_ld = config_.hidden_size,
                       .bias = weights.at(b.up_bias),
                       .epilogue = config_.mlp == MlpKind::kSwiGlu ? MatmulEpilogue::kSwiGlu
                                                                   : MatmulEpilogue::kGelu,
                       .out = at(a.gated),
                       .out_ld = config_.mlp_width(layer),
                       .residual = nullptr,
                       .slope = train ? at(a.slope) : nullptr});
}

void TransformerPass::mlp_forward(const TrainWeights& weights, int layer, bool train) {
  mlp_up(weights, layer, train);
  const LayerActivations& a = plan_.layers[static_cast<size_t>(layer)];
  const LayerBlocks& b = layout_.layer(layer);
  const int hidden = config_.hidden_size, width = config_.mlp_width(layer);
  const bool last = layer + 1 == config_.layers;
  if (tap_) tap(b.down, a.gated);
  ops_.matmul_forward(
      {.weight = &weights.matrix(b.down),
       .x = at(a.gated),
       .rows = rows_,
       .x_ld = width,
       .bias = weights.at(b.down_bias),
       .epilogue = MatmulEpilogue::kAddResidual,
       .out = at(last ? plan_.output : plan_.layers[static_cast<size_t>(layer) + 1].input),
       .out_ld = hidden,
       .residual = at<float>(a.middle),
       .slope = nullptr});
}

void TransformerPass::classify(const TrainWeights& weights, float scale, bool train) {
  if (tap_) tap(layout_.head(), plan_.normed);
  ops_.classifier_loss({.head = &weights.matrix(layout_.head()),
                        .x = at(plan_.normed),
                        .rows = rows_,
                        .targets = targets_,
                        .losses = at<double>(plan_.losses),
                        .dlogits = train ? at(plan_.dlogits) : nullptr,
                        .dlogits_ld = plan_.classifier_ld,
                        .scale = scale});
}

double TransformerPass::take_losses(std::span<double> token_losses) {
  device_.copy_out(losses_.data(), at(plan_.losses), tokens_.size() * sizeof(double));
  double sum = 0;
  for (size_t r = 0; r < tokens_.size(); ++r) sum += losses_[r];
  if (!token_losses.empty()) {
    FS_CHECK(token_losses.size() >= tokens_.size());
    std::copy_n(losses_.begin(), tokens_.size(), token_losses.begin());
  }
  return sum;
}

std::vector<float> TransformerPass::hidden(int i) const {
  const size_t n = static_cast<size_t>(rows_) * static_cast<size_t>(config_.hidden_size);
  std::vector<float> out(n);
  if (i < config_.layers || ops_.precision() == Precision::kFloat32) {
    const size_t from =
        i < config_.layers ? plan_.layers[static_cast<size_t>(i)].input : plan_.normed;
    device_.copy_out(out.data(), at(from), n * sizeof(float));
    return out;
  }
  std::vector<uint16_t> halves(n);
  device_.copy_out(halves.data(), at(plan_.normed), n * sizeof(uint16_t));
  const bool bf16 = ops_.precision() == Precision::kBFloat16;
  for (size_t e = 0; e < n; ++e)
    out[e] = bf16 ? to_float(BFloat16{halves[e]}) : to_float(Float16{halves[e]});
  return out;
}

std::vector<float> TransformerPass::logits(const TrainWeights& weights) {
  std::vector<float> out(static_cast<size_t>(rows_) * static_cast<size_t>(config_.vocab_size));
  auto buffer = device_.allocate(out.size() * sizeof(float));
  FS_CHECK(buffer.ok());
  ops_.matmul_forward({.weight = &weights.matrix(layout_.head()),
                       .x = at(plan_.normed),
                       .rows = rows_,
                       .x_ld = config_.hidden_size,
                       .bias = nullptr,
                       .epilogue = MatmulEpilogue::kStoreFloat,
                       .out = (*buffer)->data(),
                       .out_ld = config_.vocab_size,
                       .residual = nullptr,
                       .slope = nullptr});
  device_.copy_out(out.data(), (*buffer)->data(), out.size() * sizeof(float));
  return out;
}

}  // namespace fastserve
