// Memory that goes from one device to another of its kind, and what they add up together.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/check.h"
#include "model/device.h"

namespace fastserve {

/// Joins devices of one kind in one process; they are counted from 0 in the order they came in.
///
/// Owns:    nothing of theirs; gone before they are.
/// Threads: any; not while one of the devices captures work.
/// Errors:  what goes wrong with a copy or a collective is the receivers' failure: their sync()
///          tells. So is a sender that has failed already, since nothing comes then.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;
  /// "copies from card to card"
  virtual std::string description() const = 0;
  /// Returns at once. The copy comes behind all that either device was given before, and before all
  /// that either is given after.
  virtual void copy(size_t to, void* into, size_t from, const void* data, size_t bytes) = 0;

  /// Makes ready for collectives, which reduce() and broadcast() are; once, before anything else is
  /// asked of the link. An Error says why there are none: copies are all that there is then.
  virtual Status open_collectives() {
    return Error{ErrorCode::kUnsupported, "sums nothing", description(), ""};
  }
  /// Names what decides the bits of a sum beside its operands: "ring of 2, NCCL 2.28.9".
  virtual std::string reduce_id() const { return ""; }
  /// into = the sum of parts[i] over all devices i, in an order of the link's own: another number
  /// of devices makes other bits. `parts`: `n` floats of each device. `into` is memory of device
  /// `to`, and may be parts[to]. Returns at once, ordered on all of them as a copy is.
  virtual void reduce(size_t, float*, std::span<const float* const>, size_t) { no_collectives(); }
  /// `n` floats at ranges[from] into ranges[i] of every other device i; ordered the same.
  virtual void broadcast(size_t, std::span<float* const>, size_t) { no_collectives(); }
  /// Returns when all collectives so far are done, or have failed. To be called before a device is
  /// waited for: alone it would wait for ever for one that is lost.
  virtual void settle() {}

 private:
  static void no_collectives() { FS_CHECK(false && "open_collectives() has succeeded"); }
};

using LinkFactory =
    std::function<Result<std::unique_ptr<DeviceLink>>(std::span<Device* const> devices)>;

}  // namespace fastserve
