// Every broken file of the reference's manifest, and some of our own.
#include <doctest/doctest.h>

#include <cstring>

#include "base/json.h"
#include "model/huggingface.h"
#include "model/safetensors.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

namespace {

/// Opens one case as a user would; the error, or nothing.
std::optional<Error> open_case(const Path& root, const Json& entry) {
  const std::string kind = entry.find("kind")->as_string();
  const Path path = root / entry.find("path")->as_string();
  if (kind == "safetensors") {
    const auto file = SafetensorsFile::open(path);
    if (!file.ok()) return file.error();
    return std::nullopt;
  }
  if (kind == "sharded index") {
    const auto source = open_safetensors_directory(path);
    if (!source.ok()) return source.error();
    return std::nullopt;
  }
  const TemporaryFolder folder;
  std::filesystem::copy(path, folder / "case");
  if (!std::filesystem::exists(folder / "case/model.safetensors"))
    std::filesystem::copy(root / "config" / "model.safetensors", folder / "case");
  const auto bundle = read_model_directory(folder / "case");
  if (!bundle.ok()) return bundle.error();
  return std::nullopt;
}

/// The bytes of a file with this header and `data` bytes of zeros.
std::vector<std::byte> file_of(const std::string& header, size_t data) {
  std::vector<std::byte> bytes(8 + header.size() + data);
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

std::string refusal(const std::string& header, size_t data) {
  const std::vector<std::byte> bytes = file_of(header, data);
  const auto file = SafetensorsFile::parse(bytes, "weights");
  REQUIRE(!file.ok());
  CHECK(file.error().where.starts_with("weights"));
  return file.error().message();
}

bool says(const std::string& message, const char* words) {
  INFO(message);
  return message.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("every malformed file is refused with a clear error and every odd legal one is read") {
  const Path root = reference_directory() / "malformed";
  const auto text = read_file(root / "manifest.json");
  REQUIRE(text.ok());
  const auto manifest = Json::parse(*text, "manifest.json");
  REQUIRE(manifest.ok());
  int seen = 0;
  for (const Json& entry : manifest->as_array()) {
    if (entry.find("kind")->as_string() == "tokenizer") continue;
    const std::string path = entry.find("path")->as_string();
    const std::string expected = entry.find("expected")->as_string();
    CAPTURE(path);
    seen++;
    const std::optional<Error> error = open_case(root, entry);
    if (error) INFO(error->message());
    if (expected == "ok") CHECK(!error);
    if (expected == "clear error") {
      REQUIRE(error);
      CHECK(!error->what.empty());
      CHECK(!error->where.empty());
      CHECK(!error->hint.empty());
      CHECK(error->code != ErrorCode::kInternal);
    }
  }
  CHECK(seen >= 20);
}

TEST_CASE("a truncated safetensors file is refused with its name, the offset and what to do") {
  const Path path = reference_directory() / "malformed/safetensors/truncated_data.safetensors";
  const auto file = SafetensorsFile::open(path);
  REQUIRE(!file.ok());
  CHECK(file.error().code == ErrorCode::kCorrupt);
  CHECK(file.error().where == path.string());
  CHECK(says(file.error().what, "byte"));
  CHECK(says(file.error().hint, "download"));
}

TEST_CASE("a header that lies about a tensor is refused before anything is allocated for it") {
  const std::string huge =
      R"({"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}})";
  CHECK(says(refusal(huge, 4), "contradicts its 4 bytes"));
  CHECK(says(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8),
             "end at byte 4 of the data, which has 8"));
  CHECK(says(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8),
             "nothing fills it from byte 0"));
  CHECK(says(refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4),
             "ends at byte 8 of the data, which has 4"));
  CHECK(says(refusal(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "shape"));
  CHECK(says(
      refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4),
      "data_offsets"));
  CHECK(says(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4),
             "offsets [4, 0]"));
  CHECK(says(refusal(R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4),
             "F8_E4M3 is not supported"));
  CHECK(says(refusal(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4), "\"F33\""));
  CHECK(says(refusal(R"({"a":7})", 0), "data_offsets"));
  CHECK(says(refusal(R"([1, 2])", 0), "not a JSON object"));
  CHECK(says(refusal(R"({"__metadata__":{"a":1}})", 0), "__metadata__"));
  CHECK(says(refusal(std::string(4000, '['), 0), "nests"));
}

TEST_CASE("a shard name that leaves the directory is refused") {
  const TemporaryFolder folder;
  const auto index = [&](const std::string& shard) {
    REQUIRE(write_file_atomically(folder / "model.safetensors.index.json",
                                  R"({"weight_map": {"a": ")" + shard + R"("}})")
                .ok());
    const auto source = open_safetensors_directory(folder / "");
    REQUIRE(!source.ok());
    return source.error().message();
  };
  CHECK(says(index("../other.safetensors"), "not a file name"));
  CHECK(says(index("/etc/passwd"), "not a file name"));
  CHECK(says(index("gone.safetensors"), "gone.safetensors, which is not there"));
}

TEST_CASE("a directory without weights says which files were looked for") {
  const TemporaryFolder folder;
  CHECK(says(open_safetensors_directory(folder / "").error().message(),
             "neither model.safetensors nor"));
  REQUIRE(write_file_atomically(folder / "pytorch_model.bin", "x").ok());
  CHECK(says(open_safetensors_directory(folder / "").error().message(),
             "convert them to safetensors"));
  CHECK(says(read_model_directory(folder / "nothing").error().message(), "is not a directory"));
  CHECK(says(read_model_directory(folder / "").error().message(), "has no config.json"));
}
