#include "cluster/duty.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "cluster/transfer_documents.h"

namespace fastserve {
namespace {

constexpr size_t kLongestWord = 256, kLongestText = size_t{4} << 20;
constexpr std::array kStates = {"starting", "working", "serving", "finished", "failed"};

Error malformed(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), "a node's duties",
          "the peer may be of another version"};
}

Result<std::string> word_of(const Json& json, std::string_view key) {
  FS_ASSIGN(std::string text, json.string_or(key, ""));
  if (text.size() <= kLongestWord) return text;
  return malformed(fmt::format("{} is longer than {} bytes", key, kLongestWord));
}

Result<Json::Array> rows_of(std::string_view text) {
  if (text.size() > kLongestText) return malformed(fmt::format("have {} bytes", text.size()));
  FS_ASSIGN(Json json, Json::parse(text, "a node's duties", {.depth = 32}));
  if (!json.is_array()) return malformed("are no list");
  if (json.as_array().size() > kMostDuties)
    return malformed(
        fmt::format("are {}, and the limit is {}", json.as_array().size(), kMostDuties));
  return std::move(json.as_array());
}

}  // namespace

const char* duty_kind_name(DutyKind kind) {
  return kind == DutyKind::kDeploy ? "deploy" : "compress";
}

const char* duty_role(DutyKind kind) { return kind == DutyKind::kDeploy ? "server" : "compressor"; }

std::string encode_orders(const std::vector<DutyOrder>& orders) {
  Json::Array rows;
  for (const DutyOrder& order : orders)
    rows.push_back(Json::object({{"id", order.id},
                                 {"kind", duty_kind_name(order.kind)},
                                 {"model", order.model},
                                 {"settings", order.settings}}));
  return Json(std::move(rows)).dump();
}

std::string encode_reports(const std::vector<DutyReport>& reports) {
  Json::Array rows;
  for (const DutyReport& report : reports) {
    Json row = Json::object({{"id", report.id},
                             {"state", kStates[static_cast<size_t>(report.state)]},
                             {"stage", report.stage},
                             {"fraction", report.fraction}});
    if (!report.host.empty()) row.set("host", report.host);
    if (report.port != 0) row.set("port", report.port);
    if (!report.result.is_null()) row.set("result", report.result);
    if (report.error) row.set("error", error_to_json(*report.error));
    rows.push_back(std::move(row));
  }
  return Json(std::move(rows)).dump();
}

Result<std::vector<DutyOrder>> parse_orders(std::string_view text) {
  FS_ASSIGN(const Json::Array rows, rows_of(text));
  std::vector<DutyOrder> orders;
  for (const Json& row : rows) {
    DutyOrder order;
    FS_ASSIGN(order.id, word_of(row, "id"));
    FS_ASSIGN(const std::string kind, word_of(row, "kind"));
    FS_ASSIGN(order.model, word_of(row, "model"));
    if (order.id.empty()) return malformed("hold one without an id");
    if (kind == "compress")
      order.kind = DutyKind::kCompress;
    else if (kind != "deploy")
      return Error{ErrorCode::kUnsupported, "is of a kind that is not known here: " + kind,
                   "duty " + order.id, "update this node"};
    if (const Json* settings = row.find_set("settings")) order.settings = *settings;
    orders.push_back(std::move(order));
  }
  return orders;
}

Result<std::vector<DutyReport>> parse_reports(std::string_view text) {
  FS_ASSIGN(const Json::Array rows, rows_of(text));
  std::vector<DutyReport> reports;
  for (const Json& row : rows) {
    DutyReport report;
    FS_ASSIGN(report.id, word_of(row, "id"));
    FS_ASSIGN(const std::string state, word_of(row, "state"));
    const auto known = std::find(kStates.begin(), kStates.end(), state);
    if (report.id.empty() || known == kStates.end())
      return malformed("hold a report of the state \"" + state + "\"");
    report.state = static_cast<DutyReport::State>(known - kStates.begin());
    FS_ASSIGN(report.stage, word_of(row, "stage"));
    FS_ASSIGN(const double fraction, row.double_or("fraction", 0));
    report.fraction = std::isfinite(fraction) ? std::clamp(fraction, 0.0, 1.0) : 0;
    FS_ASSIGN(report.host, word_of(row, "host"));
    FS_ASSIGN(const int64_t port, row.int_or("port", 0));
    if (port < 0 || port > 65535) return malformed(fmt::format("name port {}", port));
    report.port = static_cast<int>(port);
    if (const Json* result = row.find_set("result")) report.result = *result;
    if (const Json* error = row.find_set("error")) report.error = error_from_json(*error);
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace fastserve
