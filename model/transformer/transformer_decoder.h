// The one Decoder: ops over paged keys and values, as graphs where steps recur.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "model/decoder.h"
#include "model/transformer/decoder_weights.h"
#include "model/transformer/host_blocks.h"
#include "model/transformer/step_graphs.h"
#include "model/transformer/step_inputs.h"

namespace fastserve {

/// What the operations of a decode step were told beforehand.
struct StepShape {
  int rows = 0, reach = 0;
  bool draws = false;
  bool operator==(const StepShape&) const = default;
};

class TransformerDecoder final : public Decoder {
 public:
  static Result<std::unique_ptr<Decoder>> make(Device& device, const ModelBundle& bundle,
                                               const DecoderOptions& options,
                                               std::function<void(double)> progress,
                                               std::function<bool()> stopped);

  bool loaded() const override { return load_ == nullptr; }
  Status load_more() override { return load_ ? take(load_->taken() + 1) : Status(); }
  Status settle() override {
    const Status settled = device_.sync();
    return load_ ? load_->keep(settled) : settled;
  }
  bool steps_while_loading() const override { return !device_.host_memory(); }
  const ModelConfig& config() const override { return config_; }
  const DecoderOptions& options() const override { return options_; }
  size_t weight_bytes() const override { return weights_.bytes_per_token; }
  size_t kv_bytes() const override { return cache_->bytes(); }
  Result<std::span<const float>> step(std::span<const int32_t> tokens,
                                      std::span<const Segment> segments,
                                      std::span<const int32_t> wanted) override;
  bool draws() const override { return inputs_ != nullptr; }
  Status begin_drawing(std::span<const int32_t> tokens, std::span<const Segment> segments,
                       std::span<const int32_t> wanted, std::span<const TokenDraw> draws) override;
  Result<std::span<const int32_t>> drawn() override;
  bool draws_ahead() const override { return draws() && loaded(); }
  Result<std::span<const float>> logits_of(size_t i) override;
  int host_places() const override { return host_blocks_ ? host_blocks_->places() : 0; }
  Status move_blocks(std::span<const BlockMove> moves) override {
    return host_blocks_ ? host_blocks_->move(moves) : Status();
  }
  int64_t graph_steps() const override { return graphs_ ? graphs_->started() : 0; }
  double idle_seconds() const override { return std::chrono::duration<double>(idle_).count(); }
  Result<std::vector<double>> score(std::span<const int32_t> tokens,
                                    std::span<const int32_t> blocks) override;

 private:
  TransformerDecoder(Device& device, const ModelConfig& config, const DecoderOptions& options)
      : device_(device), ops_(device.make_decode_ops()), config_(config), options_(options) {}
  Status allocate();
  Status take(size_t parts);
  Status take_all() { return load_ ? take(load_->parts()) : Status(); }
  void check(std::span<const int32_t> tokens, std::span<const Segment> segments);
  Status run(std::span<const int32_t> tokens, std::span<const Segment> segments,
             std::span<const int32_t> wanted, std::span<const TokenDraw> draws);
  bool decodes_only(std::span<const Segment> segments, std::span<const int32_t> wanted) const;
  Status layers(std::span<const int32_t> tokens, std::span<const Segment> segments);
  void logits(int rows, std::span<const int32_t> wanted, const int32_t* resident_wanted);
  void draw(int rows);
  void multiply(const DecodeMatrix& weight, const float* x, const float* norm,
                const float* norm_bias, const float* bias, DecodeEpilogue epilogue, float* out,
                int out_ld);

  Device& device_;
  std::unique_ptr<DecodeOps> ops_;
  const ModelConfig config_;
  DecoderOptions options_;
  DecoderWeights weights_;
  std::unique_ptr<DecoderLoad> load_;  ///< null: all weights are there
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<DeviceBuffer> memory_;
  std::unique_ptr<DeviceBuffer> answer_;  ///< logits_ on the host, when they lie elsewhere
  std::unique_ptr<StepInputs> inputs_;    ///< where the device's operations read their rows there
  std::unique_ptr<StepGraphs<StepShape>> graphs_;
  std::unique_ptr<HostBlocks> host_blocks_;
  std::unique_ptr<DeviceBuffer> drawn_, drawn_answer_;  ///< tokens, on the device and on the host
  const float* rope_table_ = nullptr;
  float *x_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr, *hidden_ = nullptr,
        *logits_ = nullptr;
  int rows_ = 0;
  std::vector<int32_t> positions_, wanted_;
  struct Drawing {
    size_t tokens;
    int32_t* answer;
    Device::CopyMark there;
    Nanoseconds begun;
  };
  std::deque<Drawing> drawing_;       ///< at work, two at most
  bool odd_ = false;                  ///< of a drawing step's number: which answer is its
  std::optional<Nanoseconds> ended_;  ///< when the last drawing step was
  Nanoseconds idle_{0};
};

}  // namespace fastserve
