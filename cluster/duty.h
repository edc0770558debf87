// What a coordinator gives its nodes to do beside training: to serve a model, or to compress one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// What the coordinator goes by where it does a node's work itself.
inline constexpr const char* kCoordinatorItself = "coordinator";

enum class DutyKind : uint8_t { kDeploy, kCompress };
const char* duty_kind_name(DutyKind kind);  ///< "deploy", "compress"
const char* duty_role(DutyKind kind);       ///< of the nodes that do it: "server", "compressor"

/// To a node: one of all that it should be doing.
struct DutyOrder {
  std::string id;
  DutyKind kind = DutyKind::kDeploy;
  std::string model;  ///< "name@3"
  Json settings;      ///< as the request gave them
};

/// From a node: how one of its duties goes.
struct DutyReport {
  enum class State : uint8_t { kStarting, kWorking, kServing, kFinished, kFailed };
  std::string id;
  State state = State::kStarting;
  std::string stage;  ///< "fetching", "loading", "measuring", ...
  double fraction = 0;
  std::string host;  ///< where it serves; port 0: only through the coordinator
  int port = 0;
  Json result;                 ///< of one that has finished
  std::optional<Error> error;  ///< of one that has failed
};

/// All that a node should be doing, or says of what it does.
std::string encode_orders(const std::vector<DutyOrder>& orders);
std::string encode_reports(const std::vector<DutyReport>& reports);

// From another process: kCorrupt for what is none, or beyond the limits. Members that are not known
// are ignored; an order of an unknown kind is kUnsupported.
inline constexpr size_t kMostDuties = 256;  ///< of one node
Result<std::vector<DutyOrder>> parse_orders(std::string_view text);
Result<std::vector<DutyReport>> parse_reports(std::string_view text);

}  // namespace fastserve
