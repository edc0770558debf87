#include "train/gradient_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "train/gradient_blocks.h"
#include "train/gradient_low_rank.h"

namespace fastserve {
namespace {

constexpr uint32_t kMagic = 0x31475346;  // "FSG1"

struct Header {
  uint32_t magic;
  GradientKind kind;
  uint8_t unused;
  uint16_t setting;  // kept or rank
  uint64_t begin, elements;
};
static_assert(sizeof(Header) == 24);

int setting_of(const GradientFormat& format) {
  return format.kind == GradientKind::kTopK ? format.kept : format.rank;
}

Error corrupt(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), "a frame of gradients",
          "the sender is of another version, or another job's"};
}

}  // namespace

void ErrorFeedback::match_scale(float to) {
  FS_CHECK(to > 0 && std::isfinite(to));
  if (to == scale) return;
  for (float& owed : residual) owed *= to / scale;
  scale = to;
}

GradientCodec::GradientCodec(GradientFormat format, std::span<const ParameterTile> tiles)
    : format_(format), tiles_(tiles.begin(), tiles.end()) {
  FS_CHECK(!tiles.empty());
  begin_ = tiles.front().offset;
  elements_ = tiles.back().offset + tiles.back().size - begin_;
  for (size_t tile = 0, end; tile < tiles.size(); tile = end) {
    // A matrix of low rank is as many tiles of one matrix as lie in the slice.
    end = tile + 1;
    if (format.kind == GradientKind::kLowRank) {
      const auto follows = [&](const ParameterTile& before, const ParameterTile& after) {
        return before.rows > 0 && after.rows > 0 && before.matrix == after.matrix &&
               after.row == before.row + before.rows &&
               after.offset == before.offset + before.size &&
               before.size / static_cast<size_t>(before.rows) ==
                   after.size / static_cast<size_t>(after.rows);
      };
      while (end < tiles.size() && follows(tiles[end - 1], tiles[end])) end++;
      if (add_matrix(tile, end)) continue;
    }
    add_blocks(tile, end);
  }
  if (format.kind == GradientKind::kFloat32) bytes_ = exact_bytes();  // gaps and all, in one copy
}

/// False when the matrix is better sent as it is.
bool GradientCodec::add_matrix(size_t tile, size_t end) {
  int rows = 0;
  for (size_t i = tile; i < end; i++) rows += tiles_[i].rows;
  if (rows < 2) return false;
  const int cols = static_cast<int>(tiles_[tile].size / static_cast<size_t>(tiles_[tile].rows));
  if (!LowRank::pays(rows, cols, format_.rank)) return false;
  const LowRank matrix(rows, cols, format_.rank);
  const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(cols);
  add_part({tiles_[tile].offset - begin_, n, 0, tile, rows, cols, basis_elements_}, matrix.bytes());
  basis_elements_ += matrix.basis_elements();
  return true;
}

void GradientCodec::add_blocks(size_t tile, size_t end) {
  for (; tile < end; tile++)
    for (size_t at = 0; at < tiles_[tile].size; at += kGradientBlock) {
      const size_t n = std::min(kGradientBlock, tiles_[tile].size - at);
      add_part({tiles_[tile].offset - begin_ + at, n, 0, tile, 0, 0, 0},
               block_bytes(block_format(), n));
    }
}

void GradientCodec::add_part(Part part, size_t bytes) {
  FS_CHECK(parts_.empty() || part.at >= parts_.back().at + parts_.back().n);
  part.wire = bytes_;
  parts_.push_back(part);
  bytes_ += bytes;
}

GradientFormat GradientCodec::block_format() const {
  if (format_.kind == GradientKind::kLowRank) return {GradientKind::kBFloat16, 0, 0};
  return format_;
}

size_t GradientCodec::feedback_bytes() const {
  return format_.keeps_residual() ? (elements_ + basis_elements_) * sizeof(float) : 0;
}

void GradientCodec::write_header(GradientKind kind, int setting, std::byte* out) const {
  const Header header{kMagic, kind, 0, static_cast<uint16_t>(setting), begin_, elements_};
  std::memcpy(out, &header, sizeof(header));
}

/// Whether the frame is one in fp32.
Result<bool> GradientCodec::check_frame(std::span<const std::byte> frame) const {
  if (frame.size() < kHeader) return corrupt(fmt::format("has {} bytes", frame.size()));
  Header header;
  std::memcpy(&header, frame.data(), sizeof(header));
  if (header.magic != kMagic || header.unused != 0) return corrupt("does not begin as one");
  if (header.begin != begin_ || header.elements != elements_)
    return corrupt(fmt::format("holds {} values from {} on, and is for {} from {} on",
                               header.elements, header.begin, elements_, begin_));
  const bool exact = header.kind == GradientKind::kFloat32;
  const GradientFormat expected = exact ? GradientFormat{} : format_;
  if (header.kind != expected.kind || header.setting != setting_of(expected))
    return corrupt(fmt::format("is of kind {} ({}), and {} is expected",
                               static_cast<int>(header.kind), header.setting, expected.text()));
  const size_t bytes = exact ? exact_bytes() : bytes_;
  if (frame.size() != bytes)
    return corrupt(fmt::format("has {} bytes, and {} are expected", frame.size(), bytes));
  return exact;
}

Error GradientCodec::not_encodable(const Part& part, const float* values) const {
  size_t i = 0;
  while (i + 1 < part.n && encodable(values + i, 1)) i++;
  const size_t element = begin_ + part.at + i;
  size_t tile = part.tile;
  while (element >= tiles_[tile].offset + tiles_[tile].size) tile++;
  return {ErrorCode::kInvalidArgument,
          fmt::format("is {}, which {} does not carry", values[i], format_.text()),
          fmt::format("the gradient of element {} (tile {} of the slice, its element {})", element,
                      tile, element - tiles_[tile].offset),
          "lower the learning rate, or look at the data of this step; fp32 would carry it"};
}

