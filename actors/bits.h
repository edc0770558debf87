// Floating-point numbers in messages between processes. For actors/ alone: CAF shows here.
#pragma once

#include <bit>
#include <caf/all.hpp>
#include <cstdint>
#include <type_traits>

namespace fastserve {

/// A float or double that arrives with the bits it was sent with.
///
/// CAF 0.17 takes numbers apart and puts them together again: NaN arrives as 1, and an infinity
/// keeps the sender busy for ever. So no member of a message that leaves the process is a bare
/// float or double (the guard refuses one that is a message's element).
template <class Float>
struct Bits {
  static_assert(std::is_same_v<Float, float> || std::is_same_v<Float, double>);
  Float value = 0;

  Bits() = default;
  Bits(Float given) : value(given) {}
  operator Float() const { return value; }
};

template <class Inspector, class Float>
typename Inspector::result_type inspect(Inspector& f, Bits<Float>& x) {
  using Word = std::conditional_t<sizeof(Float) == 4, uint32_t, uint64_t>;
  if constexpr (!Inspector::reads_state) {
    Word word = 0;
    auto failed = f(word);
    if (!failed) x.value = std::bit_cast<Float>(word);
    return failed;
  } else if constexpr (std::is_same_v<typename Inspector::result_type, void>) {
    return f(x.value);  // prints
  } else {
    auto word = std::bit_cast<Word>(x.value);
    return f(word);
  }
}

}  // namespace fastserve
