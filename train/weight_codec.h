// New weights as bytes on their way to those who compute with them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model/parameters.h"
#include "train/gradient_codec.h"

namespace fastserve {

/// The tiles whose weights are nothing but multiplied with, so that a device that multiplies in
/// bf16 rounds them to bf16 itself. A tied token embedding is looked up as well, and is none of
/// them.
std::vector<bool> only_multiplied(const ParameterLayout& layout,
                                  std::span<const ParameterTile> tiles);

/// What the nodes hold of a shard's slice, as the shard knows it. A plain value. The difference to
/// the masters is what the shard owes them, so that no residual is kept beside it.
struct WeightShadow {
  uint64_t version = 0;        ///< frames sent
  std::vector<float> weights;  ///< kDelta: elements(); else empty
  std::vector<float> basis;    ///< of the delta's format
  size_t bytes() const { return (weights.capacity() + basis.capacity()) * sizeof(float); }
};

/// Writes a slice of weights for all nodes at once, and reads it on each.
///
/// kExact and kBFloat16 frames are whole: each stands alone. A kDelta frame is the way from one
/// version to the next; a node that has just joined, or missed one, gets encode_whole() first.
/// Threads:  const calls at the same time, each with its own shadow or weights.
/// Promises: a frame's length follows from slice and format alone. After each frame every node
/// holds the
///           same bits: the shadow's, with kDelta.
/// Refuses:  as GradientCodec does; and a delta that does not begin where the node is
///           (kUnavailable: ask for the whole).
class WeightCodec {
 public:
  /// `only_multiplied`: one for each tile, for kBFloat16; empty: none.
  WeightCodec(WeightsBack format, std::span<const ParameterTile> tiles,
              std::vector<bool> only_multiplied);

  const WeightsBack& format() const { return format_; }
  size_t begin() const { return delta_.begin(); }
  size_t elements() const { return delta_.elements(); }
  size_t encoded_bytes() const;
  size_t whole_bytes() const;

  /// A shadow for nodes that all hold `masters` (elements()) as version `version`.
  WeightShadow shadow_of(std::span<const float> masters, uint64_t version = 0) const;

  /// The next version. `frame`: encoded_bytes().
  Status encode(std::span<const float> masters, WeightShadow& shadow,
                std::span<std::byte> frame) const;
  /// What nodes hold at the shadow's version, in fp32; requires kDelta. `frame`: whole_bytes().
  void encode_whole(const WeightShadow& shadow, std::span<std::byte> frame) const;
  /// Brings a node's weights (elements()) and their version up to the frame's. After an error of
  /// kind kCorrupt both are as they were.
  Status decode(std::span<const std::byte> frame, std::span<float> weights,
                uint64_t& version) const;

 private:
  static constexpr size_t kHeader = 24;

  Status encode_payload(std::span<const float> masters, WeightShadow& shadow,
                        std::span<std::byte> payload) const;
  Status encode_rounded(std::span<const float> masters, std::span<std::byte> payload) const;
  Status decode_rounded(std::span<const std::byte> payload, std::span<float> weights) const;

  WeightsBack format_;
  GradientCodec delta_;
  std::vector<ParameterTile> tiles_;
  std::vector<bool> only_multiplied_;
  size_t rounded_bytes_ = 0;
};

}  // namespace fastserve
