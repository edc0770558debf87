#include "gpu/decode_pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "gpu/kernels/decode_pack.cuh"
#include "gpu/kernels/packed_weights.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }

/// The rows of a source in the order of the packed outputs.
class SourceRows {
 public:
  /// `gated`: each 16 outputs are 8 gates, then their ups.
  SourceRows(const DecodeMatrixSource& source, int out, bool gated)
      : source_(source), out_(out), gated_(gated) {}

  /// Neighbouring outputs that are neighbours in a part; row -1: in none.
  struct Run {
    const DecodeMatrixSource::Part* part;
    int row, count;
  };
  /// The run that begins with output `o` of the packed matrix, of at most `most`.
  Run at(int o, int most) const {
    int row = o;
    if (gated_) {
      const int neurons = out_ / 2, neuron = o / 16 * 8 + o % 8;
      if (neuron >= neurons) return {nullptr, -1, 1};
      row = o % 16 < 8 ? neuron : neurons + neuron;
      most = std::min({most, 8 - o % 8, neurons - neuron});
    }
    for (const auto& part : source_.parts) {
      if (row < part.rows) return {&part, row, std::min(most, part.rows - row)};
      row -= part.rows;
    }
    return {nullptr, -1, 1};
  }
  int number(const DecodeMatrixSource::Part& part) const {
    return static_cast<int>(&part - source_.parts.data());
  }

  /// Rows of floats as they are stored, `row_bytes` each; zeros where there is none.
  void write(const Staging::Rows& rows, size_t row_bytes) const {
    size_t count = 0;
    for (size_t done = 0; done < rows.count; done += count) {
      const Run r = at(int(rows.first + done), int(rows.count - done));
      std::byte* const to = rows.piece + (rows.first - rows.of + done) * row_bytes;
      count = static_cast<size_t>(r.count);
      if (r.row < 0) {
        std::memset(to, 0, row_bytes);
        continue;
      }
      const void* const from = r.part->stored.empty()
                                   ? static_cast<const void*>(r.part->floats.data())
                                   : r.part->stored.data();
      std::memcpy(to, static_cast<const std::byte*>(from) + size_t(r.row) * row_bytes,
                  count * row_bytes);
    }
  }
  int packed_outputs() const {
    return gated_ ? round_up(out_ / 2, 8) * 2 : round_up(out_, kProductOutputs);
  }

 private:
  const DecodeMatrixSource& source_;
  const int out_;
  const bool gated_;
};

unsigned blocks_for(size_t threads) {
  return static_cast<unsigned>((threads + kPackThreads - 1) / kPackThreads);
}

/// A matrix of floats of type From in the format that it is multiplied in.
template <class From>
Result<WeightMemory::Piece> pack_floats(WeightLoading& loading, const SourceRows& rows, int out,
                                        int in, int inputs, WeightFormat format) {
  Runtime& runtime = loading.runtime;
  const bool bfloat = format == WeightFormat::kBFloat16;
  const size_t outputs = static_cast<size_t>(bfloat ? rows.packed_outputs() : out);
  const size_t row_bytes = static_cast<size_t>(in) * sizeof(From);
  const size_t element = format == WeightFormat::kFloat32 ? 4 : 2;
  FS_ASSIGN(WeightMemory::Piece memory,
            loading.memory.take(outputs * static_cast<size_t>(inputs) * element));
  const auto take = [&](size_t first, size_t count, const void* staged) {
    auto* const to =
        static_cast<std::byte*>(memory.data()) + first * static_cast<size_t>(inputs) * element;
    const auto* const from = static_cast<const From*>(staged);
    const size_t numbers = count * static_cast<size_t>(in);
    if (bfloat)
      launch(
          runtime, {"pack_bfloat16_rows", {blocks_for(count * size_t(inputs) / 2)}, {kPackThreads}},
          pack_bfloat16_rows<From>, from, int(count), in, inputs, reinterpret_cast<uint32_t*>(to));
    else if (format == WeightFormat::kFloat16)
      launch(runtime, {"convert_rows", {blocks_for(numbers)}, {kPackThreads}},
             convert_rows<From, Float16>, from, numbers, reinterpret_cast<Float16*>(to));
    else
      launch(runtime, {"convert_rows", {blocks_for(numbers)}, {kPackThreads}},
             convert_rows<From, float>, from, numbers, reinterpret_cast<float*>(to));
  };
  FS_TRY(loading.staging.rows(
      outputs, row_bytes, bfloat ? 16 : 1,
      [&](const Staging::Rows& some) { rows.write(some, row_bytes); }, take));
  return memory;
}

