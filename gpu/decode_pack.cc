#include "gpu/decode_pack.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "gpu/kernels/decode_pack.cuh"
#include "gpu/kernels/packed_weights.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }
size_t index(int row, int ld, int col) {
  return static_cast<size_t>(row) * static_cast<size_t>(ld) + static_cast<size_t>(col);
}

/// The rows of a source in the order of the packed outputs.
class SourceRows {
 public:
  /// `gated`: each 16 outputs are 8 gates, then their ups.
  SourceRows(const DecodeMatrixSource& source, int out, bool gated)
      : source_(source), out_(out), gated_(gated) {}

  /// Which part and row of it output `o` of the packed matrix is; row -1: none.
  struct Row {
    const DecodeMatrixSource::Part* part;
    int row;
  };
  Row at(int o) const {
    int row = o;
    if (gated_) {
      const int neurons = out_ / 2, neuron = o / 16 * 8 + o % 8;
      if (neuron >= neurons) return {nullptr, -1};
      row = o % 16 < 8 ? neuron : neurons + neuron;
    }
    for (const auto& part : source_.parts) {
      if (row < part.rows) return {&part, row};
      row -= part.rows;
    }
    return {nullptr, -1};
  }

  /// Output `o`'s row as it is stored, `row_bytes` of it; zeros where there is none.
  void write(int o, size_t row_bytes, std::byte* to) const {
    const Row r = at(o);
    if (r.row < 0) {
      std::memset(to, 0, row_bytes);
      return;
    }
    const void* from = r.part->floats.data();
    if (r.part->quantised != nullptr) from = r.part->quantised->codes.data();
    if (!r.part->stored.empty()) from = r.part->stored.data();
    std::memcpy(to, static_cast<const std::byte*>(from) + static_cast<size_t>(r.row) * row_bytes,
                row_bytes);
  }
  /// The code as the kernels multiply it: int8, or 0..15 for int4 with 8 for nothing.
  uint8_t code(int o, int i) const {
    const uint8_t nothing = format_bits(source_.format) == 4 ? 8 : 0;
    const Row r = at(o);
    return r.row < 0 || i >= source_.in ? nothing
                                        : r.part->quantised->codes[index(r.row, source_.in, i)];
  }
  float scale(int o, int group) const {
    const Row r = at(o);
    if (r.row < 0) return 0;
    const QuantisedMatrix& q = *r.part->quantised;
    return group < q.groups() ? q.scales[index(r.row, q.groups(), group)] : 0.0f;
  }
  int packed_outputs() const {
    return gated_ ? round_up(out_ / 2, 8) * 2 : round_up(out_, kProductOutputs);
  }

 private:
  const DecodeMatrixSource& source_;
  const int out_;
  const bool gated_;
};

/// Calls put(register index, output, first input) for each register of the fragments, in their
/// order.
template <class Put>
void for_each_register(int outputs, int inputs, int step, const Put& put) {
  size_t word = 0;
  for (int o = 0; o < outputs; o += 16)
    for (int i = 0; i < inputs; i += step)
      for (int lane = 0; lane < 32; ++lane)
        for (int r = 0; r < 4; ++r, ++word) put(word, o, i, lane / 4, lane % 4, r);
}

std::vector<uint32_t> pack_int4(const SourceRows& rows, int inputs) {
  std::vector<uint32_t> words(static_cast<size_t>(rows.packed_outputs()) *
                              static_cast<size_t>(inputs) / 8);
  for_each_register(rows.packed_outputs(), inputs, 64,
                    [&](size_t word, int o, int i, int g, int t, int r) {
                      const int output = o + g + (r & 1) * 8, input = i + (r >> 1) * 32 + 4 * t;
                      for (int b = 0; b < 4; ++b) {
                        const uint32_t low = rows.code(output, input + b);
                        const uint32_t high = rows.code(output, input + 16 + b);
                        words[word] |= (low | high << 4) << (8 * b);
                      }
                    });
  return words;
}

template <class T>
Result<Memory> upload(Runtime& runtime, Staging& staging, const std::vector<T>& host) {
  FS_ASSIGN(Memory memory, Memory::allocate(runtime, host.size() * sizeof(T)));
  FS_TRY(staging.copy(memory.data(), host.data(), host.size() * sizeof(T)));
  return Result<Memory>(std::move(memory));
}

unsigned blocks_for(size_t threads) {
  return static_cast<unsigned>((threads + kPackThreads - 1) / kPackThreads);
}

