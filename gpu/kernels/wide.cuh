// Several neighbouring numbers in one load or store.
#pragma once

#include "gpu/simt/simt.h"

namespace fastserve::gpu {

/// kWide numbers as floats.
template <int kWide>
struct Wide {
  float v[kWide];
};

/// As they lie in memory: copied whole, so that one instruction does for each 16 bytes.
template <int kWide, class T>
struct alignas(kWide * sizeof(T) < 16 ? kWide * sizeof(T) : 16) Packed {
  T numbers[kWide];
};

/// `from` on kWide * sizeof(T) bytes, or on 16.
template <int kWide, class T>
FS_DEVICE Packed<kWide, T> load_packed(const T* from) {
  return *reinterpret_cast<const Packed<kWide, T>*>(from);
}

template <int kWide, class T>
FS_DEVICE Wide<kWide> widen(const Packed<kWide, T>& in) {
  Wide<kWide> out;
  FS_UNROLL
  for (int i = 0; i < kWide; ++i) out.v[i] = as_float(in.numbers[i]);
  return out;
}

template <int kWide, class T>
FS_DEVICE Wide<kWide> load_wide(const T* from) {
  return widen<kWide, T>(load_packed<kWide>(from));
}

/// Halves in pairs, as they are stored.
template <class T, int kWide>
FS_DEVICE Packed<kWide / 2, uint32_t> pack_wide(const Wide<kWide>& x) {
  Packed<kWide / 2, uint32_t> out;
  FS_UNROLL
  for (int i = 0; i < kWide; i += 2) out.numbers[i / 2] = pack_two<T>(x.v[i], x.v[i + 1]);
  return out;
}

template <int kWide, class T>
FS_DEVICE void store_wide(T* to, const Wide<kWide>& x) {
  if constexpr (sizeof(T) == 2 && kWide % 2 == 0) {
    *reinterpret_cast<Packed<kWide / 2, uint32_t>*>(to) = pack_wide<T>(x);
  } else {
    Packed<kWide, T> out;
    FS_UNROLL
    for (int i = 0; i < kWide; ++i) out.numbers[i] = from_float<T>(x.v[i]);
    *reinterpret_cast<Packed<kWide, T>*>(to) = out;
  }
}

}  // namespace fastserve::gpu
