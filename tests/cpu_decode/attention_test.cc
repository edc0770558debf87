#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cases.h"
#include "cpu/decode/decode_ops.h"
#include "cpu/reference/reference_ops.h"

namespace fastserve {
namespace {

struct AttentionCase {
  HeadShape shape{6, 2, 64};
  KvType type = KvType::kFloat32;
  int block_tokens = 16;
  int window = 0;
  bool norms = false;
  bool rotary = true;
  int tokens = 45;  ///< of each sequence

  static constexpr int kSequences = 3;
  int blocks_each() const { return (tokens + block_tokens - 1) / block_tokens; }
};

/// A cache in which each sequence owns every third block, and the inputs of all its tokens.
class Conversation {
 public:
  Conversation(const AttentionCase& c, DecodeOps& ops) : c_(c), ops_(ops) {
    KvShape kv{2,
               c.shape.kv_heads,
               c.shape.head_dim,
               c.block_tokens,
               AttentionCase::kSequences * c.blocks_each(),
               c.type};
    cache_ = ops.make_cache(kv).value();
    for (int s = 0; s < AttentionCase::kSequences; s++) {
      blocks_.emplace_back();
      for (int b = 0; b < c.blocks_each(); b++)
        blocks_.back().push_back(b * AttentionCase::kSequences + (s + b) % 3);
      inputs_.push_back(normal_floats(static_cast<size_t>(c.tokens * c.shape.width()),
                                      20 + static_cast<uint32_t>(s)));
    }
    const auto width = static_cast<size_t>(c.shape.head_dim);
    for (int p = 0; p < c.tokens; p++)
      for (int part = 0; part < 2; part++)
        for (int i = 0; i < c.shape.head_dim / 2; i++) {
          const double angle = p * std::pow(10000.0, -2.0 * i / c.shape.head_dim);
          table_.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
        }
    q_norm_ = normal_floats(width, 30);
    k_norm_ = normal_floats(width, 31);
  }

  struct Piece {
    int sequence, position, tokens;
  };
  /// Gives the sequence's first `blocks` blocks to another one, which fills them with NaN.
  void overwrite_first_blocks(int sequence, int blocks) {
    const auto& from = blocks_[static_cast<size_t>(sequence)];
    const int other = (sequence + 1) % AttentionCase::kSequences;
    auto& to = blocks_[static_cast<size_t>(other)];
    std::copy(from.begin(), from.begin() + blocks, to.begin());
    auto& x = inputs_[static_cast<size_t>(other)];
    std::fill(x.begin(), x.end(), std::nanf(""));
    step({{other, 0, blocks * c_.block_tokens}});
  }
  /// Makes the first number of the first key and of the first value NaN.
  void spoil(int sequence) {
    auto& x = inputs_[static_cast<size_t>(sequence)];
    const auto key = static_cast<size_t>(c_.shape.heads * c_.shape.head_dim);
    x[key] = x[key + static_cast<size_t>(c_.shape.kv_heads * c_.shape.head_dim)] = std::nanf("");
  }
  /// Outputs of all pieces' tokens, in order.
  std::vector<float> step(const std::vector<Piece>& pieces) {
    std::vector<float> qkv;
    std::vector<Segment> segments;
    int row = 0;
    for (const Piece& piece : pieces) {
      const auto& x = inputs_[static_cast<size_t>(piece.sequence)];
      const ptrdiff_t width = c_.shape.width();
      qkv.insert(qkv.end(), x.begin() + piece.position * width,
                 x.begin() + (piece.position + piece.tokens) * width);
      segments.push_back(
          {row, piece.tokens, piece.position, blocks_[static_cast<size_t>(piece.sequence)]});
      row += piece.tokens;
    }
    std::vector<float> out(static_cast<size_t>(row * c_.shape.heads * c_.shape.head_dim));
    DecodeAttention op{};
    op.shape = c_.shape;
    op.qkv = qkv.data();
    op.segments = segments;
    op.cache = cache_.get();
    op.layer = 1;
    op.rope_table = c_.rotary ? table_.data() : nullptr;
    op.q_norm = c_.norms ? q_norm_.data() : nullptr;
    op.k_norm = c_.norms ? k_norm_.data() : nullptr;
    op.epsilon = 1e-6f;
    op.window = c_.window;
    op.scale = 1.0f / std::sqrt(static_cast<float>(c_.shape.head_dim));
    op.out = out.data();
    ops_.attention(op);
    return out;
  }

