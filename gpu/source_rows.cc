#include "gpu/source_rows.h"

#include <algorithm>
#include <cstring>

#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace

int SourceRows::packed_outputs() const {
  return gated_ ? round_up(out_ / 2, 8) * 2 : round_up(out_, kProductOutputs);
}

void SourceRows::for_each_run(const PieceRows& piece, size_t begin, size_t end,
                              const std::function<void(const Run&)>& use) const {
  const size_t out = static_cast<size_t>(out_), half = static_cast<size_t>(piece.outputs) / 2;
  const size_t first = static_cast<size_t>(piece.first);
  size_t count = 0;
  for (size_t place = begin; place < end; place += count) {
    // The run ends with the places, with the gates, with the matrix's rows, with the part's.
    count = end - place;
    size_t row = first + place, rows = out;
    if (gated_) {
      const bool up = place >= half;
      if (!up) count = std::min(count, half - place);
      row = first / 2 + (up ? place - half : place) + (up ? out / 2 : 0);
      if (!up) rows = out / 2;
    }
    if (row >= rows) continue;
    count = std::min(count, rows - row);
    const auto* part = source_.parts.data();
    for (; row >= static_cast<size_t>(part->rows); ++part) row -= static_cast<size_t>(part->rows);
    count = std::min(count, static_cast<size_t>(part->rows) - row);
    use({part, row, count, place});
  }
}

void SourceRows::write(const Staging::Rows& rows, size_t row_bytes) const {
  const size_t begin = rows.first - rows.of;
  for_each_run(piece(rows.of, rows.all), begin, begin + rows.count, [&](const Run& run) {
    const void* const from = run.part->stored.empty()
                                 ? static_cast<const void*>(run.part->floats.data())
                                 : run.part->stored.data();
    std::memcpy(rows.piece + run.place * row_bytes,
                static_cast<const std::byte*>(from) + run.row * row_bytes, run.count * row_bytes);
  });
}

void SourceRows::lay(const PieceRows& piece, size_t row_bytes, const DirectRows::Put& put) const {
  for_each_run(piece, 0, static_cast<size_t>(piece.outputs), [&](const Run& run) {
    put(run.place * row_bytes,
        run.part->stored.subspan(run.row * row_bytes, run.count * row_bytes));
  });
}

QuantisedRows::QuantisedRows(const DecodeMatrixSource& source, const SourceRows& rows)
    : source_(source), rows_(rows), stored_(!source.parts.front().stored.empty()) {
  const int in = source.in, group = format_group(source.format);
  half_scales_ = stored_ && source.parts.front().type == DType::kF16;
  groups_ = group == 0 ? 1 : (in + group - 1) / group;
  code_bytes_ = static_cast<size_t>(format_bits(source.format) == 4 ? (in + 1) / 2 : in);
  scale_bytes_ = static_cast<size_t>(groups_) * (half_scales_ ? 2 : 4);
}

const uint8_t* QuantisedRows::codes(const DecodeMatrixSource::Part& part) const {
  return stored_ ? reinterpret_cast<const uint8_t*>(part.stored.data())
                 : part.quantised->codes.data();
}

StoredRows QuantisedRows::staged(const void* data, const PieceRows& piece, uint32_t* faults) const {
  StoredRows rows{};
  rows.piece = piece;
  rows.codes = static_cast<const unsigned char*>(data);
  rows.scales = rows.codes + static_cast<size_t>(piece.outputs) * code_bytes_;
  rows.code_bytes = int(code_bytes_);
  rows.scale_bytes = int(scale_bytes_);
  rows.in = source_.in;
  rows.faults = faults;
  int end = 0;
  for (const auto& part : source_.parts) rows.ends[rows_.number(part)] = end += part.rows;
  return rows;
}

void QuantisedRows::write(const Staging::Rows& rows) const {
  std::byte* const scales = rows.piece + rows.all * code_bytes_;
  const size_t begin = rows.first - rows.of;
  rows_.for_each_run(
      rows_.piece(rows.of, rows.all), begin, begin + rows.count, [&](const SourceRows::Run& run) {
        write_codes(run, rows.piece + run.place * code_bytes_);
        const void* const from = stored_ ? static_cast<const void*>(run.part->scales.data())
                                         : run.part->quantised->scales.data();
        std::memcpy(scales + run.place * scale_bytes_,
                    static_cast<const std::byte*>(from) + run.row * scale_bytes_,
                    run.count * scale_bytes_);
      });
}

/// Codes and scales each by themselves, so that what lies together goes together.
void QuantisedRows::lay(const PieceRows& piece, const DirectRows::Put& put) const {
  const size_t outputs = static_cast<size_t>(piece.outputs);
  rows_.for_each_run(piece, 0, outputs, [&](const SourceRows::Run& run) {
    put(run.place * code_bytes_,
        run.part->stored.subspan(run.row * code_bytes_, run.count * code_bytes_));
  });
  rows_.for_each_run(piece, 0, outputs, [&](const SourceRows::Run& run) {
    put(outputs * code_bytes_ + run.place * scale_bytes_,
        run.part->scales.subspan(run.row * scale_bytes_, run.count * scale_bytes_));
  });
}

/// int4 codes in memory are one a byte; all others are as a checkpoint has them.
void QuantisedRows::write_codes(const SourceRows::Run& run, std::byte* to) const {
  if (stored_ || format_bits(source_.format) == 8) {
    std::memcpy(to, codes(*run.part) + run.row * code_bytes_, run.count * code_bytes_);
    return;
  }
  const size_t in = static_cast<size_t>(source_.in);
  const uint8_t* from = run.part->quantised->codes.data() + run.row * in;
  for (size_t row = 0; row < run.count; ++row, from += in, to += code_bytes_)
    for (size_t i = 0; i < in; i += 2)
      to[i / 2] = std::byte(from[i] | (i + 1 < in ? from[i + 1] << 4 : 0));
}

bool is_pinned(const Runtime& runtime, const DecodeMatrixSource& source) {
  return std::all_of(source.parts.begin(), source.parts.end(), [&](const auto& part) {
    const auto there = [&](std::span<const std::byte> bytes) {
      return runtime.pinned(bytes.data(), bytes.size());
    };
    return !part.stored.empty() && there(part.stored) &&
           (part.scales.empty() || there(part.scales));
  });
}

}  // namespace fastserve::gpu
