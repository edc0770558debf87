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
const std::vector<std::string> kRooms = {"cli", "python", "api",      "actors", "rpc",   "cluster",
                                         "net", "train",  "compress", "serve",  "store", "gpu",
                                         "cpu", "model",  "schema",   "base"};
/// Neighbours that must not see each other although one stands above the other.
const std::vector<std::set<std::string>> kStrangers = {
    {"train", "compress", "serve"},
    {"store", "serve", "train", "compress", "rpc"},
    {"cluster", "compress", "serve"},
    {"net", "train", "compress", "serve", "store"},
    {"gpu", "cpu"}};
/// cluster/ decides about certificates and never touches a socket: all it may include of net/.
const std::set<std::string> kNetForCluster = {"net/identity.h", "net/join_documents.h",
                                              "net/sha256.h"};
/// Prefix of a foreign header and the only rooms that may include it.
const std::vector<std::pair<std::string, std::set<std::string>>> kForeign = {
    {"CLI/", {"cli"}},
    {"pybind11/", {"python"}},
    {"caf/", {"actors"}},
    {"capnp/", {"rpc"}},
    {"kj/", {"rpc"}},
    {"openssl/", {"net"}},
    {"sys/socket.h", {"net"}},
    {"netinet/", {"net"}},
    {"arpa/inet.h", {"net"}},
    {"netdb.h", {"net"}},
    {"rocksdb/", {"store"}},
    {"cuda", {"gpu/cuda", "gpu/simt"}},
    {"cublas", {"gpu/cuda"}},
    {"cudnn", {"gpu/cuda"}},
    {"nccl", {"gpu/cuda"}},
    {"dnnl", {"cpu"}},
    {"oneapi/dnnl", {"cpu"}},
    {"hwy/", {"cpu"}},
    {"immintrin.h", {"cpu"}},
    {"nlohmann/", {"base"}},
    {"pcre2.h", {"model/tokenizer"}},
    {"utf8proc.h", {"model/tokenizer"}},
    {"xxhash.h", {"base"}},
    {"xxh_x86dispatch.h", {"base"}},
};

/// Beginning of a foreign CMake target or variable, and the only rooms that may name it.
const std::vector<std::pair<std::string, std::set<std::string>>> kForeignTargets = {
    {"CLI11::", {"cli"}},
    {"CAF_", {"actors"}},
    {"CapnProto::", {"schema"}},
    {"RocksDB::", {"store"}},
    {"OpenSSL::", {"net"}},
    {"CUDA::", {"gpu"}},
    {"PkgConfig::PCRE2", {"model"}},
    {"PkgConfig::UTF8PROC", {"model"}},
    {"PkgConfig::XXHASH", {"base"}},
    {"nlohmann_json::", {"base"}},
};

struct Source {
  std::string path, room;  // relative to the project
  std::vector<std::string> lines;
};

const std::set<std::string> kCode = {".h", ".cc", ".cu", ".cuh", ".inc"};

std::vector<std::string> lines_of(const fs::path& path) {
  std::vector<std::string> lines;
  std::istringstream text(read_file(path).value());
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

/// Every file that a person wrote, but for recorded test data.
std::vector<fs::path> written_files() {
  const std::set<std::string> skipped = {"build", "fastserve-data", "data", "__pycache__"};
  std::vector<fs::path> found;
  auto it = fs::recursive_directory_iterator(FASTSERVE_SOURCE_DIR);
  for (; it != fs::recursive_directory_iterator(); ++it) {
    const std::string name = it->path().filename();
    if (it->is_directory() && (skipped.contains(name) || (name[0] == '.' && name != ".ci")))
      it.disable_recursion_pending();
    else if (it->is_regular_file())
      found.push_back(it->path());
  }
  return found;
}

/// The words of a CMake file without its comments, and what each stands in: "fastserve_room", ...
std::vector<std::pair<std::string, std::string>> cmake_words(const fs::path& path) {
  std::string text;
  for (const std::string& line : lines_of(path)) text += line.substr(0, line.find('#')) + "\n";
  static const std::regex call(R"((\w+)\s*\(([^()]*)\))");
  std::vector<std::pair<std::string, std::string>> found;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), call); it != std::sregex_iterator();
       ++it) {
    std::istringstream words((*it)[2]);
    for (std::string word; words >> word;) found.emplace_back((*it)[1], word);
  }
  return found;
}

