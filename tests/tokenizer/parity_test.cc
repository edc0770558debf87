// Every recorded case of the tokenizers library, from the small set in the repository and from the
// whole reference where there is one.
#include "model/tokenizer/parity.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>

namespace fastserve {
namespace {

std::vector<Path> reference_directories() {
  std::vector<Path> roots = {Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference"};
  if (const char* given = std::getenv("FASTSERVE_REFERENCE"))
    roots.emplace_back(given);
  else
    roots.push_back(Path(FASTSERVE_SOURCE_DIR).parent_path() / "shared/reference");
  std::vector<Path> found;
  for (const Path& root : roots) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(root / "tokenizers", error))
      if (std::filesystem::exists(entry.path() / "cases.jsonl")) found.push_back(entry.path());
  }
  return found;
}

void require_equal(const Path& directory) {
  const auto parity = check_tokenizer_cases(directory);
  REQUIRE_MESSAGE(parity.ok(), parity.error().message());
  for (const std::string& example : parity->examples) MESSAGE(example);
  CHECK(parity->ids.cases > 0);
  CHECK(parity->ids.mismatches == 0);
  CHECK(parity->ids_bos.mismatches == 0);
  CHECK(parity->ids_plain.mismatches == 0);
  CHECK(parity->decoded.mismatches == 0);
  CHECK(parity->decoded_skip_special.mismatches == 0);
  CHECK(parity->decode_cases.mismatches == 0);
}

}  // namespace

TEST_CASE("every recorded text encodes and decodes as the tokenizers library does it") {
  const std::vector<Path> directories = reference_directories();
  CHECK(directories.size() >= 6);
  for (const Path& directory : directories) {
    CAPTURE(directory.string());
    require_equal(directory);
  }
}

}  // namespace fastserve
