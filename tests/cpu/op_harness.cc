#include "tests/cpu/op_harness.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace fastserve::harness {
namespace {

constexpr size_t kAlignment = 64, kGuard = 64;
constexpr std::byte kGuardByte{0xa5};
constexpr double kFloatRoundoff = 0x1p-24;

}  // namespace

OperandMemory& operand_memory() {
  static OperandMemory memory = [](size_t bytes) {
    return std::shared_ptr<std::byte>(new std::byte[bytes](), std::default_delete<std::byte[]>());
  };
  return memory;
}

Array::Array(size_t elements, size_t element_bytes)
    : elements_(elements),
      bytes_(elements * element_bytes),
      memory_(operand_memory()(bytes_ + kAlignment + kGuard)) {
  size_t room = bytes_ + kAlignment + kGuard;
  begin_ = memory_.get();
  begin_ = std::align(kAlignment, bytes_ + kGuard, begin_, room);
  FS_CHECK(begin_ != nullptr);
  std::fill_n(static_cast<std::byte*>(begin_) + bytes_, kGuard, kGuardByte);
}

bool Array::guard_intact() const {
  const auto* guard = static_cast<const std::byte*>(begin_) + bytes_;
  return std::all_of(guard, guard + kGuard, [](std::byte b) { return b == kGuardByte; });
}

Array random_floats(Rng& rng, size_t n, double scale, Precision precision) {
  Array out(n, sizeof(float));
  const reference::Compute compute(precision);
  for (size_t i = 0; i < n; ++i)
    out.floats()[i] = static_cast<float>(compute.rounded(rng.normal() * scale));
  return out;
}

Array random_compute(Rng& rng, Precision precision, size_t n, double scale) {
  Array out(n, precision == Precision::kFloat32 ? 4 : 2);
  const reference::Compute compute(precision);
  for (size_t i = 0; i < n; ++i) compute.store(out.data(), i, rng.normal() * scale);
  return out;
}

Array zero_floats(size_t n) { return Array(n, sizeof(float)); }

Array unwritten_floats(size_t n) { return unwritten_compute(Precision::kFloat32, n); }

Array unwritten_compute(Precision precision, size_t n) {
  Array out(n, precision == Precision::kFloat32 ? 4 : 2);
  for (size_t i = 0; i < n; ++i) reference::Compute(precision).store(out.data(), i, 77);
  return out;
}

Output compute_output(std::string name, Precision precision, Array& array, double terms,
                      double roundings) {
  CHECK_MESSAGE(array.guard_intact(), name << " was written past its end");
  const int n = static_cast<int>(array.size());
  return {.name = std::move(name),
          .values = reference::Compute(precision).matrix(array.data(), 1, n, n),
          .roundings = roundings,
          .terms = terms};
}

Output float_output(std::string name, Array& array, double terms, double roundings) {
  return compute_output(std::move(name), Precision::kFloat32, array, terms, roundings);
}

Output double_output(std::string name, std::vector<double> values, double terms, double floor) {
  return {.name = std::move(name), .values = std::move(values), .terms = terms, .floor = floor};
}

double unit_roundoff(Precision precision) {
  switch (precision) {
    case Precision::kBFloat16:
      return 0x1p-8;
    case Precision::kFloat16:
      return 0x1p-11;
    case Precision::kFloat32:
      break;
  }
  return kFloatRoundoff;
}

void compare(const std::string& what, Precision precision, const Outputs& expected,
             const Outputs& got) {
  REQUIRE(expected.size() == got.size());
  for (size_t o = 0; o < expected.size(); ++o) {
    const std::vector<double>&a = expected[o].values, &b = got[o].values;
    REQUIRE(a.size() == b.size());
    double square = 0;
    for (double v : a) square += v * v;
    const double rms = std::sqrt(square / std::max<double>(1, static_cast<double>(a.size())));
    const double relative = 2 * expected[o].roundings * unit_roundoff(precision) +
                            8 * std::sqrt(expected[o].terms) * kFloatRoundoff;
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const double allowed =
          expected[o].exact ? 0 : (std::abs(a[i]) + rms + expected[o].floor) * relative;
      const double error = std::abs(a[i] - b[i]);
      const double excess = error == 0 ? 0 : error / allowed;
      if (excess <= worst) continue;
      worst = std::isnan(excess) ? INFINITY : excess;
      where = i;
    }
    CHECK_MESSAGE(worst <= 1, what << ": " << got[o].name << "[" << where << "] of " << a.size()
                                   << " is " << b[where] << ", not " << a[where] << ": " << worst
                                   << " times the allowed error");
  }
}

void require_same_bits(const std::string& what, const Outputs& one, const Outputs& other) {
  REQUIRE(one.size() == other.size());
  for (size_t o = 0; o < one.size(); ++o) {
    const bool same = one[o].values.size() == other[o].values.size() &&
                      std::memcmp(one[o].values.data(), other[o].values.data(),
                                  one[o].values.size() * sizeof(double)) == 0;
    CHECK_MESSAGE(same, what << ": " << one[o].name << " has other bits");
  }
}

std::vector<Isa> paths() {
  std::vector<Isa> all;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16})
    if (isa <= best_isa()) all.push_back(isa);
  return all;
}

Device& device_of(Isa isa, int lanes) {
  static std::map<std::pair<Isa, int>, std::unique_ptr<Device>> devices;
  auto& device = devices[{isa, lanes}];
  if (!device) {
    auto made = make_cpu_device({.lanes = lanes, .isa = isa});
    REQUIRE_MESSAGE(made.ok(), isa_name(isa));
    device = std::move(made).value();
  }
  return *device;
}

}  // namespace fastserve::harness
