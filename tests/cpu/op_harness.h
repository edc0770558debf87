// Holds an op of every path of this machine against its reference twin.
//
// A test describes one op by a table of shapes and a function that makes seeded inputs for a shape,
// runs the op, and returns its outputs. The harness runs it on the reference, on every ISA path
// with 1, 2 and 3 lanes and in every precision; outputs must agree within the roundings that the op
// is allowed, and must be the same bits whatever the lanes.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "cpu/cpu_device.h"
#include "cpu/reference/compute.h"

namespace fastserve::harness {

/// Where operands lie. A card's tests put memory here that both sides see; otherwise the heap.
using OperandMemory = std::function<std::shared_ptr<std::byte>(size_t bytes)>;
OperandMemory& operand_memory();

/// Memory for one operand, aligned as a device's, with a guard behind it that ops must not touch.
class Array {
 public:
  Array(size_t elements, size_t element_bytes);
  Array(Array&&) = default;
  Array& operator=(Array&&) = delete;
  void* data() { return begin_; }
  float* floats() { return static_cast<float*>(begin_); }
  size_t size() const { return elements_; }
  bool guard_intact() const;

 private:
  size_t elements_, bytes_;
  std::shared_ptr<std::byte> memory_;
  void* begin_;
};

/// Normal numbers times `scale`, rounded so that `precision` holds them exactly: how an op rounds
/// its inputs is then no part of the comparison.
Array random_floats(Rng& rng, size_t n, double scale = 1,
                    Precision precision = Precision::kFloat32);
Array random_compute(Rng& rng, Precision precision, size_t n, double scale = 1);
Array zero_floats(size_t n);
/// Filled with 77, so that an element an op forgets to write is seen.
Array unwritten_floats(size_t n);
Array unwritten_compute(Precision precision, size_t n);

/// One result of an op, with the error it is allowed.
///
/// An element v may differ by (|v| + rms + floor) * (roundings * u + 8 sqrt(terms) * 2^-24), where
/// rms is that of the whole output and u the unit roundoff of the training precision: `roundings`
/// of its own or of its inner quantities to that precision (0 where the op keeps float throughout),
/// and sums of `terms` numbers in float. The factor 8 leaves room for cheap transcendental
/// functions; `floor` is the size of what cancels to give the output.
struct Output {
  std::string name;
  std::vector<double> values;
  double roundings = 0;
  double terms = 1;
  double floor = 0;
  bool exact = false;  ///< the reference's own bits
};
using Outputs = std::vector<Output>;

Output float_output(std::string name, Array& array, double terms, double roundings = 0);
Output compute_output(std::string name, Precision precision, Array& array, double terms,
                      double roundings = 1);
Output double_output(std::string name, std::vector<double> values, double terms, double floor = 0);

double unit_roundoff(Precision precision);

/// Fails with the element, both values and the allowed error.
void compare(const std::string& what, Precision precision, const Outputs& expected,
             const Outputs& got);
void require_same_bits(const std::string& what, const Outputs& one, const Outputs& other);

/// The paths this machine has, from portable to best_isa().
std::vector<Isa> paths();
inline constexpr Precision kPrecisions[] = {Precision::kFloat32, Precision::kBFloat16,
                                            Precision::kFloat16};

/// A device of one path, kept for the whole program.
Device& device_of(Isa isa, int lanes);

/// Holds `device` against the reference: `run(ops, shape)` gives Outputs; any device will do.
template <class Shape, class Run>
void check_train_op_on(Device& device, std::span<const Precision> precisions, const std::string& op,
                       const std::vector<Shape>& shapes, const Run& run) {
  for (const Precision precision : precisions) {
    const auto twin = make_reference_device()->make_train_ops(precision);
    const auto ops = device.make_train_ops(precision);
    for (const Shape& shape : shapes) {
      const std::string what = op + " " + shape.text() + ", " + precision_name(precision);
      compare(what, precision, run(*twin, shape), run(*ops, shape));
      const Status status = device.sync();
      CHECK_MESSAGE(status.ok(), what << ": " << status.error().message());
    }
  }
}
template <class Shape, class Run>
void check_decode_op_on(Device& device, const std::string& op, const std::vector<Shape>& shapes,
                        const Run& run) {
  const auto twin = make_reference_device()->make_decode_ops();
  const auto ops = device.make_decode_ops();
  for (const Shape& shape : shapes) {
    const std::string what = op + " " + shape.text();
    compare(what, Precision::kBFloat16, run(*twin, shape), run(*ops, shape));
    const Status status = device.sync();
    CHECK_MESSAGE(status.ok(), what << ": " << status.error().message());
  }
}

/// On every path of this machine: `run(ops, shape)` gives Outputs; `describe(shape)` a few words.
template <class Shape, class Run>
void check_train_op(const std::string& op, const std::vector<Shape>& shapes, const Run& run) {
  for (const Precision precision : kPrecisions) {
    const auto twin = make_reference_device()->make_train_ops(precision);
    for (const Shape& shape : shapes) {
      const Outputs expected = run(*twin, shape);
      for (const Isa isa : paths()) {
        const std::string what =
            op + " " + shape.text() + ", " + isa_name(isa) + ", " + precision_name(precision);
        const auto ops = device_of(isa, 1).make_train_ops(precision);
        const Outputs got = run(*ops, shape);
        compare(what, precision, expected, got);
        for (const int lanes : {2, 3}) {
          const auto shared = device_of(isa, lanes).make_train_ops(precision);
          require_same_bits(what + ", " + std::to_string(lanes) + " lanes", got,
                            run(*shared, shape));
        }
      }
    }
  }
}

/// The same for inference, which has no training precision; `shape` carries the weight format.
template <class Shape, class Run>
void check_decode_op(const std::string& op, const std::vector<Shape>& shapes, const Run& run) {
  const auto twin = make_reference_device()->make_decode_ops();
  for (const Shape& shape : shapes) {
    const Outputs expected = run(*twin, shape);
    for (const Isa isa : paths()) {
      const std::string what = op + " " + shape.text() + ", " + isa_name(isa);
      const auto ops = device_of(isa, 1).make_decode_ops();
      const Outputs got = run(*ops, shape);
      compare(what, Precision::kBFloat16, expected, got);
      for (const int lanes : {2, 3}) {
        const auto shared = device_of(isa, lanes).make_decode_ops();
        require_same_bits(what + ", " + std::to_string(lanes) + " lanes", got, run(*shared, shape));
      }
    }
  }
}

}  // namespace fastserve::harness
