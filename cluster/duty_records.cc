#include "cluster/duty_records.h"

#include <algorithm>
#include <array>

#include "cluster/transfer_documents.h"

namespace fastserve {
namespace {

constexpr std::array kStates = {"waiting", "running", "finished", "failed", "cancelled"};

}  // namespace

const char* duty_state_name(Duty::State state) { return kStates[static_cast<size_t>(state)]; }

std::string encode_duty(const Duty& duty, const std::vector<std::string>& events) {
  Json json = Json::object({{"kind", duty_kind_name(duty.kind)},
                            {"model", duty.model},
                            {"settings", duty.settings},
                            {"pinned", duty.pinned},
                            {"created", duty.created_unix},
                            {"state", duty_state_name(duty.state)},
                            {"node", duty.node},
                            {"lost", duty.lost},
                            {"note", duty.note},
                            {"published", duty.published},
                            {"result", duty.result},
                            {"events", Json::array_of(events)}});
  if (duty.error) json.set("error", error_to_json(*duty.error));
  return json.dump();
}

Result<DutyRecord> decode_duty(const std::string& id, std::string_view text) {
  const std::string where = kDutyPrefix + id;
  const Error damaged{ErrorCode::kCorrupt, "contradicts its format",
                      "the cluster's state, " + where,
                      "restore the cluster's folder from a backup, all of it from the same time"};
  FS_ASSIGN(const Json json, Json::parse(text, where));
  DutyRecord record;
  Duty& duty = record.duty;
  duty.id = id;
  FS_ASSIGN(const std::string kind, json.string_or("kind", ""));
  duty.kind = kind == duty_kind_name(DutyKind::kCompress) ? DutyKind::kCompress : DutyKind::kDeploy;
  FS_ASSIGN(duty.model, json.string_or("model", ""));
  if (const Json* settings = json.find("settings")) duty.settings = *settings;
  FS_ASSIGN(duty.pinned, json.string_or("pinned", ""));
  FS_ASSIGN(duty.created_unix, json.int_or("created", 0));
  FS_ASSIGN(const std::string state, json.string_or("state", ""));
  const auto known = std::find(kStates.begin(), kStates.end(), state);
  if (known == kStates.end() || duty.model.empty()) return damaged;
  duty.state = static_cast<Duty::State>(known - kStates.begin());
  FS_ASSIGN(duty.node, json.string_or("node", ""));
  FS_ASSIGN(const int64_t lost, json.int_or("lost", 0));
  duty.lost = static_cast<int>(lost);
  FS_ASSIGN(duty.note, json.string_or("note", ""));
  FS_ASSIGN(duty.published, json.string_or("published", ""));
  if (const Json* result = json.find("result")) duty.result = *result;
  if (const Json* error = json.find_set("error")) duty.error = error_from_json(*error);
  if (const Json* events = json.find_set("events"); events != nullptr && events->is_array())
    for (const Json& event : events->as_array())
      if (event.is_string()) record.events.push_back(event.as_string());
  return record;
}

}  // namespace fastserve
