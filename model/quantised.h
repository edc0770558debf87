// Quantised weight matrices: their formats, and how a checkpoint spells them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/tensor.h"

namespace fastserve {

/// How a weight matrix [out, in] is held for inference. Groups run along the input.
///   kInt8Row       code in [-127, 127], w = code * scale, one float scale a row
///   kInt8Group32   ggml's q8_0: scale stored as f16 for 32 inputs
///   kInt8Group128  the same, 128 inputs
///   kInt4Group32   ggml's q4_0: code in [0, 15], w = (code - 8) * scale, scale f16, 32 inputs
///   kInt4Group128  code in [1, 15] (symmetric, zero at 8), scale f16, 128 inputs
/// A last group may be shorter when the input is not a multiple of the group.
enum class WeightFormat : uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt8Row,
  kInt8Group32,
  kInt8Group128,
  kInt4Group32,
  kInt4Group128,
};

const char* weight_format_name(WeightFormat format);  ///< "f32", "bf16", "f16", "int8", "int8-g32",
                                                      ///< "int8-g128", "int4-g32", "int4-g128"
Result<WeightFormat> parse_weight_format(std::string_view name);
bool is_quantised(WeightFormat format);
int format_bits(WeightFormat format);
/// Inputs that share a scale; 0 for a whole row and for unquantised formats.
int format_group(WeightFormat format);

/// One matrix: codes one a byte (int8: two's complement; int4: 0..15), scales as float (already
/// rounded to f16 where the format stores f16). Logical form, for any device to repack.
struct QuantisedMatrix {
  WeightFormat format = WeightFormat::kInt8Group128;
  int rows = 0, cols = 0;
  std::vector<uint8_t> codes;  ///< [rows, cols]
  std::vector<float> scales;   ///< [rows, groups()]
  int groups() const;
  /// Row r as floats: exactly code * scale (or (code - 8) * scale) in float.
  void dequantise_row(int row, std::span<float> out) const;
};

/// Spelling in a ModelBundle: for the parameter N ("...q_proj.weight", [out, in] even for GPT-2)
/// the tensors N + ".codes" (I8 [out,in], or U8 [out, ceil(in/2)], low nibble first) and
/// N + ".scales" (F32 or F16 [out, groups]); config.json's "fastserve": {"weights": {N: format
/// name}}.
void add_quantised(TensorMap& tensors, const std::string& name, const QuantisedMatrix& matrix);
/// kCorrupt, naming the tensor, when they are missing, contradict the format or each other, or hold
/// a code or scale out of range. `cols` is the matrix's input; 0 takes it from the codes, where two
/// int4 codes share a byte and an odd input therefore looks one wider.
Result<QuantisedMatrix> read_quantised(const TensorSource& tensors, const std::string& name,
                                       WeightFormat format, int cols = 0);
/// The tensors of a matrix, whose numbers nobody has looked at. Good as long as their source.
struct StoredQuantised {
  int rows = 0, cols = 0;
  TensorView codes, scales;
};
/// The rest of read_quantised's checks.
Result<StoredQuantised> find_quantised(const TensorSource& tensors, const std::string& name,
                                       WeightFormat format, int cols = 0);
/// What read_quantised says of a code, or a scale, for whoever else looks at them.
Error code_out_of_range(const TensorSource& tensors, const std::string& name, WeightFormat format);
Error scale_not_finite(const TensorSource& tensors, const std::string& name);
/// The checks of read_quantised that need no look at the numbers.
Status check_quantised(const TensorSource& tensors, const std::string& name, WeightFormat format,
                       int64_t rows, int64_t cols);

}  // namespace fastserve
