// Made-up slices of a model and their gradients.
#pragma once

#include <cmath>
#include <vector>

#include "base/rng.h"
#include "train/backend.h"

namespace fastserve {

/// A matrix of 150 x 96 in tiles of 64 rows, a vector of 5, a gap, a table of 70 x 3, a single
/// value.
inline std::vector<ParameterTile> made_up_tiles(size_t begin = 32) {
  return {{begin, 64 * 96, true, 0, 0, 64},           {begin + 6144, 64 * 96, true, 0, 64, 64},
          {begin + 12288, 22 * 96, true, 0, 128, 22}, {begin + 14400, 5, false, -1, 0, 1},
          {begin + 14416, 64 * 3, true, -1, 0, 64},   {begin + 14608, 6 * 3, true, -1, 64, 6},
          {begin + 14640, 1, false, -1, 0, 1}};
}

/// Of magnitudes from 1e-8 to 1e-2, zero between the tiles.
inline std::vector<float> made_up_gradient(const std::vector<ParameterTile>& tiles, uint64_t seed) {
  const size_t begin = tiles.front().offset;
  std::vector<float> values(tiles.back().offset + tiles.back().size - begin);
  Rng rng(seed);
  for (const ParameterTile& tile : tiles)
    for (size_t i = 0; i < tile.size; i++)
      values[tile.offset - begin + i] =
          static_cast<float>(rng.normal() * std::pow(10.0, -2 - 6 * rng.uniform()));
  return values;
}

inline double norm(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}

inline double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

}  // namespace fastserve
