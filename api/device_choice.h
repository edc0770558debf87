// What --device says, and what it comes to on this machine.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "cpu/isa.h"
#include "model/device_link.h"

namespace fastserve {

/// A device that was chosen. Copies make the same kind.
struct ChosenDevice {
  std::string name;  ///< "cpu", "cuda", or as it was asked for: asking for it gives the same again
  std::string description;  ///< "cpu avx512-bf16, 2 lanes"
  std::string why;          ///< what made the choice, for people; empty when the user did
  DeviceFactory make;
  DeviceFactory make_host;  ///< set when make's devices have memory of their own: the CPU beside it
  /// More cards of the same kind, where several were asked for: a training job works on all of
  /// them.
  std::vector<DeviceFactory> more;
  std::vector<std::string> words;  ///< what asks for each of them alone, make's first
  LinkFactory link;                ///< joins the cards

  /// kInvalidArgument where several cards were asked for `doing` ("serving"), which works on one.
  Status one_for(const char* doing) const;
  bool own_memory() const { return static_cast<bool>(make_host); }
  /// "device cpu avx512-bf16, 2 lanes (no GPU: no NVIDIA driver is installed)"
  std::string line() const;
};

/// "cpu", "cuda" (the first GPU that is fit), or "auto": that GPU where there is one, the CPU where
/// not. "cuda:2" is that GPU, "cuda:0,2" are both, and "cuda:all" all that are fit and like the
/// first. Builds with the emulator know "emulated", too, "emulated:BYTES" with so much memory, and
/// "emulated:2x" or "emulated:2xBYTES": two of them. kInvalidArgument for another word, and for
/// cards that compute unlike bits; for "cuda" what is missing, with what to install.
/// `plans`: the folder that keeps what libraries found best for a card.
Result<ChosenDevice> choose_device(const std::string& wanted, Isa isa, int lanes,
                                   const Path& plans);

/// The same devices, told what is wanted of their graphs.
DeviceFactory with_graph_use(DeviceFactory make, GraphUse use);

/// kInvalidArgument, naming what can be asked for.
Status check_device_name(const std::string& wanted);

}  // namespace fastserve