/// CMakeLists.txt files of each room.
std::vector<std::pair<std::string, fs::path>> room_builds() {
  std::vector<std::pair<std::string, fs::path>> found;
  for (const std::string& room : kRooms) {
    const fs::path folder = fs::path(FASTSERVE_SOURCE_DIR) / room;
    if (!fs::exists(folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      if (entry.path().filename() == "CMakeLists.txt") found.emplace_back(room, entry.path());
  }
  return found;
}

std::vector<Source> sources() {
  std::vector<Source> found;
  const fs::path root = FASTSERVE_SOURCE_DIR;
  for (const std::string& room : kRooms) {
    if (!fs::exists(root / room)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / room)) {
      const std::string extension = entry.path().extension();
      if (!kCode.contains(extension)) continue;
      found.push_back({fs::relative(entry.path(), root), room, lines_of(entry.path())});
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
      if (source.room == "cluster" && other == "net")
        CHECK_MESSAGE(kNetForCluster.contains(include), source.path << " includes " << include);
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

TEST_CASE("the public headers show no foreign type") {
  const fs::path folder = fs::path(FASTSERVE_SOURCE_DIR) / "api/fastserve";
  for (const auto& header : fs::directory_iterator(folder))
    for (const std::string& include : includes({"", "", lines_of(header.path())}))
      CHECK_MESSAGE(include.find('/') == std::string::npos, header.path()
                                                                << " includes " << include);
}

TEST_CASE("CMake links rooms downwards, and a foreign library where it belongs") {
  std::map<std::string, std::string> room_of;  // by target, without "fastserve_"
  for (const auto& [room, build] : room_builds()) {
    const auto words = cmake_words(build);
    for (size_t i = 0; i < words.size(); i++) {
      const bool first = i == 0 || words[i - 1].first != words[i].first;
      if (words[i].first == "fastserve_room" && first) room_of[words[i].second] = room;
      if (words[i].first == "add_library" && words[i].second.starts_with("fastserve_"))
        room_of[words[i].second.substr(10)] = room;
    }
  }
  CHECK(room_of.size() >= 15);
  for (const auto& [room, build] : room_builds()) {
    bool uses = false;
    for (const auto& [call, word] : cmake_words(build)) {
      if (word == "USES" || word == "LIBRARIES") uses = word == "USES";
      std::string target;
      if (call == "fastserve_room" && uses && word != "USES") target = word;
      if (call == "target_link_libraries" && word.starts_with("fastserve_"))
        target = word.substr(10);
      if (call != "fastserve_room") uses = false;
      for (const auto& [prefix, rooms] : kForeignTargets)
        if (word.find(prefix) != std::string::npos)
          CHECK_MESSAGE(rooms.contains(room), build.string() << " names " << word);
      if (target.empty() || target == "flags") continue;
      REQUIRE_MESSAGE(room_of.contains(target), build.string() << " links " << target);
      CHECK_MESSAGE(may_include(room, room_of[target]), build.string() << " links " << target);
    }
  }
}

TEST_CASE("files fit a head and lines fit a screen") {
  for (const fs::path& path : written_files()) {
    if (!kCode.contains(path.extension())) continue;
    const auto lines = lines_of(path);
    // A test tells its cases one after the other: a little more fits a head.
    const size_t most = path.string().find("/tests/") == std::string::npos ? 400 : 450;
    CHECK_MESSAGE(lines.size() <= most, path.string() << " has " << lines.size() << " lines");
    for (size_t i = 0; i < lines.size(); i++)  // links cannot be broken; everything else can
      if (lines[i].find("http") == std::string::npos)
        CHECK_MESSAGE(lines[i].size() <= 120, path.string() << ":" << i + 1 << " is too wide");
  }
}

TEST_CASE("no path of a machine is in any file") {
  const std::regex machine_path(R"((/root/|/home/[a-z]|/work/|/tmp/[a-z]+-[a-z0-9]{6,}))");
  for (const fs::path& path : written_files()) {
    const auto lines = lines_of(path);
    for (size_t i = 0; i < lines.size(); i++)
      if (lines[i].find("machine_path(R") == std::string::npos)
        CHECK_MESSAGE(!std::regex_search(lines[i], machine_path), path.string() << ":" << i + 1);
  }
}

TEST_CASE("the documents name every package and every folder") {
  const fs::path root = FASTSERVE_SOURCE_DIR;
  const std::string dependencies = read_file(root / "docs/dependencies.md").value();
  for (const std::string& line : lines_of(root / "cmake/packages.txt"))
    if (!line.starts_with("#"))
      CHECK_MESSAGE(dependencies.find(line) != std::string::npos,
                    line << " is not in dependencies.md");
  const std::string readme = read_file(root / "README.md").value();
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename();
    if (!entry.is_directory() || name[0] == '.' || name == "build" || name == "fastserve-data")
      continue;
    CHECK_MESSAGE(readme.find("── " + name + "/") != std::string::npos,
                  name << "/ is not in README's tree");
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
