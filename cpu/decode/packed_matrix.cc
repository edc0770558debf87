#include "cpu/decode/packed_matrix.h"

#include <cstring>
#include <string>
#include <vector>

#include "base/half.h"

namespace fastserve {
namespace {

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

Error refused(std::string what) {
  return Error{ErrorCode::kInvalidArgument, std::move(what), "a weight matrix",
               "every part must have the matrix's input and format"};
}

Status check(const DecodeMatrixSource& source) {
  if (source.in < 1 || source.parts.empty()) return refused("the matrix is empty");
  int64_t out = 0;
  for (const DecodeMatrixSource::Part& part : source.parts) {
    if (part.rows < 1) return refused("a part has no rows");
    out += part.rows;
    const size_t elements = static_cast<size_t>(part.rows) * static_cast<size_t>(source.in);
    if (!is_quantised(source.format)) {
      if (part.quantised != nullptr || part.floats.size() != elements)
        return refused("a part holds " + std::to_string(part.floats.size()) + " floats, not " +
                       std::to_string(elements));
      continue;
    }
    const QuantisedMatrix* q = part.quantised;
    if (q == nullptr || q->format != source.format || q->rows != part.rows ||
        q->cols != source.in || q->codes.size() != elements ||
        q->scales.size() != static_cast<size_t>(part.rows) * static_cast<size_t>(q->groups()))
      return refused("a part is not " + std::string(weight_format_name(source.format)) + " [" +
                     std::to_string(part.rows) + ", " + std::to_string(source.in) + "]");
  }
  if (source.swiglu && (source.parts.size() != 2 || source.parts[0].rows != source.parts[1].rows))
    return refused("gate and up must be two parts of equal rows");
  if (out > (1 << 30) || source.in > (1 << 28)) return refused("the matrix is too large");
  return {};
}

uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}
void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, sizeof word); }

/// The bytes of codes [from, from + 4), zeros past the end.
uint32_t codes_word(const uint8_t* codes, int from, int in) {
  if (from + 4 <= in) return load_word(codes + from);
  uint32_t word = 0;
  for (int i = from; i < in; i++) word |= uint32_t{codes[i]} << (8 * (i - from));
  return word;
}

}  // namespace

Result<WeightMemory::Piece> WeightMemory::take(size_t bytes) {
  constexpr size_t kShared = size_t{32} << 20;  // what small matrices are gathered in
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > kShared / 4) {
    FS_ASSIGN(HostMemory own, HostMemory::allocate(bytes, "a weight matrix"));
    auto owner = std::make_shared<HostMemory>(std::move(own));
    return Piece{owner, owner->data()};
  }
  if (open_ == nullptr || used_ + bytes > open_->size()) {
    FS_ASSIGN(HostMemory fresh, HostMemory::allocate(kShared, "a weight matrix"));
    open_ = std::make_shared<HostMemory>(std::move(fresh));
    used_ = 0;
  }
  std::byte* data = open_->data() + used_;
  used_ += bytes;
  return Piece{open_, data};
}

PackedMatrix::PackedMatrix(const DecodeMatrixSource& source, int out)
    : DecodeMatrix(out, source.in, source.format), swiglu_(source.swiglu) {
  depth_ = round_up(in_, 16);
  int bits = 32;
  switch (format_) {
    case WeightFormat::kFloat32:
      kind_ = PanelKind::kFloat32;
      break;
    case WeightFormat::kFloat16:
      kind_ = PanelKind::kFloat16, bits = 16;
      break;
    case WeightFormat::kBFloat16:
      kind_ = PanelKind::kBFloat16, bits = 16;
      break;
    case WeightFormat::kInt8Row:
      kind_ = PanelKind::kInt8Row, bits = 8, group_ = 128;
      break;
    case WeightFormat::kInt8Group32:
      kind_ = PanelKind::kInt8, bits = 8, group_ = 32;
      break;
    case WeightFormat::kInt8Group128:
      kind_ = PanelKind::kInt8, bits = 8, group_ = 128;
      break;
    case WeightFormat::kInt4Group32:
      kind_ = PanelKind::kInt4, bits = 4, group_ = 32;
      break;
    case WeightFormat::kInt4Group128:
      kind_ = PanelKind::kInt4, bits = 4, group_ = 128;
      break;
  }
  if (group_ != 0) {
    zero_ = bits == 8 ? 128 : 8;
    groups_ = (depth_ + group_ - 1) / group_;
    scale_groups_ = kind_ == PanelKind::kInt8Row ? 1 : groups_;
    const size_t bytes = kind_ == PanelKind::kInt8Row ? sizeof(float) : sizeof(uint16_t);
    header_ = (static_cast<size_t>(scale_groups_) * kPanelColumns * bytes + 63) / 64 * 64;
  }
  panel_ = header_ + static_cast<size_t>(depth_) * kPanelColumns * static_cast<size_t>(bits) / 8;
  panel_ = (panel_ + 63) / 64 * 64;
  const int columns = round_up(this->columns(), kPanelColumns);
  panels_ = round_up(columns / kPanelColumns * (swiglu_ ? 2 : 1), kQuad);
}

