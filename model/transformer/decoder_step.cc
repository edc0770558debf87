#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "model/transformer/transformer_decoder.h"

namespace fastserve {
namespace {

/// Rows whose logits score() holds at once.
constexpr int kScoreRows = 64;
/// Captured steps reach so many positions, or twice, four times as many...
constexpr unsigned kLeastReach = 256;
/// Bringing tokens to the host takes less when the device has nothing else to do.
constexpr Nanoseconds kAtOnce = std::chrono::microseconds(20);

}  // namespace

void TransformerDecoder::multiply(const DecodeMatrix& weight, const float* x, const float* norm,
                                  const float* norm_bias, const float* bias,
                                  DecodeEpilogue epilogue, float* out, int out_ld) {
  const DecodeNorm fused{config_.norm, norm, norm_bias, config_.norm_epsilon};
  ops_->matmul({.weight = &weight,
                .x = x,
                .rows = rows_,
                .x_ld = weight.in(),
                .gather = {},
                .norm = norm ? &fused : nullptr,
                .bias = bias,
                .epilogue = epilogue,
                .out = out,
                .out_ld = out_ld,
                .resident_gather = nullptr});
}

void TransformerDecoder::check(std::span<const int32_t> tokens, std::span<const Segment> segments) {
  rows_ = static_cast<int>(tokens.size());
  FS_CHECK(rows_ > 0 && rows_ <= options_.max_rows);
  int covered = 0;
  for (const Segment& s : segments) {
    FS_CHECK(s.first_row == covered && s.rows > 0 && s.position >= 0);
    FS_CHECK(s.position + s.rows <= config_.max_positions);
    FS_CHECK(s.blocks.size() * static_cast<size_t>(options_.block_tokens) >=
             static_cast<size_t>(s.position + s.rows));
    for (int i = 0; i < s.rows; ++i) positions_[static_cast<size_t>(covered + i)] = s.position + i;
    covered += s.rows;
  }
  FS_CHECK(covered == rows_);
  const auto to_come = static_cast<int32_t>(drawing_.empty() ? 0 : drawing_.front().tokens);
  for (int32_t token : tokens) FS_CHECK(token >= -to_come && token < config_.vocab_size);
}

Status TransformerDecoder::layers(std::span<const int32_t> tokens,
                                  std::span<const Segment> segments) {
  FS_TRY(take(DecoderLoad::kTables));
  const ResidentRows* const resident = inputs_ ? &inputs_->rows() : nullptr;
  ops_->embed({.tokens = tokens,
               .positions = {positions_.data(), tokens.size()},
               .token_table = weights_.token_table->data(),
               .type = weights_.token_type,
               .position_table = weights_.position_table
                                     ? static_cast<const float*>(weights_.position_table->data())
                                     : nullptr,
               .out = x_,
               .channels = config_.hidden_size,
               .resident = resident});
  const bool swiglu = config_.mlp == MlpKind::kSwiGlu;
  const int hidden = config_.hidden_size;
  for (int l = 0; l < config_.layers; ++l) {
    FS_TRY(take(DecoderLoad::layer(l)));
    const DecoderLayer& w = weights_.layers[static_cast<size_t>(l)];
    multiply(*w.qkv, x_, w.norm1, w.norm1_bias, w.qkv_bias, DecodeEpilogue::kStore, qkv_,
             config_.qkv_width());
    ops_->attention({.shape = {config_.heads, config_.kv_heads, config_.head_dim},
                     .qkv = qkv_,
                     .segments = segments,
                     .cache = cache_.get(),
                     .layer = l,
                     .rope_table = rope_table_,
                     .q_norm = w.q_norm,
                     .k_norm = w.k_norm,
                     .epsilon = config_.norm_epsilon,
                     .window = config_.sliding_window,
                     .scale = static_cast<float>(1.0 / std::sqrt(double(config_.head_dim))),
                     .out = attended_,
                     .resident = resident});
    multiply(*w.output, attended_, nullptr, nullptr, w.output_bias, DecodeEpilogue::kAdd, x_,
             hidden);
    multiply(*w.up, x_, w.norm2, w.norm2_bias, w.up_bias,
             swiglu ? DecodeEpilogue::kSwiGlu : DecodeEpilogue::kGelu, hidden_,
             config_.mlp_width(l));
    multiply(*w.down, hidden_, nullptr, nullptr, w.down_bias, DecodeEpilogue::kAdd, x_, hidden);
  }
  return {};
}

/// Of batch rows `wanted`, or those that `resident_wanted` names; of the first `rows` without.
void TransformerDecoder::logits(int rows, std::span<const int32_t> wanted,
                                const int32_t* resident_wanted) {
  const DecodeNorm norm{config_.norm, weights_.final_norm, weights_.final_norm_bias,
                        config_.norm_epsilon};
  ops_->matmul({.weight = weights_.head.get(),
                .x = x_,
                .rows = rows,
                .x_ld = config_.hidden_size,
                .gather = wanted,
                .norm = &norm,
                .bias = nullptr,
                .epilogue = DecodeEpilogue::kStore,
                .out = logits_,
                .out_ld = config_.vocab_size,
                .resident_gather = resident_wanted});
}

void TransformerDecoder::draw(int rows) {
  ops_->draw({.logits = logits_,
              .rows = rows,
              .vocab = config_.vocab_size,
              .ld = config_.vocab_size,
              .draws = inputs_->draws(),
              .tokens = static_cast<int32_t*>(drawn_->data())});
}

/// Every row is one sequence's next token, and each is answered.
bool TransformerDecoder::decodes_only(std::span<const Segment> segments,
                                      std::span<const int32_t> wanted) const {
  if (segments.size() != wanted.size() || static_cast<int>(wanted.size()) != rows_) return false;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i] != static_cast<int32_t>(i)) return false;
  return true;
}

