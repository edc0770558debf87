#include "serve/memory.h"

#include <algorithm>
#include <bit>

#include "model/parameters.h"

namespace fastserve {
namespace {

/// Codes and scales. Packing pads a panel's columns, which is noise beside the rest.
uint64_t matrix_bytes(uint64_t rows, uint64_t cols, WeightFormat format) {
  uint64_t bytes = rows * cols * static_cast<uint64_t>(format_bits(format)) / 8;
  if (!is_quantised(format)) return bytes;
  const uint64_t group = static_cast<uint64_t>(format_group(format));
  return bytes + rows * (group > 0 ? (cols + group - 1) / group : 1) * sizeof(float);
}

/// What gpu/staging.h takes on the device for matrices of so many bytes at the most: a ring of
/// eight pieces, little ones for a little model.
uint64_t staged_bytes(uint64_t matrix) {
  constexpr uint64_t kPieces = 8, kMost = uint64_t{2} << 20, kLeast = uint64_t{1} << 20;
  const uint64_t piece = std::bit_ceil(matrix >= kLeast / 4 ? std::max(matrix, kLeast) : matrix);
  return kPieces * std::min(piece, kMost);
}

bool begins(const Block& block, const Parameter& parameter) {
  return !block.empty() && parameter.offset == block.offset;
}

}  // namespace

DecoderMemory estimate_decoder_memory(const ModelConfig& config,
                                      const std::map<std::string, WeightFormat>& formats,
                                      const DecoderOptions& options, DType token_table) {
  const ParameterLayout layout(config);
  DecoderMemory memory;
  const auto format_of = [&](const std::string& name) {
    const auto it = formats.find(name);
    return it == formats.end() ? options.weights : it->second;
  };
  const auto head_format = [&] {
    for (const Parameter& p : layout.parameters())
      if (begins(layout.head(), p) && !formats.contains("lm_head.weight")) return format_of(p.name);
    return format_of("lm_head.weight");
  };
  uint64_t largest = 0;
  for (const Parameter& p : layout.parameters()) {
    const uint64_t rows = static_cast<uint64_t>(p.rows), cols = static_cast<uint64_t>(p.cols);
    largest = std::max(largest, rows * cols);
    if (begins(layout.token_embedding(), p))  // quantised, it is kept in half precision
      memory.weights +=
          rows * cols * dtype_bytes(formats.contains(p.name) ? DType::kF16 : token_table);
    else if (p.decay && !begins(layout.position_embedding(), p))
      memory.weights += matrix_bytes(rows, cols, format_of(p.name));
    else
      memory.weights += rows * cols * sizeof(float);
  }
  const uint64_t vocab = static_cast<uint64_t>(config.vocab_size);
  const uint64_t hidden = static_cast<uint64_t>(config.hidden_size);
  if (config.tied_embeddings)  // the head is packed beside the table
    memory.weights += matrix_bytes(vocab, hidden, head_format());

  const uint64_t positions =
      static_cast<uint64_t>(options.kv_blocks) * static_cast<uint64_t>(options.block_tokens);
  memory.kv_token = 2 * static_cast<uint64_t>(config.layers) *
                    static_cast<uint64_t>(config.kv_heads) *
                    kv_head_bytes(options.kv, config.head_dim);
  memory.kv = positions * memory.kv_token;

  int widest = 0;
  for (int l = 0; l < config.layers; ++l) widest = std::max(widest, config.mlp_width(l));
  const uint64_t row =
      hidden + static_cast<uint64_t>(config.qkv_width() + widest + config.heads * config.head_dim);
  const int logits = options.max_logits > 0 ? options.max_logits : options.max_rows;
  memory.activations =
      (static_cast<uint64_t>(options.max_rows) * row + static_cast<uint64_t>(logits) * vocab) *
      sizeof(float);
  memory.loading = largest * sizeof(float);
  return memory;
}

DecoderMemory on_device(DecoderMemory memory, const ModelConfig& config,
                        const DecoderOptions& options) {
  constexpr uint64_t kMostPartials = uint64_t{64} << 20;  // gpu/decode_attention.cc's
  int widest = std::max(config.hidden_size, config.heads * config.head_dim);
  for (int l = 0; l < config.layers; ++l) widest = std::max(widest, config.mlp_width(l));
  // Of several parameters that are multiplied as one matrix, as floats.
  const int fused = std::max(config.qkv_width(), 2 * widest);
  memory.loading = staged_bytes(std::max(
      memory.loading,
      static_cast<uint64_t>(fused) * static_cast<uint64_t>(config.hidden_size) * sizeof(float)));
  // Partial results: of each answer's chunks of 128 positions, where there are several.
  const int64_t pool = int64_t{options.kv_blocks} * options.block_tokens;
  const uint64_t chunks =
      static_cast<uint64_t>((std::min<int64_t>(pool, config.max_positions) + 127) / 128);
  const uint64_t partials = chunks > 1 ? chunks * static_cast<uint64_t>(options.max_logits) *
                                             static_cast<uint64_t>(config.heads) *
                                             static_cast<uint64_t>(config.head_dim + 2) * 4
                                       : 0;
  const uint64_t rows = static_cast<uint64_t>(options.max_rows) * static_cast<uint64_t>(widest) * 4;
  memory.activations += (rows + std::min(partials, kMostPartials)) * 5 / 4;
  return memory;
}

}  // namespace fastserve