Result<std::unique_ptr<PackedMatrix>> PackedMatrix::make(const DecodeMatrixSource& source,
                                                         const DecodeKernels& kernels,
                                                         LanePool& lanes, WeightMemory& memory) {
  FS_TRY(check(source));
  int out = 0;
  for (const DecodeMatrixSource::Part& part : source.parts) out += part.rows;
  std::unique_ptr<PackedMatrix> matrix(new PackedMatrix(source, out));
  FS_ASSIGN(WeightMemory::Piece piece, memory.take(matrix->bytes()));
  matrix->memory_ = std::move(piece.owner);
  matrix->weights_ = reinterpret_cast<uint8_t*>(piece.data);
  const auto depth = static_cast<size_t>(matrix->depth_);
  std::vector<uint16_t> halves(depth * static_cast<size_t>(lanes.lanes()));
  lanes.run(matrix->panels_, [&](int64_t panel, int lane) {
    matrix->pack_panel(source, kernels, static_cast<int>(panel),
                       halves.data() + depth * static_cast<size_t>(lane));
  });
  return matrix;
}

PackedMatrix::Column PackedMatrix::column(const DecodeMatrixSource& source, int panel,
                                          int lane) const {
  size_t part = 0;
  int row = (swiglu_ ? panel / 2 : panel) * kPanelColumns + lane;
  if (swiglu_)
    part = static_cast<size_t>(panel % 2);
  else
    while (part < source.parts.size() && row >= source.parts[part].rows)
      row -= source.parts[part++].rows;
  if (part >= source.parts.size() || row >= source.parts[part].rows) return {};
  const DecodeMatrixSource::Part& from = source.parts[part];
  const size_t start = static_cast<size_t>(row) * static_cast<size_t>(in_);
  if (from.quantised == nullptr) return {from.floats.data() + start, nullptr, nullptr};
  return {nullptr, from.quantised->codes.data() + start,
          from.quantised->scales.data() +
              static_cast<size_t>(row) * static_cast<size_t>(scale_groups_)};
}

void PackedMatrix::pack_panel(const DecodeMatrixSource& source, const DecodeKernels& kernels,
                              int panel, uint16_t* halves) {
  uint8_t* to = weights_ + static_cast<size_t>(panel) * panel_;
  for (int lane = 0; lane < kPanelColumns; lane++) {
    const Column from = column(source, panel, lane);
    if (from.floats != nullptr) pack_floats(from.floats, to, lane, kernels, halves);
    if (from.codes != nullptr) pack_codes(from, to, lane);
  }
}

void PackedMatrix::pack_floats(const float* x, uint8_t* panel, int lane,
                               const DecodeKernels& kernels, uint16_t* halves) const {
  const auto n = static_cast<size_t>(in_), at = static_cast<size_t>(lane);
  auto* words = reinterpret_cast<float*>(panel);
  auto* shorts = reinterpret_cast<uint16_t*>(panel);
  if (kind_ == PanelKind::kFloat32) {
    for (size_t i = 0; i < n; i++) words[i * kPanelColumns + at] = x[i];
  } else if (kind_ == PanelKind::kFloat16) {
    kernels.narrow_half(x, halves, in_);
    for (size_t i = 0; i < n; i++) shorts[i * kPanelColumns + at] = halves[i];
  } else {
    for (size_t i = 0; i < n; i++)
      shorts[(i / 2 * kPanelColumns + at) * 2 + i % 2] = to_bfloat16(x[i]).bits;
  }
}

void PackedMatrix::pack_codes(const Column& column, uint8_t* panel, int lane) const {
  const auto at = static_cast<size_t>(lane);
  for (size_t g = 0; g < static_cast<size_t>(scale_groups_); g++) {
    const size_t to = g * kPanelColumns + at;
    if (kind_ == PanelKind::kInt8Row)
      reinterpret_cast<float*>(panel)[to] = column.scales[g];
    else
      reinterpret_cast<uint16_t*>(panel)[to] = to_float16(column.scales[g]).bits;
  }
  uint8_t* body = panel + header_ + at * 4;
  if (kind_ == PanelKind::kInt4) {
    for (int i = 0; i < in_; i += 8, body += kPanelColumns * 4)
      store_word(body, codes_word(column.codes, i, in_) | codes_word(column.codes, i + 4, in_)
                                                              << 4);
  } else {
    for (int i = 0; i < in_; i += 4, body += kPanelColumns * 4)
      store_word(body, codes_word(column.codes, i, in_) ^ 0x80808080u);  // code + 128
  }
}

}  // namespace fastserve
