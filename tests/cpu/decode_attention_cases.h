// Attention over the paged KV cache: shapes, and what it is run on.
#pragma once

#include <fmt/format.h>

#include <functional>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness::decode_attention_cases {

struct Chunk {
  int sequence, position, rows;
};

inline constexpr int kSequences = 3, kContext = 320;

struct AttentionShape {
  HeadShape heads;
  int block_tokens;
  KvType type;
  int window;
  bool rope, norms;
  std::vector<std::vector<Chunk>> batches;  ///< run one after another
  int context = kContext;                   ///< that every sequence has room for
  /// Numbers that stand for a row's own in the activations, if set.
  std::function<void(float* row, int sequence, int position)> change = {};
  std::string text() const {
    return fmt::format("{}/{} heads of {}, blocks of {}, {}, window {}{}", heads.heads,
                       heads.kv_heads, heads.head_dim, block_tokens, kv_type_name(type), window,
                       norms ? ", norms" : "");
  }
};

/// Two prompts arrive, one in chunks, beside decodes; then all decode together.
inline const std::vector<std::vector<Chunk>> kMixed = {{{0, 0, 21}},
                                                       {{0, 21, 1}, {1, 0, 16}},
                                                       {{0, 22, 1}, {1, 16, 33}, {2, 0, 5}},
                                                       {{2, 5, 1}, {1, 49, 1}, {0, 23, 1}},
                                                       {{0, 24, 3}, {1, 50, 2}}};
inline const std::vector<std::vector<Chunk>> kLong = {{{0, 0, 300}, {1, 0, 1}},
                                                      {{0, 300, 1}, {1, 1, 17}}};

/// Numbers of row (sequence, position): the same however the rows are cut into batches.
inline void fill_row(float* row, int width, int sequence, int position) {
  Rng rng(61, static_cast<uint64_t>(sequence) << 40 | static_cast<uint64_t>(position) << 16);
  for (int i = 0; i < width; ++i) row[i] = static_cast<float>(rng.normal());
}

/// Block tables that interleave the sequences, last block first.
inline std::vector<int32_t> blocks_of(int sequence, int block_tokens, int context) {
  const int each = (context + block_tokens - 1) / block_tokens;
  std::vector<int32_t> blocks;
  for (int i = 0; i < each; ++i) blocks.push_back((each - 1 - i) * kSequences + sequence);
  return blocks;
}

/// Every row's attention, [sequence][position], whatever batches it came in.
inline Outputs run_attention(DecodeOps& ops, const AttentionShape& s) {
  Rng rng(62);
  const size_t dim = static_cast<size_t>(s.heads.head_dim), context = size_t(s.context);
  const int width = s.heads.width(), out_width = s.heads.heads * s.heads.head_dim;
  Array table = random_floats(rng, context * dim);
  for (size_t p = 0; p < context; ++p)
    for (size_t i = 0; i < dim / 2; ++i) {
      const double angle = static_cast<double>(p) / static_cast<double>(i + 1);
      table.floats()[p * dim + i] = static_cast<float>(std::cos(angle));
      table.floats()[p * dim + dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  Array q_norm = random_floats(rng, dim), k_norm = random_floats(rng, dim);
  const auto blocks_each = static_cast<int>(blocks_of(0, s.block_tokens, s.context).size());
  auto cache = ops.make_cache({.layers = 2,
                               .kv_heads = s.heads.kv_heads,
                               .head_dim = s.heads.head_dim,
                               .block_tokens = s.block_tokens,
                               .blocks = blocks_each * kSequences,
                               .type = s.type});
  REQUIRE(cache.ok());
  std::vector<std::vector<int32_t>> tables;
  for (int i = 0; i < kSequences; ++i) tables.push_back(blocks_of(i, s.block_tokens, s.context));

  std::vector<double> all(2 * reference::at(kSequences * s.context, out_width));
  for (int layer : {1, 0})
    for (const auto& batch : s.batches) {
      std::vector<Segment> segments;
      int rows = 0;
      for (const Chunk& c : batch) {
        segments.push_back({rows, c.rows, c.position, tables[static_cast<size_t>(c.sequence)]});
        rows += c.rows;
      }
      Array qkv = zero_floats(reference::at(rows, width));
      Array out = unwritten_floats(reference::at(rows, out_width));
      for (size_t i = 0; i < batch.size(); ++i)
        for (int t = 0; t < batch[i].rows; ++t) {
          float* const row = qkv.floats() + reference::at(segments[i].first_row + t, width);
          fill_row(row, width, batch[i].sequence + 7 * layer, batch[i].position + t);
          if (s.change) s.change(row, batch[i].sequence, batch[i].position + t);
        }
      ops.attention({.shape = s.heads,
                     .qkv = qkv.floats(),
                     .segments = segments,
                     .cache = cache->get(),
                     .layer = layer,
                     .rope_table = s.rope ? table.floats() : nullptr,
                     .q_norm = s.norms ? q_norm.floats() : nullptr,
                     .k_norm = s.norms ? k_norm.floats() : nullptr,
                     .epsilon = 1e-6f,
                     .window = s.window,
                     .scale = static_cast<float>(1 / std::sqrt(double(s.heads.head_dim))),
                     .out = out.floats()});
      CHECK(qkv.guard_intact());
      CHECK(out.guard_intact());
      for (size_t i = 0; i < batch.size(); ++i)
        for (int t = 0; t < batch[i].rows; ++t)
          for (int c = 0; c < out_width; ++c)
            all[reference::at(
                (layer * kSequences + batch[i].sequence) * s.context + batch[i].position + t,
                out_width, c)] =
                out.floats()[reference::at(segments[i].first_row + t, out_width, c)];
    }
  // A last-bit difference may move the rounding of a key or value to half precision, or of a key to
  // a code; one that is neither normed nor turned has the reference's very codes.
  Outputs outputs = {double_output("out", all, s.context + static_cast<double>(dim))};
  if (s.type == KvType::kFloat16) outputs[0].roundings = 0.125;
  if (s.type == KvType::kInt8 && (s.rope || s.norms)) outputs[0].roundings = 0.5;
  return outputs;
}

inline std::vector<AttentionShape> shapes() {
  std::vector<AttentionShape> all;
  for (const KvType type : {KvType::kFloat16, KvType::kInt8, KvType::kFloat32}) {
    all.push_back({{2, 2, 64}, 16, type, 0, true, false, kMixed});
    all.push_back({{4, 1, 64}, 16, type, 0, true, true, kMixed});
    all.push_back({{6, 2, 16}, 16, type, 9, true, false, kMixed});
    all.push_back({{3, 3, 24}, 16, type, 0, false, false, kMixed});
    all.push_back({{1, 1, 10}, 16, type, 0, true, true, kMixed});
    all.push_back({{2, 1, 128}, 16, type, 0, true, false, kLong});
    all.push_back({{8, 2, 80}, 16, type, 100, true, false, kLong});
    all.push_back({{2, 2, 32}, 32, type, 0, true, false, kMixed});
    all.push_back({{5, 5, 8}, 8, type, 1, true, false, kMixed});
    all.push_back({{4, 2, 64}, 16, type, 0, false, false, kLong});
    all.push_back({{2, 1, 5}, 16, type, 0, false, true, kMixed});
  }
  return all;
}

}  // namespace fastserve::harness::decode_attention_cases
