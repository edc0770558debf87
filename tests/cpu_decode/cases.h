// Seeded inputs for the inference ops.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "model/decode_ops.h"

namespace fastserve {

/// Every instruction set this machine can run.
std::vector<Isa> runnable_isas();

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32,     WeightFormat::kBFloat16,
                                     WeightFormat::kFloat16,     WeightFormat::kInt8Row,
                                     WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
                                     WeightFormat::kInt4Group32, WeightFormat::kInt4Group128};

std::vector<float> normal_floats(size_t n, uint32_t seed, float deviation = 1.0f);

/// Random weights of one part, as floats or as codes and scales.
struct MatrixCase {
  MatrixCase(std::vector<int> part_rows, int in, WeightFormat format, bool swiglu, uint32_t seed);
  std::unique_ptr<DecodeMatrix> make(DecodeOps& ops) const;

  std::vector<int> part_rows;
  int in, out;
  WeightFormat format;
  bool swiglu;
  std::vector<std::vector<float>> floats;
  std::vector<QuantisedMatrix> quantised;
};

}  // namespace fastserve