/// A quantised matrix on its way: a piece holds its rows' codes, then their scales, then the
/// numbers of their parts, each as they are stored if that is aligned.
class QuantisedRows {
 public:
  QuantisedRows(const DecodeMatrixSource& source, const SourceRows& rows)
      : source_(source), rows_(rows), stored_(!source.parts.front().stored.empty()) {
    const int in = source.in, group = format_group(source.format);
    half_scales_ = stored_ && source.parts.front().type == DType::kF16;
    groups_ = group == 0 ? 1 : (in + group - 1) / group;
    codes_ = static_cast<size_t>(format_bits(source.format) == 4 ? (in + 1) / 2 : in);
    code_bytes_ = (codes_ + 3) / 4 * 4;
    scale_bytes_ = static_cast<size_t>(groups_) * (half_scales_ ? 2 : 4);
  }
  bool stored() const { return stored_; }
  bool half_scales() const { return half_scales_; }
  int groups() const { return groups_; }
  size_t row_bytes() const { return code_bytes_ + scale_bytes_ + sizeof(int); }

  StoredRows staged(const void* data, size_t outputs, uint32_t* faults) const {
    const auto* const codes = static_cast<const unsigned char*>(data);
    const auto* const scales = codes + outputs * code_bytes_;
    const auto* const parts = reinterpret_cast<const int*>(scales + outputs * scale_bytes_);
    return {codes,        scales,     parts, int(code_bytes_), int(scale_bytes_),
            int(outputs), source_.in, faults};
  }
  void write(const Staging::Rows& rows) const {
    std::byte* const scales = rows.piece + rows.all * code_bytes_;
    int* const parts = reinterpret_cast<int*>(scales + rows.all * scale_bytes_);
    size_t count = 0;
    for (size_t done = 0; done < rows.count; done += count) {
      const SourceRows::Run r = rows_.at(int(rows.first + done), int(rows.count - done));
      const size_t to = rows.first - rows.of + done;
      count = static_cast<size_t>(r.count);
      std::fill_n(parts + to, count, r.row < 0 ? -1 : rows_.number(*r.part));
      if (r.row < 0) continue;
      write_codes(r, rows.piece + to * code_bytes_);
      const void* const from = stored_ ? static_cast<const void*>(r.part->scales.data())
                                       : r.part->quantised->scales.data();
      std::memcpy(scales + to * scale_bytes_,
                  static_cast<const std::byte*>(from) + size_t(r.row) * scale_bytes_,
                  count * scale_bytes_);
    }
  }
  /// int8 codes of a part.
  const uint8_t* codes(const DecodeMatrixSource::Part& part) const {
    return stored_ ? reinterpret_cast<const uint8_t*>(part.stored.data())
                   : part.quantised->codes.data();
  }

 private:
  void write_codes(const SourceRows::Run& run, std::byte* to) const {
    const size_t first = size_t(run.row), count = size_t(run.count);
    if (!stored_ && format_bits(source_.format) == 4) {
      const uint8_t* const all = run.part->quantised->codes.data();
      for (size_t row = 0; row < count; ++row)
        write_nibbles(all + (first + row) * size_t(source_.in), to + row * code_bytes_);
      return;
    }
    const uint8_t* const from = codes(*run.part) + first * codes_;
    if (codes_ == code_bytes_) {
      std::memcpy(to, from, count * codes_);
      return;
    }
    for (size_t row = 0; row < count; ++row)
      std::memcpy(to + row * code_bytes_, from + row * codes_, codes_);
  }
  /// From one code a byte.
  void write_nibbles(const uint8_t* from, std::byte* to) const {
    for (int i = 0; i < source_.in; i += 2)
      to[i / 2] = std::byte(from[i] | (i + 1 < source_.in ? from[i + 1] << 4 : 0));
  }

  const DecodeMatrixSource& source_;
  const SourceRows& rows_;
  const bool stored_;
  bool half_scales_ = false;
  int groups_ = 0;
  size_t codes_ = 0, code_bytes_ = 0, scale_bytes_ = 0;  ///< of a row, stored and staged
};

/// Whether of every four neighbours in a row two at least are zero.
bool is_two_of_four(const uint8_t* row, size_t in) {
  uint32_t more = 0;
  for (size_t i = 0; i + 4 <= in; i += 4) {
    uint32_t four;
    std::memcpy(&four, row + i, 4);
    four = (((four & 0x7f7f7f7fu) + 0x7f7f7f7fu) | four) >> 7 & 0x01010101u;  // those not zero
    four += four >> 16;
    four += four >> 8;
    more |= (four & 0xffu) + 5;  // three and four reach the bit of eight
  }
  uint32_t left = 0;
  for (size_t i = in / 4 * 4; i < in; ++i) left += row[i] != 0;
  return (more & 8) == 0 && left <= 2;
}

/// Whether that is so of all rows: one look for what was not pruned, and a pass for what was.
bool is_two_of_four(Staging& staging, const DecodeMatrixSource& source, const QuantisedRows& rows) {
  const size_t in = static_cast<size_t>(source.in);
  for (const auto& part : source.parts)
    if (!is_two_of_four(rows.codes(part), in)) return false;
  const size_t some = std::max<size_t>(1, (size_t{256} << 10) / in);  // rows
  std::atomic<bool> all = true;
  for (const auto& part : source.parts) {
    const size_t n = static_cast<size_t>(part.rows);
    staging.side_by_side((n + some - 1) / some, [&](size_t i) {
      for (size_t row = i * some; row < std::min(n, (i + 1) * some) && all; ++row)
        if (!is_two_of_four(rows.codes(part) + row * in, in)) all = false;
    });
  }
  return all;
}

