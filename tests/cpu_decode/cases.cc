#include "cases.h"

#include <cmath>

#include "base/half.h"

namespace fastserve {

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16})
    if (isa <= best_isa()) isas.push_back(isa);
  return isas;
}

std::vector<float> normal_floats(size_t n, uint32_t seed, float deviation) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

MatrixCase::MatrixCase(std::vector<int> part_rows, int in, WeightFormat format, bool swiglu,
                       uint32_t seed)
    : part_rows(std::move(part_rows)), in(in), out(0), format(format), swiglu(swiglu) {
  std::mt19937 rng(seed);
  const float spread = 1.0f / std::sqrt(static_cast<float>(in));
  for (int rows : this->part_rows) {
    out += rows;
    const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(in);
    if (!is_quantised(format)) {
      floats.push_back(normal_floats(n, seed + static_cast<uint32_t>(floats.size()), spread));
      continue;
    }
    QuantisedMatrix q;
    q.format = format;
    q.rows = rows;
    q.cols = in;
    const bool four = format_bits(format) == 4;
    for (size_t i = 0; i < n; i++) {
      const int code = static_cast<int>(rng() % (four ? 16 : 255));
      q.codes.push_back(static_cast<uint8_t>(four ? code : code - 127));
    }
    for (int i = 0; i < rows * q.groups(); i++) {
      const float scale = spread * (four ? 0.2f : 0.01f) * static_cast<float>(1 + rng() % 8) / 4.0f;
      q.scales.push_back(format == WeightFormat::kInt8Row ? scale : to_float(to_float16(scale)));
    }
    quantised.push_back(std::move(q));
  }
}

std::unique_ptr<DecodeMatrix> MatrixCase::make(DecodeOps& ops) const {
  std::vector<DecodeMatrixSource::Part> parts;
  for (size_t p = 0; p < part_rows.size(); p++) {
    DecodeMatrixSource::Part part;
    part.rows = part_rows[p];
    if (is_quantised(format))
      part.quantised = &quantised[p];
    else
      part.floats = floats[p];
    parts.push_back(part);
  }
  DecodeMatrixSource source;
  source.parts = parts;
  source.in = in;
  source.format = format;
  source.swiglu = swiglu;
  return ops.make_matrix(source).value();
}

}  // namespace fastserve
