#include "tests/gpu/stub_driver/device_description.h"

#include <cstdlib>
#include <fstream>
#include <regex>
#include <sstream>

namespace stub_driver {
namespace {

/// The numbers and strings of a flat JSON object; the file is a test's own.
void read_file(DeviceDescription& into) {
  const char* named = std::getenv("FASTSERVE_STUB_DEVICE");
  std::ifstream file(named != nullptr ? named : FASTSERVE_STUB_DEVICE);
  std::stringstream text;
  text << file.rdbuf();
  const std::string json = text.str();
  static const std::regex member("\"(\\w+)\"\\s*:\\s*(?:\"([^\"]*)\"|(\\d+))");
  for (auto it = std::sregex_iterator(json.begin(), json.end(), member);
       it != std::sregex_iterator(); ++it) {
    if ((*it)[3].matched) into.numbers[(*it)[1]] = std::stoll((*it)[3]);
    if ((*it)[1] == "deviceName") into.name = (*it)[2];
  }
}

void read_environment(DeviceDescription& into) {
  const char* script = std::getenv("FASTSERVE_STUB_DRIVER");
  std::istringstream parts(script == nullptr ? "" : script);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos) continue;
    const std::string name = part.substr(0, equals);
    const int number = std::stoi(part.substr(equals + 1));
    if (name.starts_with("cu"))
      into.failing[name] = number;
    else
      into.numbers[name] = number;
  }
}

}  // namespace

int64_t DeviceDescription::number(const char* key, int64_t otherwise) const {
  const auto found = numbers.find(key);
  return found == numbers.end() ? otherwise : found->second;
}

int DeviceDescription::failure(const char* call) const {
  const auto found = failing.find(call);
  return found == failing.end() ? 0 : found->second;
}

const DeviceDescription& device() {
  static const DeviceDescription* const only = [] {
    auto* made = new DeviceDescription;  // outlives whatever a library does at exit
    read_file(*made);
    read_environment(*made);
    return made;
  }();
  return *only;
}

}  // namespace stub_driver
