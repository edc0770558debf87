// Runs a fuzz target without libFuzzer: PROGRAM MUTATIONS CORPUS...
// Every file of the corpus first, then seeded mutations of them: the same inputs on every run.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;
namespace fs = std::filesystem;

constexpr size_t kLargest = 1 << 16;  // larger corpus files would only slow the mutations down

void read_corpus(const fs::path& path, std::vector<Input>& corpus) {
  if (fs::is_directory(path)) {
    std::vector<fs::path> entries;
    for (const auto& entry : fs::directory_iterator(path)) entries.push_back(entry.path());
    std::sort(entries.begin(), entries.end());  // the order of a directory differs between machines
    for (const fs::path& entry : entries) read_corpus(entry, corpus);
    return;
  }
  if (fs::file_size(path) > kLargest) return;
  std::ifstream file(path, std::ios::binary);
  corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

/// Replaces a run of digits by a number that breaks careless arithmetic.
void replace_number(Input& input, fastserve::Rng& rng) {
  static const char* const kNumbers[] = {"0",
                                         "-1",
                                         "1",
                                         "2147483647",
                                         "2147483648",
                                         "4294967296",
                                         "9223372036854775807",
                                         "18446744073709551615",
                                         "1e400",
                                         "0.5",
                                         "-0.0",
                                         "1e-400",
                                         "null",
                                         "[]",
                                         "{}"};
  const auto digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
  auto first = std::find_if(input.begin() + static_cast<std::ptrdiff_t>(rng.below(input.size())),
                            input.end(), digit);
  auto last = std::find_if_not(first, input.end(), digit);
  const std::string number = kNumbers[rng.below(std::size(kNumbers))];
  first = input.erase(first, last);
  input.insert(first, number.begin(), number.end());
}

void mutate(Input& input, const std::vector<Input>& corpus, fastserve::Rng& rng) {
  if (input.empty()) input.push_back(0);
  const auto at = [&](size_t i) { return input.begin() + static_cast<std::ptrdiff_t>(i); };
  const size_t here = rng.below(input.size()),
               length = 1 + rng.below(std::min<size_t>(32, input.size() - here));
  switch (rng.below(7)) {
    case 0:
      input[here] ^= static_cast<uint8_t>(1u << rng.below(8));
      return;
    case 1:
      input[here] = static_cast<uint8_t>(rng.next());
      return;
    case 2:
      input.erase(at(here), at(here + length));
      return;
    case 3:
      input.resize(here);
      return;
    case 4: {
      const Input copy(at(here), at(here + length));
      input.insert(at(rng.below(input.size())), copy.begin(), copy.end());
      return;
    }
    case 5: {
      const Input& other = corpus[rng.below(corpus.size())];
      if (other.empty()) return;
      const size_t from = rng.below(other.size()),
                   size = std::min<size_t>(other.size() - from, 1 + rng.below(64));
      input.insert(at(here), other.begin() + static_cast<std::ptrdiff_t>(from),
                   other.begin() + static_cast<std::ptrdiff_t>(from + size));
      return;
    }
    default:
      replace_number(input, rng);
      return;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MUTATIONS CORPUS...\n", argv[0]);
    return 2;
  }
  std::vector<Input> corpus;
  for (int i = 2; i < argc; i++) read_corpus(argv[i], corpus);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: the corpus is empty\n", argv[0]);
    return 2;
  }
  for (const Input& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  const long mutations = std::strtol(argv[1], nullptr, 10);
  for (long i = 0; i < mutations; i++) {
    fastserve::Rng rng(static_cast<uint64_t>(i));
    Input input = corpus[rng.below(corpus.size())];
    for (uint64_t n = 1 + rng.below(6); n > 0; n--) mutate(input, corpus, rng);
    const Input exact(
        input);  // no spare capacity: a read past the end shows under AddressSanitizer
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
  }
  std::printf("%zu corpus files and %ld mutations: no crash\n", corpus.size(), mutations);
  return 0;
}
