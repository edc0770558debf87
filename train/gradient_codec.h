// A run of gradients as bytes, and back.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "train/backend.h"
#include "train/gradient_format.h"

namespace fastserve {

/// What one sender still owes of one slice: what earlier frames left out of their gradients (error
/// feedback, Seide et al. 2014, Karimireddy et al. 2019).
///
/// A plain value: who keeps it with the step it belongs to and puts both back goes on in the same
/// bits. A sender that joins starts with nothing, and one that forgets it loses that much gradient,
/// once. Default: nothing owed.
struct ErrorFeedback {
  std::vector<float> residual;  ///< the slice's elements, or empty: zero
  std::vector<float> basis;     ///< kLowRank: where each matrix's directions start; or empty
  float scale = 1;              ///< in which the residual is counted

  /// Gradients come times `scale` from now on (loss scaling): what is owed follows.
  void match_scale(float to);
  void drop() { *this = {}; }
  size_t bytes() const { return (residual.capacity() + basis.capacity()) * sizeof(float); }
};

/// Writes the gradients of a slice, a run of tiles, as a frame of bytes, and reads frames.
///
/// Owns:     where the tiles' parts lie in a frame, some dozens of bytes for each 4096 values. What
/// is
///           owed lies with the sender.
/// Threads:  const calls at the same time, each with its own ErrorFeedback.
/// Promises: a frame's length follows from the slice and the format alone, so that a receiver knows
/// it
///           beforehand. Its bytes follow from the values and the feedback, and what is read from
///           it from its bytes, on every machine. Gaps between tiles are not sent, and read as
///           zero. All formats but kLowRank are the same bits however tiles are cut into slices.
/// Refuses:  to write values that are not finite or 2^100 and more, naming tile and element
///           (kInvalidArgument; the feedback is untouched); fp32 carries them. To read what
///           encode() does not write: kCorrupt.
class GradientCodec {
 public:
  /// Requires at least one tile, tiles in ascending order.
  GradientCodec(GradientFormat format, std::span<const ParameterTile> tiles);

  const GradientFormat& format() const { return format_; }
  size_t begin() const { return begin_; }        ///< of the slice, in the flat buffer
  size_t elements() const { return elements_; }  ///< to the end of the last tile, gaps included
  size_t encoded_bytes() const { return bytes_; }
  /// Of a frame in fp32, which every codec of the slice reads.
  size_t exact_bytes() const { return kHeader + elements_ * sizeof(float); }
  /// What an ErrorFeedback of this slice will take.
  size_t feedback_bytes() const;

  /// Sends values + residual, and leaves in the residual what the frame does not carry. `values`:
  /// elements(); `frame`: encoded_bytes().
  Status encode(std::span<const float> values, ErrorFeedback& feedback,
                std::span<std::byte> frame) const;
  /// The same without a residual, for a sender that counts by other means what it owes. `basis` is
  /// that of an ErrorFeedback.
  Status encode_alone(std::span<const float> values, std::vector<float>& basis,
                      std::span<std::byte> frame) const;
  /// The same values in fp32, whatever the format: for what it refuses, and for a first step.
  /// `frame`: exact_bytes().
  void encode_exact(std::span<const float> values, std::span<std::byte> frame) const;

  /// Reads a frame of this format or of fp32. After an error `values` is unspecified.
  Status decode(std::span<const std::byte> frame, std::span<float> values) const;

  /// `frame`, made of `values`, was dropped by its receiver, who has had them from somebody else or
  /// has skipped the step: the residual becomes, but for rounding, what it was before.
  Status take_back(std::span<const float> values, std::span<const std::byte> frame,
                   ErrorFeedback& feedback) const;

 private:
  static constexpr size_t kHeader = 24;

  /// A block, or a matrix of low rank (rows > 0).
  struct Part {
    size_t at, n;    ///< values, from the slice's first
    size_t wire;     ///< first byte in the frame
    size_t tile;     ///< the (first) tile it belongs to
    int rows, cols;  ///< 0, or of the matrix
    size_t basis;    ///< first float in the basis
  };

  void add_blocks(size_t tile, size_t end);
  bool add_matrix(size_t tile, size_t end);
  void add_part(Part part, size_t bytes);
  GradientFormat block_format() const;
  void write_header(GradientKind kind, int setting, std::byte* out) const;
  Result<bool> check_frame(std::span<const std::byte> frame) const;
  Status check_values(std::span<const float> values, const std::vector<float>& residual) const;
  Error not_encodable(const Part& part, const float* values) const;
  Status check_basis(std::vector<float>& basis) const;
  void encode_part(const Part& part, const float* x, std::vector<float>& basis,
                   std::byte* frame) const;
  bool decode_part(const Part& part, const std::byte* frame, float* x) const;
  void clear_gaps(std::span<float> values) const;

  GradientFormat format_;
  std::vector<ParameterTile> tiles_;
  std::vector<Part> parts_;
  size_t begin_, elements_, bytes_ = kHeader, basis_elements_ = 0;
};

}  // namespace fastserve