Status TransformerDecoder::run(std::span<const int32_t> tokens, std::span<const Segment> segments,
                               std::span<const int32_t> wanted, std::span<const TokenDraw> draws) {
  FS_CHECK(wanted.size() <= static_cast<size_t>(options_.max_logits));
  FS_CHECK(draws.empty() || draws.size() == wanted.size());
  check(tokens, segments);
  for (int32_t row : wanted) FS_CHECK(row >= 0 && row < rows_);
  const int answers = static_cast<int>(wanted.size());
  if (!inputs_) {
    FS_TRY(layers(tokens, segments));
    if (answers == 0) return {};
    FS_TRY(take_all());
    logits(answers, wanted, nullptr);
    return {};
  }
  StepShape shape{.rows = rows_, .reach = 0, .draws = !draws.empty()};
  for (const Segment& s : segments) shape.reach = std::max(shape.reach, s.position + s.rows);
  const bool captured = graphs_ && loaded() && decodes_only(segments, wanted);
  if (captured) {  // of few shapes: rows that stand nowhere fill them
    const int most = std::min(options_.max_rows, options_.max_logits);
    shape.rows = std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(rows_))), most);
    shape.reach =
        static_cast<int>(std::max(kLeastReach, std::bit_ceil(static_cast<unsigned>(shape.reach))));
  }
  inputs_->fill({tokens, segments, wanted, draws, shape.rows, shape.reach});
  // Not part of the work, which may be done several times.
  if (std::any_of(tokens.begin(), tokens.end(), [](int32_t token) { return token < 0; }))
    ops_->feed({inputs_->tokens(), static_cast<const int32_t*>(drawn_->data()), rows_});
  if (captured) rows_ = shape.rows;
  const auto work = [&](bool fused) -> Status {  // only captured steps, whose weights are there
    if (fused) ops_->begin_fused();
    FS_TRY(layers({}, segments));
    const int drawn = captured ? rows_ : answers;
    if (drawn == 0) return {};
    if (load_) FS_TRY(take(load_->head()));
    logits(drawn, {}, captured ? nullptr : inputs_->wanted());
    if (fused) ops_->end_fused();
    if (shape.draws) draw(drawn);
    return take_all();  // nobody is answered from weights that may be wrong
  };
  if (!captured) return work(false);
  const WorkWay each{"kernel by kernel", [&work] { FS_CHECK(work(false).ok()); }};
  const WorkWay fused{"as one kernel", [&work] { FS_CHECK(work(true).ok()); }};
  const bool fuses = rows_ <= ops_->fused_rows();
  if (!fuses || options_.kernels == StepKernels::kEach)
    graphs_->run(shape, {&each, 1});
  else if (options_.kernels == StepKernels::kFused)
    graphs_->run(shape, {&fused, 1});
  else
    graphs_->run(shape, std::array{each, fused});
  return {};
}

