// The structure of docs/architecture.md, held against the source files.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "base/file.h"

namespace fs = std::filesystem;
using fastserve::read_file;

namespace {

/// Top to bottom: a room may include only rooms after it.
const std::vector<std::string> kRooms = {"cli", "python", "api",      "actors", "rpc",
                                         "net", "train",  "compress", "serve",  "store",
                                         "gpu", "cpu",    "model",    "schema", "base"};
/// Neighbours that must not see each other although one stands above the other.
const std::vector<std::set<std::string>> kStrangers = {
    {"train", "compress", "serve"},
    {"store", "serve", "train", "compress", "rpc"},
    {"net", "train", "compress", "serve", "store"},
    {"gpu", "cpu"}};
/// Prefix of a foreign header and the only rooms that may include it.
const std::vector<std::pair<std::string, std::set<std::string>>> kForeign = {
    {"CLI/", {"cli"}},
    {"pybind11/", {"python"}},
    {"caf/", {"actors"}},
    {"capnp/", {"rpc"}},
    {"kj/", {"rpc"}},
    {"openssl/", {"net"}},
    {"rocksdb/", {"store"}},
    {"cuda", {"gpu"}},
    {"cublas", {"gpu"}},
    {"cudnn", {"gpu"}},
    {"nccl", {"gpu"}},
    {"dnnl", {"cpu"}},
    {"oneapi/dnnl", {"cpu"}},
    {"hwy/", {"cpu"}},
    {"immintrin.h", {"cpu"}},
    {"nlohmann/", {"base"}},
    {"pcre2.h", {"model/tokenizer"}},
    {"utf8proc.h", {"model/tokenizer"}},
    {"xxhash.h", {"base"}},
};

struct Source {
  std::string path, room;  // relative to the project
  std::vector<std::string> lines;
};

std::vector<Source> sources() {
  std::vector<Source> found;
  const fs::path root = FASTSERVE_SOURCE_DIR;
  for (const std::string& room : kRooms) {
    if (!fs::exists(root / room)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / room)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".cu") continue;
      Source source{fs::relative(entry.path(), root), room, {}};
      std::istringstream text(read_file(entry.path()).value());
      for (std::string line; std::getline(text, line);) source.lines.push_back(line);
      found.push_back(std::move(source));
    }
  }
  return found;
}

std::vector<std::string> includes(const Source& source) {
  static const std::regex pattern(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"].*)");
  std::vector<std::string> found;
  std::smatch match;
  for (const std::string& line : source.lines)
    if (std::regex_match(line, match, pattern)) found.push_back(match[1]);
  return found;
}

long level(const std::string& room) {
  return std::find(kRooms.begin(), kRooms.end(), room) - kRooms.begin();
}

bool may_include(const std::string& room, const std::string& other) {
  if (room == other) return true;
  for (const auto& strangers : kStrangers)
    // store is closed to the rooms above it except through actors and api; rpc sees serve only.
    if (strangers.contains(room) && strangers.contains(other) &&
        !(room == "rpc" && other == "serve"))
      return false;
  return level(room) < level(other);
}

}  // namespace

TEST_CASE("includes point down the table of rooms only") {
  for (const Source& source : sources())
    for (const std::string& include : includes(source)) {
      const std::string other = include.substr(0, include.find('/'));
      if (include.find('/') == std::string::npos ||
          level(other) == static_cast<long>(kRooms.size()))
        continue;
      CHECK_MESSAGE(may_include(source.room, other), source.path << " includes " << include);
    }
}

TEST_CASE("a foreign library is included in the room that owns it and nowhere else") {
  for (const Source& source : sources())
    for (const std::string& include : includes(source))
      for (const auto& [prefix, rooms] : kForeign) {
        if (!include.starts_with(prefix)) continue;
        const bool allowed = std::any_of(rooms.begin(), rooms.end(), [&](const std::string& room) {
          return source.path.starts_with(room + "/");
        });
        CHECK_MESSAGE(allowed, source.path << " includes " << include);
      }
}

TEST_CASE("the public header shows no foreign type") {
  const fs::path header = fs::path(FASTSERVE_SOURCE_DIR) / "api/fastserve/fastserve.h";
  if (!fs::exists(header)) return;
  for (const std::string& include : includes({"", "", [&] {
                                                std::vector<std::string> lines;
                                                std::istringstream text(read_file(header).value());
                                                for (std::string line; std::getline(text, line);)
                                                  lines.push_back(line);
                                                return lines;
                                              }()}))
    CHECK_MESSAGE(include.find('/') == std::string::npos, "fastserve.h includes " << include);
}

TEST_CASE("CMake links rooms downwards only") {
  const std::map<std::string, std::string> room_of = {{"tokenizer", "model"},
                                                      {"transformer", "model"},
                                                      {"cpu_train", "cpu"},
                                                      {"cpu_decode", "cpu"},
                                                      {"cpu_reference", "cpu"}};
  const auto room = [&](const std::string& target) {
    const auto it = room_of.find(target);
    return it == room_of.end() ? target : it->second;
  };
  const std::regex pattern(R"(fastserve_room\((\w+)([^)]*)\))");
  for (const std::string& top : kRooms) {
    const fs::path folder = fs::path(FASTSERVE_SOURCE_DIR) / top;
    if (!fs::exists(folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.path().filename() != "CMakeLists.txt") continue;
      const std::string text = read_file(entry.path()).value();
      for (auto it = std::sregex_iterator(text.begin(), text.end(), pattern);
           it != std::sregex_iterator(); ++it) {
        std::istringstream words((*it)[2]);
        bool uses = false;
        for (std::string word; words >> word;) {
          if (word == "USES" || word == "LIBRARIES")
            uses = word == "USES";
          else if (uses)
            CHECK_MESSAGE(may_include(room((*it)[1]), room(word)), entry.path().string()
                                                                       << ": " << word);
        }
      }
    }
  }
}

TEST_CASE("files fit a head, lines fit a screen, and no path of a machine is in them") {
  const std::regex machine_path(R"((/root/|/home/[a-z]|/work/|/tmp/[a-z]+-[a-z0-9]{6,}))");
  for (const Source& source : sources()) {
    CHECK_MESSAGE(source.lines.size() <= 400,
                  source.path << " has " << source.lines.size() << " lines");
    for (size_t i = 0; i < source.lines.size(); i++) {
      // Links cannot be broken; everything else can.
      if (source.lines[i].find("http") == std::string::npos)
        CHECK_MESSAGE(source.lines[i].size() <= 120, source.path << ":" << i + 1 << " is too wide");
      CHECK_MESSAGE(!std::regex_search(source.lines[i], machine_path), source.path << ":" << i + 1);
    }
  }
}

TEST_CASE("no folder hides behind a name that says nothing") {
  const std::set<std::string> empty_words = {"utils",  "util",    "helpers", "helper",
                                             "common", "manager", "misc"};
  for (const Source& source : sources()) {
    CHECK_MESSAGE(!empty_words.contains(fs::path(source.path).stem()), source.path);
    for (const auto& part : fs::path(source.path))
      CHECK_MESSAGE(!empty_words.contains(part), source.path);
  }
}
