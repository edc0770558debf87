// Reading the sections of tokenizer.json: typed members, with errors that name the section.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// One object of tokenizer.json and where it stands ("tokenizer.json: pre_tokenizer").
struct Section {
  const Json& json;
  std::string where;

  Error corrupt(std::string what) const;
  Error unsupported(std::string what) const;

  // The member; the fallback when absent or null; kCorrupt when of another type.
  Result<bool> flag(std::string_view key, bool fallback) const;
  Result<int64_t> number(std::string_view key, int64_t fallback) const;
  Result<std::string> text(std::string_view key, std::string_view fallback) const;
  /// kCorrupt when absent.
  Result<std::string> required_text(std::string_view key) const;
  Result<const Json::Array*> required_list(std::string_view key) const;
  /// One character; kCorrupt when absent or longer.
  Result<std::string> character(std::string_view key) const;
};

}  // namespace fastserve
