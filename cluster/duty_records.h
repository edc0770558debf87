// A duty as the coordinator's state keeps it.
#pragma once

#include <string>
#include <string_view>

#include "cluster/duty_board.h"

namespace fastserve {

inline constexpr const char* kDutyPrefix = "duties/";

struct DutyRecord {
  Duty duty;
  std::vector<std::string> events;
};
std::string encode_duty(const Duty& duty, const std::vector<std::string>& events);
/// kCorrupt names the record.
Result<DutyRecord> decode_duty(const std::string& id, std::string_view text);

}  // namespace fastserve
