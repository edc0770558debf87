// How a decoder comes to be: its memory, and its weights part by part.
#include <algorithm>

#include "model/huggingface.h"
#include "model/transformer/decoder_options.h"
#include "model/transformer/rope_table.h"
#include "model/transformer/transformer_decoder.h"

namespace fastserve {

Result<std::unique_ptr<Decoder>> TransformerDecoder::make(Device& device, const ModelBundle& bundle,
                                                          const DecoderOptions& options,
                                                          std::function<void(double)> progress,
                                                          std::function<bool()> stopped) {
  FS_TRY(check_options(options));
  FS_ASSIGN(const ModelConfig config, bundle_config(bundle));
  std::unique_ptr<TransformerDecoder> decoder(new TransformerDecoder(device, config, options));
  if (options.max_logits == 0) decoder->options_.max_logits = options.max_rows;
  FS_TRY(decoder->allocate());
  FS_ASSIGN(decoder->load_,
            DecoderLoad::begin(device, *decoder->ops_, bundle, config, options.weights,
                               {std::move(progress), std::move(stopped)}));
  return std::unique_ptr<Decoder>(std::move(decoder));
}

/// Takes weights until so many parts of them are there.
Status TransformerDecoder::take(size_t parts) {
  if (!load_) return {};
  FS_TRY(load_->take(weights_, parts));
  if (load_->taken() == load_->parts()) load_.reset();
  return {};
}

Status TransformerDecoder::allocate() {
  FS_ASSIGN(cache_, ops_->make_cache({.layers = config_.layers,
                                      .kv_heads = config_.kv_heads,
                                      .head_dim = config_.head_dim,
                                      .block_tokens = options_.block_tokens,
                                      .blocks = options_.kv_blocks,
                                      .type = options_.kv}));
  if (ops_->block_bytes(*cache_) > 0)
    host_blocks_ = std::make_unique<HostBlocks>(device_, *ops_, *cache_, options_);
  int widest = 0;
  for (int l = 0; l < config_.layers; ++l) widest = std::max(widest, config_.mlp_width(l));
  const int64_t reach = int64_t{options_.kv_blocks} * options_.block_tokens;
  std::vector<float> rope;
  if (config_.rope)
    rope = rope_table(config_, static_cast<int>(std::min<int64_t>(config_.max_positions, reach)));

  size_t floats = 0;
  const auto take = [&](size_t rows, int columns) {
    const size_t begin = floats;
    floats += (rows * static_cast<size_t>(columns) + 15) / 16 * 16;
    return begin;
  };
  const size_t rows = static_cast<size_t>(options_.max_rows);
  const size_t x = take(rows, config_.hidden_size), qkv = take(rows, config_.qkv_width());
  const size_t attended = take(rows, config_.heads * config_.head_dim), hidden = take(rows, widest);
  const size_t table = take(rope.size(), 1);
  const size_t logits = take(static_cast<size_t>(options_.max_logits), config_.vocab_size);
  FS_ASSIGN(memory_, device_.allocate(floats * sizeof(float)));
  float* base = static_cast<float*>(memory_->data());
  x_ = base + x;
  qkv_ = base + qkv;
  attended_ = base + attended;
  hidden_ = base + hidden;
  logits_ = base + logits;
  if (config_.rope) {
    device_.copy_in(base + table, rope.data(), rope.size() * sizeof(float));
    rope_table_ = base + table;
  }
  if (!device_.host_memory()) {
    FS_ASSIGN(answer_,
              device_.allocate_host(static_cast<size_t>(options_.max_logits) *
                                    static_cast<size_t>(config_.vocab_size) * sizeof(float)));
  }
  if (ops_->resident()) {
    FS_ASSIGN(inputs_, StepInputs::make(device_, options_, config_.max_positions));
    const size_t bytes = static_cast<size_t>(options_.max_logits) * sizeof(int32_t);
    FS_ASSIGN(drawn_, device_.allocate(bytes));
    FS_ASSIGN(drawn_answer_, device_.allocate_host(2 * bytes));
    if (device_.captures() && options_.graphs > 0)
      graphs_ = std::make_unique<StepGraphs<StepShape>>(
          device_, [this] { return ops_->scratch_version(); }, options_.graphs, "decode steps");
  }
  positions_.resize(rows);
  wanted_.resize(rows);
  return {};
}

Result<std::unique_ptr<Decoder>> Decoder::begin(Device& device, const ModelBundle& bundle,
                                                const DecoderOptions& options,
                                                std::function<void(double)> progress,
                                                std::function<bool()> stopped) {
  return TransformerDecoder::make(device, bundle, options, std::move(progress), std::move(stopped));
}

Result<std::unique_ptr<Decoder>> Decoder::load(Device& device, const ModelBundle& bundle,
                                               const DecoderOptions& options,
                                               const std::function<void(double)>& progress) {
  FS_ASSIGN(auto decoder, begin(device, bundle, options, progress));
  while (!decoder->loaded()) FS_TRY(decoder->load_more());
  return decoder;
}

}  // namespace fastserve