Status GradientCodec::check_values(std::span<const float> values,
                                   const std::vector<float>& residual) const {
  std::vector<float> sum;
  for (const Part& part : parts_) {
    const float* x = values.data() + part.at;
    if (!encodable(x, part.n)) return not_encodable(part, x);
    if (residual.empty()) continue;
    sum.resize(std::max(sum.size(), part.n));
    for (size_t i = 0; i < part.n; i++) sum[i] = x[i] + residual[part.at + i];
    if (!encodable(sum.data(), part.n)) return not_encodable(part, sum.data());
  }
  return {};
}

/// A basis comes back from a checkpoint: a bad one is not a bug here.
Status GradientCodec::check_basis(std::vector<float>& basis) const {
  if (basis.empty()) basis.resize(basis_elements_);
  if (basis.size() == basis_elements_ && encodable(basis.data(), basis.size())) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("holds {} values of a basis and not {}, or some that are not finite",
                           basis.size(), basis_elements_),
               "the feedback of a slice", "drop it"};
}

void GradientCodec::encode_part(const Part& part, const float* x, std::vector<float>& basis,
                                std::byte* frame) const {
  if (part.rows > 0)
    LowRank(part.rows, part.cols, format_.rank)
        .encode(x, basis.data() + part.basis, frame + part.wire);
  else
    encode_block(block_format(), x, part.n, frame + part.wire);
}

bool GradientCodec::decode_part(const Part& part, const std::byte* frame, float* x) const {
  if (part.rows > 0)
    return LowRank(part.rows, part.cols, format_.rank).decode(frame + part.wire, x);
  return decode_block(block_format(), frame + part.wire, part.n, x);
}

Status GradientCodec::encode(std::span<const float> values, ErrorFeedback& feedback,
                             std::span<std::byte> frame) const {
  if (!format_.keeps_residual()) return encode_alone(values, feedback.basis, frame);
  FS_CHECK(values.size() == elements_ && frame.size() == bytes_);
  std::vector<float>& residual = feedback.residual;
  if (!residual.empty() && residual.size() != elements_)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("holds {} values, and the slice {}", residual.size(), elements_),
                 "the feedback of a slice", "drop it"};
  FS_TRY(check_values(values, residual));
  FS_TRY(check_basis(feedback.basis));
  residual.resize(elements_);
  write_header(format_.kind, setting_of(format_), frame.data());
  std::vector<float> sent(kGradientBlock);
  for (const Part& part : parts_) {
    float* owed = residual.data() + part.at;
    const float* x = values.data() + part.at;
    for (size_t i = 0; i < part.n; i++) owed[i] += x[i];
    encode_part(part, owed, feedback.basis, frame.data());
    sent.resize(std::max(sent.size(), part.n));
    FS_CHECK(decode_part(part, frame.data(), sent.data()));
    for (size_t i = 0; i < part.n; i++) owed[i] -= sent[i];
  }
  return {};
}

Status GradientCodec::encode_alone(std::span<const float> values, std::vector<float>& basis,
                                   std::span<std::byte> frame) const {
  FS_CHECK(values.size() == elements_ && frame.size() == bytes_);
  if (format_.kind == GradientKind::kFloat32) {
    encode_exact(values, frame);
    return {};
  }
  FS_TRY(check_basis(basis));
  if (format_.kind == GradientKind::kLowRank) FS_TRY(check_values(values, {}));  // before the basis
  write_header(format_.kind, setting_of(format_), frame.data());
  for (const Part& part : parts_) {
    const float* x = values.data() + part.at;
    if (!encodable(x, part.n)) return not_encodable(part, x);
    encode_part(part, x, basis, frame.data());
  }
  return {};
}

void GradientCodec::encode_exact(std::span<const float> values, std::span<std::byte> frame) const {
  FS_CHECK(values.size() == elements_ && frame.size() == exact_bytes());
  write_header(GradientKind::kFloat32, 0, frame.data());
  std::memcpy(frame.data() + kHeader, values.data(), values.size_bytes());
}

void GradientCodec::clear_gaps(std::span<float> values) const {
  size_t at = 0;
  for (const Part& part : parts_) {
    std::fill(values.data() + at, values.data() + part.at, 0.0f);
    at = part.at + part.n;
  }
}

Status GradientCodec::decode(std::span<const std::byte> frame, std::span<float> values) const {
  FS_CHECK(values.size() == elements_);
  FS_ASSIGN(const bool exact, check_frame(frame));
  if (exact) std::memcpy(values.data(), frame.data() + kHeader, values.size_bytes());
  clear_gaps(values);
  if (exact) return {};
  for (const Part& part : parts_)
    if (!decode_part(part, frame.data(), values.data() + part.at))
      return corrupt(fmt::format("holds what {} does not write, at byte {} and after",
                                 format_.text(), part.wire));
  return {};
}

Status GradientCodec::take_back(std::span<const float> values, std::span<const std::byte> frame,
                                ErrorFeedback& feedback) const {
  FS_CHECK(values.size() == elements_);
  if (!format_.keeps_residual() || feedback.residual.empty()) return {};
  std::vector<float> sent(elements_);
  FS_TRY(decode(frame, sent));
  for (const Part& part : parts_)
    for (size_t i = part.at; i < part.at + part.n; i++) feedback.residual[i] += sent[i] - values[i];
  return {};
}

}  // namespace fastserve