/// Starts the kernel that packs staged scales: f16 for groups, float for a whole output.
void start_scales(Runtime& runtime, const StoredRows& staged, const QuantisedRows& rows,
                  WeightFormat format, int inputs, size_t first, void* scales) {
  const int group = format_group(format), groups = group == 0 ? 1 : inputs / group;
  const size_t before = first * static_cast<size_t>(groups);
  const Launch how{"pack_scales",
                   {blocks_for(static_cast<size_t>(staged.outputs) * static_cast<size_t>(groups))},
                   {kPackThreads}};
  const auto start = [&]<class To>(To* to) {
    launch(runtime, how, rows.half_scales() ? pack_scales<Float16, To> : pack_scales<float, To>,
           staged, rows.groups(), groups, to + before);
  };
  if (group == 0) return start(static_cast<float*>(scales));
  start(static_cast<Float16*>(scales));
}

/// Starts the kernel that packs staged codes, `each` bytes an output.
void start_codes(Runtime& runtime, const StoredRows& staged, WeightFormat format, bool sparse,
                 int inputs, size_t first, size_t each, void* weights) {
  auto* const words = static_cast<uint32_t*>(weights) + first * each / 4;
  const dim3 grid(blocks_for(static_cast<size_t>(staged.outputs) * each / 4)), block(kPackThreads);
  if (format_bits(format) == 4)
    launch(runtime, {"pack_int4_rows", grid, block}, pack_int4_rows, staged, inputs,
           format == WeightFormat::kInt4Group128, words);
  else if (sparse)
    launch(runtime, {"pack_sparse_rows", grid, block}, pack_sparse_rows, staged, inputs, words);
  else
    launch(runtime, {"pack_int8_rows", grid, block}, pack_int8_rows, staged, inputs, words);
}

}  // namespace

Result<std::unique_ptr<DecodeMatrix>> GpuDecodeMatrix::make(WeightLoading& loading,
                                                            const DecodeMatrixSource& source) {
  int out = 0;
  for (const auto& part : source.parts) out += part.rows;
  std::unique_ptr<GpuDecodeMatrix> matrix(new GpuDecodeMatrix(out, source.in, source.format));
  const WeightFormat format = source.format;
  const bool plain = format == WeightFormat::kFloat32 || format == WeightFormat::kFloat16;
  const int inputs = plain ? source.in : round_up(source.in, kProductUnit);
  matrix->x_ld_ = inputs;
  if (is_quantised(format)) {
    FS_TRY(matrix->pack_quantised(loading, source));
    return std::unique_ptr<DecodeMatrix>(std::move(matrix));
  }
  const SourceRows rows(source, out, source.swiglu && !plain);
  const auto pack = [&]<class From>() {
    return pack_floats<From>(loading, rows, out, source.in, inputs, format);
  };
  const auto& first = source.parts.front();
  FS_ASSIGN(matrix->weights_, first.stored.empty() || first.type == DType::kF32
                                  ? pack.template operator()<float>()
                              : first.type == DType::kBF16 ? pack.template operator()<BFloat16>()
                                                           : pack.template operator()<Float16>());
  return std::unique_ptr<DecodeMatrix>(std::move(matrix));
}

Status GpuDecodeMatrix::pack_quantised(WeightLoading& loading, const DecodeMatrixSource& source) {
  const SourceRows outputs(source, out_, source.swiglu);
  const QuantisedRows rows(source, outputs);
  const int group = format_group(format_), bits = format_bits(format_);
  sparse_ = bits == 8 && group != 32 && is_two_of_four(loading.staging, source, rows);
  const size_t packed = static_cast<size_t>(outputs.packed_outputs());
  const size_t each = static_cast<size_t>(x_ld_) * static_cast<size_t>(sparse_ ? 5 : bits) / 8;
  const size_t scales =
      group == 0 ? sizeof(float) : static_cast<size_t>(x_ld_ / group) * sizeof(Float16);
  FS_ASSIGN(weights_, loading.memory.take(packed * each));
  FS_ASSIGN(scales_, loading.memory.take(packed * scales));
  uint32_t* faults = nullptr;
  if (rows.stored()) {
    FS_ASSIGN(faults, loading.checks.add(source.parts.size()));
  }
  return loading.staging.rows(
      packed, rows.row_bytes(), kProductOutputs,
      [&](const Staging::Rows& some) { rows.write(some); },
      [&](size_t first, size_t count, const void* staged) {
        const StoredRows there = rows.staged(staged, count, faults);
        start_codes(loading.runtime, there, format_, sparse_, x_ld_, first, each, weights_.data());
        start_scales(loading.runtime, there, rows, format_, x_ld_, first, scales_.data());
      });
}

}  // namespace fastserve::gpu
