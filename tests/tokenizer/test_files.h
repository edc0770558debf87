// Files that the tokenizer's tests read.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace fastserve {

inline Path test_data() { return Path(FASTSERVE_SOURCE_DIR) / "tests/data"; }

inline std::string read_text(const Path& path) {
  auto text = read_file(path);
  REQUIRE_MESSAGE(text.ok(), text.error().message());
  return *std::move(text);
}

inline std::vector<std::string> read_lines(const Path& path) {
  const std::string text = read_text(path);
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

inline Json parse_json(std::string_view text) {
  auto json = Json::parse(text, "test");
  REQUIRE_MESSAGE(json.ok(), json.error().message());
  return *std::move(json);
}

}  // namespace fastserve
