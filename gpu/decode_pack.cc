#include "gpu/decode_pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "gpu/kernels/decode_pack.cuh"
#include "gpu/kernels/packed_weights.cuh"
#include "gpu/launch.h"
#include "gpu/source_rows.h"

namespace fastserve::gpu {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }

unsigned blocks_for(size_t threads) {
  return static_cast<unsigned>((threads + kPackThreads - 1) / kPackThreads);
}

/// A matrix of floats of type From in the format that it is multiplied in.
template <class From>
Result<WeightMemory::Piece> pack_floats(WeightLoading& loading, const DecodeMatrixSource& source,
                                        const SourceRows& rows, int out, int inputs) {
  Runtime& runtime = loading.runtime;
  const WeightFormat format = source.format;
  const int in = source.in;
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
      launch(runtime,
             {"pack_bfloat16_rows", {blocks_for(count * size_t(inputs) / 2)}, {kPackThreads}},
             pack_bfloat16_rows<From>, from, rows.piece(first, count), in, inputs,
             reinterpret_cast<uint32_t*>(to));
    else if (format == WeightFormat::kFloat16)
      launch(runtime, {"convert_rows", {blocks_for(numbers)}, {kPackThreads}},
             convert_rows<From, Float16>, from, numbers, reinterpret_cast<Float16*>(to));
    else
      launch(runtime, {"convert_rows", {blocks_for(numbers)}, {kPackThreads}},
             convert_rows<From, float>, from, numbers, reinterpret_cast<float*>(to));
  };
  const size_t unit = bfloat ? 16 : 1;
  if (is_pinned(runtime, source))
    FS_TRY(loading.direct.rows(
        outputs, row_bytes, unit,
        [&](size_t first, size_t count, const DirectRows::Put& put) {
          rows.lay(rows.piece(first, count), row_bytes, put);
        },
        take));
  else
    FS_TRY(loading.staging.rows(
        outputs, row_bytes, unit, [&](const Staging::Rows& some) { rows.write(some, row_bytes); },
        take));
  return memory;
}

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
  const Launch how{
      "pack_scales",
      {blocks_for(static_cast<size_t>(staged.piece.outputs) * static_cast<size_t>(groups))},
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
  const dim3 grid(blocks_for(static_cast<size_t>(staged.piece.outputs) * each / 4)),
      block(kPackThreads);
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
  FS_CHECK(source.parts.size() <= kMostParts);
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
    return pack_floats<From>(loading, source, rows, out, inputs);
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
  const auto take = [&](size_t first, size_t count, const void* staged) {
    const StoredRows there = rows.staged(staged, outputs.piece(first, count), faults);
    start_codes(loading.runtime, there, format_, sparse_, x_ld_, first, each, weights_.data());
    start_scales(loading.runtime, there, rows, format_, x_ld_, first, scales_.data());
  };
  if (is_pinned(loading.runtime, source))
    return loading.direct.rows(
        packed, rows.row_bytes(), kProductOutputs,
        [&](size_t first, size_t count, const DirectRows::Put& put) {
          rows.lay(outputs.piece(first, count), put);
        },
        take);
  return loading.staging.rows(
      packed, rows.row_bytes(), kProductOutputs,
      [&](const Staging::Rows& some) { rows.write(some); }, take);
}

}  // namespace fastserve::gpu