 private:
  AttentionCase c_;
  DecodeOps& ops_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<std::vector<float>> inputs_;
  std::vector<float> table_, q_norm_, k_norm_;
};

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> all(15);
  all[1].type = KvType::kFloat16;
  all[2].shape = {4, 4, 16};
  all[3].shape = {8, 1, 20};
  all[4].shape = {10, 1, 128};
  all[5].shape = {3, 3, 6};
  all[5].rotary = false;
  all[6].window = 7;
  all[7].norms = true;
  all[8].block_tokens = 8;
  all[9].block_tokens = 40;
  all[9].window = 19;
  all[10].tokens = 700;  // more than one chunk of the softmax
  all[10].shape = {2, 1, 32};
  all[11].tokens = 700;
  all[11].shape = {4, 2, 80};
  all[11].window = 600;
  all[11].type = KvType::kFloat16;
  all[12].tokens = 300;  // enough tiles for the most that one row takes at once, and some over
  all[12].shape = {2, 2, 48};
  all[13].type = KvType::kInt8;
  all[13].shape = {4, 2, 20};
  all[13].block_tokens = 40;
  all[14].type = KvType::kInt8;
  all[14].tokens = 700;
  all[14].shape = {4, 2, 80};
  all[14].window = 600;
  return all;
}

TEST_CASE("attention agrees with the reference for any head, block, window and cache type") {
  for (Isa isa : runnable_isas())
    for (const AttentionCase& c : cases()) {
      LanePool lanes(2);
      const auto ops = make_cpu_decode_ops(isa, lanes);
      const auto plain = make_reference_decode_ops();
      Conversation fast(c, *ops), reference(c, *plain);
      const int first = c.tokens - 8;
      // Prompts of unlike lengths, then a mix of a chunk and single tokens.
      std::vector<std::vector<Conversation::Piece>> steps = {{{0, 0, first}, {2, 0, 5}},
                                                             {{2, 5, 3}, {0, first, 1}, {1, 0, 4}},
                                                             {{1, 4, 1}, {2, 8, 1}}};
      for (const auto& pieces : steps) {
        const auto out = fast.step(pieces), expected = reference.step(pieces);
        double worst = 0;
        for (size_t i = 0; i < out.size(); i++)
          worst = std::max(worst, std::abs(static_cast<double>(out[i]) - expected[i]));
        INFO(isa_name(isa), " head ", c.shape.head_dim, " block ", c.block_tokens, " window ",
             c.window, " tokens ", c.tokens);
        // Scores of a few units carry a few float roundings; a key or value at the border of two
        // halves may fall to either side, and a key at that of two codes.
        CHECK(worst <= (c.type == KvType::kInt8 ? 4e-3 : c.type == KvType::kFloat16 ? 1e-3 : 2e-5));
      }
    }
}

TEST_CASE("a token's attention has the same bits alone, in a chunk, in any batch, on any lanes") {
  for (Isa isa : runnable_isas())
    for (const AttentionCase& c : cases()) {
      std::vector<float> alone;
      {
        LanePool lanes(1);
        const auto ops = make_cpu_decode_ops(isa, lanes);
        Conversation one(c, *ops);
        for (int p = 0; p < c.tokens; p++) {
          const auto out = one.step({{0, p, 1}});
          alone.insert(alone.end(), out.begin(), out.end());
        }
      }
      const auto row = static_cast<size_t>(c.shape.heads * c.shape.head_dim);
      const auto same = [&](const std::vector<float>& out, size_t out_row, int position, int n) {
        return std::memcmp(&out[out_row * row], &alone[static_cast<size_t>(position) * row],
                           static_cast<size_t>(n) * row * sizeof(float)) == 0;
      };
      for (int pool : {1, 2, 3})
        for (int chunk : {c.tokens, 7, 16}) {
          LanePool lanes(pool);
          const auto ops = make_cpu_decode_ops(isa, lanes);
          Conversation other(c, *ops);
          INFO(isa_name(isa), " head ", c.shape.head_dim, " block ", c.block_tokens, " window ",
               c.window, " lanes ", pool, " chunk ", chunk);
          for (int p = 0; p < c.tokens; p += chunk) {
            const int n = std::min(chunk, c.tokens - p);
            const auto out = other.step({{1, p, n}, {0, p, n}, {2, p, 1}});
            REQUIRE(same(out, static_cast<size_t>(n), p, n));
          }
        }
    }
}

TEST_CASE("what an earlier owner left in a block does not reach the next") {
  AttentionCase c;
  LanePool lanes(1);
  const auto ops = make_cpu_decode_ops(best_isa(), lanes);
  Conversation fresh(c, *ops), used(c, *ops);
  const auto expected = fresh.step({{0, 0, 20}});
  used.step({{0, 0, c.tokens}});
  const auto out = used.step({{0, 0, 20}});
  CHECK(out == expected);
}

TEST_CASE("blocks that a sliding window has left behind may hold anything") {
  for (Isa isa : runnable_isas())
    for (KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kInt8}) {
      AttentionCase c;
      c.window = 10;
      c.type = type;
      LanePool lanes(1);
      const auto ops = make_cpu_decode_ops(isa, lanes);
      Conversation fresh(c, *ops), reused(c, *ops);
      fresh.step({{0, 0, 43}});
      reused.step({{0, 0, 43}});
      reused.overwrite_first_blocks(0, 2);  // positions 0..31; token 43 sees 34..43
      CHECK(reused.step({{0, 43, 2}}) == fresh.step({{0, 43, 2}}));
    }
}

TEST_CASE("a head that is not finite is so in what sees it, and nowhere else") {
  for (Isa isa : runnable_isas())
    for (KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kInt8}) {
      AttentionCase c;
      c.type = type;
      LanePool lanes(1);
      const auto ops = make_cpu_decode_ops(isa, lanes);
      Conversation one(c, *ops);
      one.spoil(1);  // its only number that is not finite: the first of its keys and values
      const auto out = one.step({{0, 0, 5}, {1, 0, 5}});
      const size_t row = static_cast<size_t>(c.shape.heads * c.shape.head_dim);
      CHECK(std::all_of(out.begin(), out.begin() + static_cast<ptrdiff_t>(5 * row),
                        [](float v) { return std::isfinite(v); }));
      for (size_t r = 5; r < 10; r++) CHECK(std::isnan(out[r * row]));
    }
}

TEST_CASE("a cache that cannot be had is refused with its size") {
  LanePool lanes(1);
  const auto ops = make_cpu_decode_ops(best_isa(), lanes);
  const auto huge = ops->make_cache({1000, 1000, 128, 16, 1 << 30, KvType::kFloat32});
  REQUIRE_FALSE(huge.ok());
  CHECK(huge.error().code == ErrorCode::kResourceExhausted);
  CHECK(huge.error().what.starts_with("the KV cache needs "));
  const auto none = ops->make_cache({1, 1, 64, 16, 0, KvType::kFloat32});
  REQUIRE_FALSE(none.ok());
  CHECK(none.error().code == ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace fastserve
