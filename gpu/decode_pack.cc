#include "gpu/decode_pack.h"

#include <cstring>

#include "base/half.h"
#include "gpu/kernels/packed_weights.cuh"

namespace fastserve::gpu {
namespace {

int round_up(int n, int to) { return (n + to - 1) / to * to; }
size_t index(int row, int ld, int col) {
  return static_cast<size_t>(row) * static_cast<size_t>(ld) + static_cast<size_t>(col);
}

/// The rows of a source in the order of the packed outputs.
class SourceRows {
 public:
  SourceRows(const DecodeMatrixSource& source, int out) : source_(source), out_(out) {}

  /// Which part and row of it output `o` of the packed matrix is; row -1: none.
  struct Row {
    const DecodeMatrixSource::Part* part;
    int row;
  };
  Row at(int o) const {
    int row = o;
    if (source_.swiglu) {
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

  float number(int o, int i) const {
    const Row r = at(o);
    return r.row < 0 || i >= source_.in ? 0.0f : r.part->floats[index(r.row, source_.in, i)];
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
    return source_.swiglu ? round_up(out_ / 2, 8) * 2 : round_up(out_, kProductOutputs);
  }

 private:
  const DecodeMatrixSource& source_;
  int out_;
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

std::vector<uint32_t> pack_bfloat16(const SourceRows& rows, int inputs) {
  std::vector<uint32_t> words(static_cast<size_t>(rows.packed_outputs()) *
                              static_cast<size_t>(inputs) / 2);
  for_each_register(
      rows.packed_outputs(), inputs, 16, [&](size_t word, int o, int i, int g, int t, int r) {
        const int output = o + g + (r & 1) * 8, input = i + 2 * t + (r >> 1) * 8;
        words[word] = uint32_t{to_bfloat16(rows.number(output, input)).bits} |
                      uint32_t{to_bfloat16(rows.number(output, input + 1)).bits} << 16;
      });
  return words;
}

std::vector<uint32_t> pack_int8(const SourceRows& rows, int inputs) {
  std::vector<uint32_t> words(static_cast<size_t>(rows.packed_outputs()) *
                              static_cast<size_t>(inputs) / 4);
  for_each_register(rows.packed_outputs(), inputs, 32,
                    [&](size_t word, int o, int i, int g, int t, int r) {
                      const int output = o + g + (r & 1) * 8, input = i + 4 * t + (r >> 1) * 16;
                      for (int b = 0; b < 4; ++b)
                        words[word] |= uint32_t{rows.code(output, input + b)} << (8 * b);
                    });
  return words;
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

/// [out, in] as it is, of half or float.
template <class T, class Convert>
std::vector<T> plain_rows(const DecodeMatrixSource& source, const Convert& convert) {
  std::vector<T> all;
  for (const auto& part : source.parts)
    for (const float v : part.floats) all.push_back(convert(v));
  return all;
}

template <class T>
Result<Memory> upload(Runtime& runtime, const std::vector<T>& host) {
  FS_ASSIGN(Memory memory, Memory::allocate(runtime, host.size() * sizeof(T)));
  runtime.copy_in(memory.data(), host.data(), host.size() * sizeof(T));
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

Result<std::unique_ptr<DecodeMatrix>> GpuDecodeMatrix::make(Runtime& runtime,
                                                            const DecodeMatrixSource& source) {
  int out = 0;
  for (const auto& part : source.parts) out += part.rows;
  std::unique_ptr<GpuDecodeMatrix> matrix(new GpuDecodeMatrix(out, source.in, source.format));
  const SourceRows rows(source, out);
  const bool plain =
      source.format == WeightFormat::kFloat32 || source.format == WeightFormat::kFloat16;
  const int inputs = plain ? source.in : round_up(source.in, kProductUnit);
  matrix->x_ld_ = inputs;
  if (source.format == WeightFormat::kFloat32) {
    FS_ASSIGN(matrix->weights_,
              upload(runtime, plain_rows<float>(source, [](float v) { return v; })));
  } else if (source.format == WeightFormat::kFloat16) {
    FS_ASSIGN(matrix->weights_,
              upload(runtime, plain_rows<Float16>(source, [](float v) { return to_float16(v); })));
  } else if (source.format == WeightFormat::kBFloat16) {
    FS_ASSIGN(matrix->weights_, upload(runtime, pack_bfloat16(rows, inputs)));
  } else {
    const bool narrow = format_bits(source.format) == 4;
    FS_ASSIGN(matrix->weights_,
              upload(runtime, narrow ? pack_int4(rows, inputs) : pack_int8(rows, inputs)));
    const int group = format_group(source.format);
    FS_ASSIGN(matrix->scales_, group == 0 ? upload(runtime, row_scales(rows))
                                          : upload(runtime, group_scales(rows, inputs / group)));
  }
  return std::unique_ptr<DecodeMatrix>(std::move(matrix));
}

}  // namespace fastserve::gpu
