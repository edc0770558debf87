// The training ops of one instruction set beside their reference twins, and data for both.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "cpu/isa.h"
#include "cpu/lane_pool.h"
#include "cpu/reference/reference_ops.h"
#include "cpu/train/train_ops.h"

namespace fastserve::twins {

/// An array of the training precision, exactly as long as asked for, so that a sanitizer sees what
/// reads past it.
class TwinStorage {
 public:
  TwinStorage(Precision precision, size_t n)
      : precision_(precision), n_(n), bytes_(n * (precision == Precision::kFloat32 ? 4 : 2)) {}
  static TwinStorage random(Precision precision, size_t n, Rng& rng, double scale = 1) {
    TwinStorage x(precision, n);
    for (size_t i = 0; i < n; i++) x.put(i, scale * rng.normal());
    return x;
  }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  size_t size() const { return n_; }
  void put(size_t i, double value) {
    const float x = static_cast<float>(value);
    if (precision_ == Precision::kFloat32) write(i, x);
    if (precision_ == Precision::kBFloat16) write(i, to_bfloat16(x));
    if (precision_ == Precision::kFloat16) write(i, to_float16(x));
  }
  double operator[](size_t i) const {
    if (precision_ == Precision::kFloat32) return static_cast<double>(read<float>(i));
    if (precision_ == Precision::kBFloat16) return static_cast<double>(to_float(read<BFloat16>(i)));
    return static_cast<double>(to_float(read<Float16>(i)));
  }
  bool operator==(const TwinStorage&) const = default;

 private:
  template <class T>
  void write(size_t i, T x) {
    std::memcpy(bytes_.data() + i * sizeof(T), &x, sizeof x);
  }
  template <class T>
  T read(size_t i) const {
    T x;
    std::memcpy(&x, bytes_.data() + i * sizeof(T), sizeof x);
    return x;
  }
  Precision precision_;
  size_t n_;
  std::vector<unsigned char> bytes_;
};

inline std::vector<float> random_floats(size_t n, Rng& rng, double scale = 1) {
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(scale * rng.normal());
  return x;
}

/// |a - b| / |b| in the Euclidean norm; NaN when either holds one.
template <class A, class B>
double distance(const A& a, const B& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); i++) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// What one rounding to the precision may do, and what a float sum of `terms` does besides: its
/// error grows with the root of their number, a unit of 2^-24 each.
inline double tolerance(Precision precision, int terms = 500) {
  switch (precision) {
    case Precision::kFloat32:
      return std::sqrt(static_cast<double>(terms)) * 0x1p-24 * 1.5;
    case Precision::kBFloat16:
      return 4e-3;
    case Precision::kFloat16:
      return 5e-4;
  }
  return 0;
}

struct Twins {
  Isa isa;
  Precision precision;
  std::string name;
  std::unique_ptr<LanePool> lanes;
  std::unique_ptr<TrainOps> fast, plain;

  TwinStorage random(size_t n, Rng& rng, double scale = 1) const {
    return TwinStorage::random(precision, n, rng, scale);
  }
  TwinStorage empty(size_t n) const { return TwinStorage(precision, n); }
};

inline Twins make_twins(Isa isa, Precision precision, int lanes = 1) {
  Twins t{isa, precision, "", std::make_unique<LanePool>(lanes), nullptr, nullptr};
  t.name = std::string(isa_name(isa)) + " " + precision_name(precision);
  t.fast = make_cpu_train_ops(isa, precision, *t.lanes);
  t.plain = make_reference_train_ops(precision);
  return t;
}

/// Calls body(twins) for every instruction set of this machine and every precision.
template <class Body>
void for_each_path(const Body& body) {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    for (Precision precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
      if (isa > best_isa()) continue;
      const Twins twins = make_twins(isa, precision);
      CAPTURE(twins.name);
      body(twins);
    }
}

/// A matrix packed by both.
struct TwinMatrix {
  std::unique_ptr<TrainMatrix> fast, plain;
  TwinMatrix(const Twins& t, int out, int in, const std::vector<float>& masters)
      : fast(t.fast->make_matrix(out, in)), plain(t.plain->make_matrix(out, in)) {
    for (int row = 0; row < out; row += 64)
      t.fast->pack(*fast, row, out - row < 64 ? out - row : 64, masters.data());
    t.plain->pack(*plain, 0, out, masters.data());
  }
};

inline size_t area(int rows, int columns) {
  return static_cast<size_t>(rows) * static_cast<size_t>(columns);
}

}  // namespace fastserve::twins
