// What a training job computes on, as the job sees it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
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
  /// d(scale * summed loss)/dp, overwritten, in the host's memory. An Error means that this source
  /// is of no further use.
  virtual Result<double> run(const Microbatch& batch, float scale, float* grad) = 0;
  /// The same with something going on beside it: `flow` is asked for weights and told of the
  /// gradient on the way. Of a source that does not override this all weights are asked for at the
  /// beginning, and the gradient is final when it returns; whoever calls it counts on no more.
  virtual Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                                   PassFlow& flow) {
    if (!flow.await_weights(SIZE_MAX)) return 0.0;
    return run(batch, scale, grad);
  }
  /// into = into + other, all elements.
  virtual void add(float* into, const float* other) = 0;
  /// The same for elements [begin, end), with the same bits. This one is for host memory.
  virtual void add_part(float* into, const float* other, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) into[i] += other[i];
  }
  virtual size_t bytes() const = 0;  ///< of activations
  virtual Recompute recompute() const { return Recompute::kNone; }
};

/// The weights of a job and what works on them.
///
/// Owns:    the masters and their packed copies. Outlives its sources and buffers.
/// Where host_memory() is false the host follows no pointer to the masters, nor into a buffer:
/// operations and copies do, one after another.
/// Threads: masters of disjoint tiles, refresh() of different tiles and the const operations of
///          ops() may be used at once, also beside sources at work on other tiles; make_source()
///          and allocate() by one caller at a time.
class TrainBackend {
 public:
  virtual ~TrainBackend() = default;
  /// Whether masters and allocate()'s buffers lie in the host's memory.
  virtual bool host_memory() const { return true; }
  virtual std::span<float> masters() = 0;
  /// Between the host and masters or buffers. copy_in() returns when the host's are read,
  /// copy_out() when they are there.
  virtual void copy_in(float* to, std::span<const float> host) {
    std::copy(host.begin(), host.end(), to);
  }
  virtual void copy_out(std::span<float> host, const float* from) const {
    std::copy_n(from, host.size(), host.data());
  }
  /// Backends that hold the same weights, each in a memory of its own, and what one of them holds
  /// is none of the others'; this one alone, where there is one memory. Whoever refreshes tiles of
  /// one of them refreshes them in all.
  virtual int members() const { return 1; }
  virtual TrainBackend& member(int) { return *this; }
  /// Which of them this is.
  virtual int index() const { return 0; }
  /// From a member's memory into this one's, ordered behind what both were given before, and before
  /// what they are given after. Requires another member.
  virtual void copy_from(int, float*, const float*, size_t) { FS_CHECK(members() > 1); }
  /// Whether the members add up what they hold in an order of their own, which numerics_id() names.
  /// Each then computes its own run of a step, whose sum reduce_from() takes instead of
  /// copy_from().
  virtual bool reduces() const { return false; }
  /// into = the sum of parts[i] over all members i, `n` floats of each's memory; `into` is this
  /// one's, and may be its part. Ordered as copy_from(). Requires reduces().
  virtual void reduce_from(std::span<const float* const>, float*, size_t) { FS_CHECK(reduces()); }
  /// What has gone wrong with work that could not say so itself.
  virtual Status sync() { return {}; }
  virtual const std::vector<ParameterTile>& tiles() const = 0;
  /// Takes a tile's masters into the layout that passes read. No source may be reading the tile
  /// meanwhile: one that runs may go on with what it has been let to (PassFlow).
  virtual void refresh(const ParameterTile& tile) = 0;
  /// Neighbours in their order.
  virtual void refresh_run(std::span<const ParameterTile> tiles) {
    for (const ParameterTile& tile : tiles) refresh(tile);
  }
  /// For adamw, add and sums of squares only.
  virtual const TrainOps& ops() const = 0;
  virtual Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) = 0;
  virtual Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) = 0;
  virtual size_t bytes() const = 0;  ///< of masters and packed copies
  virtual std::string description() const = 0;
  /// Jobs are the same bits only on backends where this is the same.
  virtual std::string numerics_id() const = 0;

  size_t elements() { return masters().size(); }
  void refresh_all() { refresh_run(tiles()); }
};

}  // namespace fastserve
