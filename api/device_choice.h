// What --device says, and what it comes to on this machine.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "cpu/isa.h"
#include "model/device.h"

namespace fastserve {

/// A device that was chosen. Copies make the same kind.
struct ChosenDevice {
  std::string name;  ///< "cpu", "cuda", or as it was asked for: asking for it gives the same again
  std::string description;  ///< "cpu avx512-bf16, 2 lanes"
  std::string why;          ///< what made the choice, for people; empty when the user did
  DeviceFactory make;
  DeviceFactory make_host;  ///< set when make's devices have memory of their own: the CPU beside it

  bool own_memory() const { return static_cast<bool>(make_host); }
  /// "device cpu avx512-bf16, 2 lanes (no GPU: no NVIDIA driver is installed)"
  std::string line() const;
};

/// "cpu", "cuda" (the first GPU that is fit), or "auto": that GPU where there is one, the CPU where
/// not. Builds with the emulator know "emulated", too, and "emulated:BYTES" with so much memory.
/// kInvalidArgument for another word; for "cuda" what is missing, with what to install.
/// `plans`: the folder that keeps what libraries found best for a card.
Result<ChosenDevice> choose_device(const std::string& wanted, Isa isa, int lanes,
                                   const Path& plans);

/// The same devices, told what is wanted of their graphs.
DeviceFactory with_graph_use(DeviceFactory make, GraphUse use);

/// kInvalidArgument, naming what can be asked for.
Status check_device_name(const std::string& wanted);

}  // namespace fastserve