/// A matrix of floats of type From in the format that it is multiplied in.
template <class From>
Result<Memory> pack_floats(Runtime& runtime, Staging& staging, const SourceRows& rows, int out,
                           int in, int inputs, WeightFormat format) {
  const bool bfloat = format == WeightFormat::kBFloat16;
  const size_t outputs = static_cast<size_t>(bfloat ? rows.packed_outputs() : out);
  const size_t row_bytes = static_cast<size_t>(in) * sizeof(From);
  const size_t element = format == WeightFormat::kFloat32 ? 4 : 2;
  FS_ASSIGN(Memory memory,
            Memory::allocate(runtime, outputs * static_cast<size_t>(inputs) * element));
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
  FS_TRY(staging.rows(
      outputs, row_bytes, bfloat ? 16 : 1,
      [&](size_t row, std::byte* to) { rows.write(static_cast<int>(row), row_bytes, to); }, take));
  return Result<Memory>(std::move(memory));
}

/// Whether of every four neighbours in a row two at least are zero.
bool is_two_of_four(const DecodeMatrixSource& source) {
  const size_t in = static_cast<size_t>(source.in);
  for (const auto& part : source.parts)
    for (size_t row = 0; row < static_cast<size_t>(part.rows); ++row)
      for (size_t i = 0; i < in; i += 4) {
        const uint8_t* const codes = part.quantised->codes.data() + row * in + i;
        const auto zeros = std::count(codes, codes + std::min<size_t>(4, in - i), uint8_t{0});
        if (in - i >= 4 ? zeros < 2 : static_cast<size_t>(zeros) + 2 < in - i) return false;
      }
  return true;
}

Result<Memory> pack_int8(Runtime& runtime, Staging& staging, const SourceRows& rows, int in,
                         int inputs, bool sparse) {
  const size_t outputs = static_cast<size_t>(rows.packed_outputs()), row = static_cast<size_t>(in);
  const size_t each = static_cast<size_t>(inputs) * (sparse ? 5 : 8) / 8;  // bytes of an output
  FS_ASSIGN(Memory memory, Memory::allocate(runtime, outputs * each));
  FS_TRY(staging.rows(
      outputs, row, 16,
      [&](size_t output, std::byte* to) { rows.write(static_cast<int>(output), row, to); },
      [&](size_t first, size_t count, const void* staged) {
        launch(runtime,
               {sparse ? "pack_sparse_rows" : "pack_int8_rows",
                {blocks_for(count * each / 4)},
                {kPackThreads}},
               sparse ? pack_sparse_rows : pack_int8_rows, static_cast<const uint8_t*>(staged),
               int(count), in, inputs, static_cast<uint32_t*>(memory.data()) + first * each / 4);
      }));
  return Result<Memory>(std::move(memory));
}

std::vector<float> row_scales(const SourceRows& rows) {
  std::vector<float> scales;
  for (int o = 0; o < rows.packed_outputs(); ++o) scales.push_back(rows.scale(o, 0));
  return scales;
}

std::vector<Float16> group_scales(const SourceRows& rows, int groups) {
  std::vector<Float16> scales;
  for (int tile = 0; tile < rows.packed_outputs(); tile += kProductOutputs)
    for (int g = 0; g < groups; ++g)
      for (int o = 0; o < kProductOutputs; ++o)
        scales.push_back(to_float16(rows.scale(tile + o, g)));
  return scales;
}

}  // namespace

Result<std::unique_ptr<DecodeMatrix>> GpuDecodeMatrix::make(Runtime& runtime, Staging& staging,
                                                            const DecodeMatrixSource& source) {
  int out = 0;
  for (const auto& part : source.parts) out += part.rows;
  std::unique_ptr<GpuDecodeMatrix> matrix(new GpuDecodeMatrix(out, source.in, source.format));
  const WeightFormat format = source.format;
  const bool plain = format == WeightFormat::kFloat32 || format == WeightFormat::kFloat16;
  const SourceRows rows(source, out, source.swiglu && !plain);
  const int inputs = plain ? source.in : round_up(source.in, kProductUnit);
  matrix->x_ld_ = inputs;
  if (!is_quantised(format)) {
    const auto pack = [&]<class From>() {
      return pack_floats<From>(runtime, staging, rows, out, source.in, inputs, format);
    };
    const auto& first = source.parts.front();
    FS_ASSIGN(matrix->weights_, first.stored.empty() || first.type == DType::kF32
                                    ? pack.template operator()<float>()
                                : first.type == DType::kBF16 ? pack.template operator()<BFloat16>()
                                                             : pack.template operator()<Float16>());
    return std::unique_ptr<DecodeMatrix>(std::move(matrix));
  }
  const int group = format_group(format);
  matrix->sparse_ = format_bits(format) == 8 && group != 32 && is_two_of_four(source);
  FS_ASSIGN(matrix->weights_,
            format_bits(format) == 4
                ? upload(runtime, staging, pack_int4(rows, inputs))
                : pack_int8(runtime, staging, rows, source.in, inputs, matrix->sparse_));
  FS_ASSIGN(matrix->scales_, group == 0
                                 ? upload(runtime, staging, row_scales(rows))
                                 : upload(runtime, staging, group_scales(rows, inputs / group)));
  return std::unique_ptr<DecodeMatrix>(std::move(matrix));
}

}  // namespace fastserve::gpu
