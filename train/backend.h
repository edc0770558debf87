// What a training job computes on, as the job sees it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/trainable.h"

namespace fastserve {

using ParameterTile = TrainWeights::Tile;

/// Computes losses and gradients: one trainer's device and activations.
///
/// Threads: one caller.
class GradientSource {
 public:
  virtual ~GradientSource() = default;
  /// Summed loss over the counted targets. With `grad` (elements() floats) also
  /// d(scale * summed loss)/dp, overwritten. An Error means that this source is of no further use.
  virtual Result<double> run(const Microbatch& batch, float scale, float* grad) = 0;
  /// into = into + other, all elements.
  virtual void add(float* into, const float* other) = 0;
  virtual size_t bytes() const = 0;  ///< of activations
};

/// The weights of a job and what works on them.
///
/// Owns:    the masters and their packed copies. Outlives its sources and buffers.
/// Threads: masters of disjoint tiles, refresh() of different tiles and the const operations of
///          ops() may be used at once; make_source() and allocate() by one caller at a time.
class TrainBackend {
 public:
  virtual ~TrainBackend() = default;
  virtual std::span<float> masters() = 0;
  virtual const std::vector<ParameterTile>& tiles() const = 0;
  /// Takes a tile's masters into the layout that passes read. No source may run meanwhile.
  virtual void refresh(const ParameterTile& tile) = 0;
  /// For adamw, add and sum_squares only.
  virtual const TrainOps& ops() const = 0;
  virtual Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) = 0;
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) = 0;
  virtual size_t bytes() const = 0;  ///< of masters and packed copies
  virtual std::string description() const = 0;
  /// Jobs are the same bits only on backends where this is the same.
  virtual std::string numerics_id() const = 0;

  size_t elements() { return masters().size(); }
  void refresh_all() {
    for (const ParameterTile& tile : tiles()) refresh(tile);
  }
};

}  // namespace fastserve