Result<std::span<const float>> TransformerDecoder::step(std::span<const int32_t> tokens,
                                                        std::span<const Segment> segments,
                                                        std::span<const int32_t> wanted) {
  FS_TRY(run(tokens, segments, wanted, {}));
  const size_t n = wanted.size() * static_cast<size_t>(config_.vocab_size);
  if (answer_ != nullptr) device_.copy_out(answer_->data(), logits_, n * sizeof(float));
  FS_TRY(settle());
  return std::span<const float>(
      answer_ != nullptr ? static_cast<const float*>(answer_->data()) : logits_, n);
}

Status TransformerDecoder::begin_drawing(std::span<const int32_t> tokens,
                                         std::span<const Segment> segments,
                                         std::span<const int32_t> wanted,
                                         std::span<const TokenDraw> draws) {
  FS_CHECK(inputs_ != nullptr && draws.size() == wanted.size());
  FS_CHECK(drawing_.empty() || (draws_ahead() && drawing_.size() == 1));
  FS_TRY(run(tokens, segments, wanted, draws));
  const size_t n = wanted.size();
  auto* const answer = static_cast<int32_t*>(drawn_answer_->data()) +
                       (odd_ ? static_cast<size_t>(options_.max_logits) : 0);
  odd_ = !odd_;
  const auto there = device_.copy_out_async(answer, drawn_->data(), n * sizeof(int32_t));
  const Nanoseconds now = SystemClock().now();
  if (drawing_.empty() && ended_) idle_ += now - *ended_;
  drawing_.push_back({n, answer, there, now});
  return {};
}

Result<std::span<const int32_t>> TransformerDecoder::drawn() {
  FS_CHECK(!drawing_.empty());
  const Drawing first = drawing_.front();
  drawing_.pop_front();
  const SystemClock clock;
  const Nanoseconds asked = clock.now();
  const bool there = device_.wait_for(first.there);  // no copy waits for a step without answers
  const Status status = there && first.tokens > 0 && !load_ ? Status() : settle();
  ended_ = clock.now();
  if (drawing_.empty() && *ended_ - asked < kAtOnce) idle_ += asked - first.begun;
  if (!status.ok()) {
    drawing_.clear();  // what follows has begun with what failed
    return status.error();
  }
  FS_CHECK(there);
  return std::span<const int32_t>(first.answer, first.tokens);
}

Result<std::span<const float>> TransformerDecoder::logits_of(size_t i) {
  const size_t vocab = static_cast<size_t>(config_.vocab_size);
  FS_CHECK(i < static_cast<size_t>(options_.max_logits));
  if (answer_ == nullptr) return std::span<const float>(logits_ + i * vocab, vocab);
  device_.copy_out(answer_->data(), logits_ + i * vocab, vocab * sizeof(float));
  FS_TRY(device_.sync());
  return std::span(static_cast<const float*>(answer_->data()), vocab);
}

Result<std::vector<double>> TransformerDecoder::score(std::span<const int32_t> tokens,
                                                      std::span<const int32_t> blocks) {
  if (tokens.size() < 2) return std::vector<double>();
  const int rows = static_cast<int>(tokens.size()) - 1;
  std::vector<double> losses(static_cast<size_t>(rows));
  const int strip = std::min(kScoreRows, options_.max_logits);
  for (int done = 0; done < rows; done += options_.max_rows) {
    const int chunk = std::min(options_.max_rows, rows - done);
    const Segment segment{.first_row = 0, .rows = chunk, .position = done, .blocks = blocks};
    const auto part = tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(chunk));
    check(part, {&segment, 1});
    if (inputs_) inputs_->fill({part, {&segment, 1}, {}, {}, chunk, done + chunk});
    FS_TRY(layers(part, {&segment, 1}));
    FS_TRY(take_all());
    for (int first = 0; first < chunk; first += strip) {
      const size_t n = static_cast<size_t>(std::min(strip, chunk - first));
      const size_t from = static_cast<size_t>(done + first);
      for (size_t i = 0; i < n; ++i) wanted_[i] = first + static_cast<int>(i);
      logits(static_cast<int>(n), {wanted_.data(), n}, nullptr);
      ops_->cross_entropy(logits_, static_cast<int>(n), config_.vocab_size, config_.vocab_size,
                          tokens.subspan(from + 1, n), losses.data() + from);
    }
  }
  FS_TRY(device_.sync());
  return losses;
}

}  // namespace fastserve
