// The card that the stand-ins show: a data file's numbers, some replaced by the environment.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace stub_driver {

struct DeviceDescription {
  std::string name;
  std::map<std::string, int64_t> numbers;
  /// From $FASTSERVE_STUB_DRIVER, "cuInit=100,deviceVer=750": calls that always fail, with their
  /// code.
  std::map<std::string, int> failing;

  int64_t number(const char* key, int64_t otherwise) const;
  /// The code that the call was scripted to return, or 0.
  int failure(const char* call) const;
};

/// Read once: $FASTSERVE_STUB_DEVICE, or tests/data/gpu/h200.json.
const DeviceDescription& device();

}  // namespace stub_driver
