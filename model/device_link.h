// Memory that goes from one device to another of its kind.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "model/device.h"

namespace fastserve {

/// Joins devices of one kind in one process; they are counted from 0 in the order they came in.
///
/// Owns:    nothing of theirs; gone before they are.
/// Threads: any; not while one of the two devices captures work.
/// Errors:  what goes wrong with a copy is the receiver's failure: its sync() tells. So is a sender
///          that has failed already, since nothing comes then.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;
  /// "copies from card to card"
  virtual std::string description() const = 0;
  /// Returns at once. The copy comes behind all that either device was given before, and before all
  /// that either is given after.
  virtual void copy(size_t to, void* into, size_t from, const void* data, size_t bytes) = 0;
};

using LinkFactory =
    std::function<Result<std::unique_ptr<DeviceLink>>(std::span<Device* const> devices)>;

}  // namespace fastserve
