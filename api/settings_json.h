// Settings of a request as JSON: each has a name, and what reads them refuses what it does not
// know.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/spelling.h"

namespace fastserve {

inline Error is_no_setting(const char* name, const char* kind) {
  return {ErrorCode::kInvalidArgument, fmt::format("is no {}", kind), name,
          "see schema/cluster.capnp"};
}

// take(): one setting. Rooms that have types of their own add overloads before they read.

inline Status take(const char* name, const Json& json, std::string& value) {
  if (!json.is_string()) return is_no_setting(name, "text");
  value = json.as_string();
  return {};
}

inline Status take(const char* name, const Json& json, Path& value) {
  if (!json.is_string()) return is_no_setting(name, "text");
  value = json.as_string();
  return {};
}

template <class Integer>
requires std::is_integral_v<Integer> &&(!std::is_same_v<Integer, bool>)Status
    take(const char* name, const Json& json, Integer& value) {
  if (!json.is_int() || !std::in_range<Integer>(json.as_int()))
    return is_no_setting(name, "such integer");
  value = static_cast<Integer>(json.as_int());
  return {};
}

inline Status take(const char* name, const Json& json, double& value) {
  if (!json.is_number() || !std::isfinite(json.as_double())) return is_no_setting(name, "number");
  value = json.as_double();
  return {};
}

inline Status take(const char* name, const Json& json, bool& value) {
  if (!json.is_bool()) return is_no_setting(name, "true or false");
  value = json.as_bool();
  return {};
}

/// Reads what `settings` visits: it calls what it is given with each name and value. `call` is the
/// method of schema/cluster.capnp that lists them, `what` what they are settings of.
/// kInvalidArgument for a key that is none or a value that cannot be, naming it.
template <class Settings, class Take>
Status read_settings(const Json& json, const char* call, const char* what, const Settings& settings,
                     const Take& take_one) {
  if (!json.is_object()) return is_no_setting("the request", "object");
  std::vector<std::string> names;
  Status status;
  settings([&](const char* name, auto& value) {
    names.emplace_back(name);
    const Json* given = json.find_set(name);
    if (given == nullptr || !status.ok()) return;
    if constexpr (requires { value.has_value(); })
      status = take_one(name, *given, value.emplace());
    else
      status = take_one(name, *given, value);
  });
  if (!status.ok()) return status;
  for (const auto& [key, value] : json.as_object()) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const auto near = near_names(key, names);
    return Error{
        ErrorCode::kInvalidArgument, fmt::format("is no setting of {}", what), key,
        near.empty()
            ? fmt::format("see {}() in schema/cluster.capnp; or update the coordinator", call)
            : "did you mean " + near.front() + "?"};
  }
  return {};
}

}  // namespace fastserve
