#include "model/tokenizer/parity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <functional>
#include <optional>

#include "model/tokenizer.h"
#include "model/tokenizer/fields.h"

namespace fastserve {
namespace {

constexpr size_t kMostExamples = 5;
constexpr size_t kExampleLength = 400;

Result<std::vector<int32_t>> read_ids(const Section& line, std::string_view key) {
  FS_ASSIGN(const Json::Array* list, line.required_list(key));
  std::vector<int32_t> ids;
  for (const Json& id : *list) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > INT32_MAX)
      return line.corrupt(fmt::format("\"{}\" holds something that is no token id", key));
    ids.push_back(static_cast<int32_t>(id.as_int()));
  }
  return ids;
}

std::string shorten(std::string text) {
  if (text.size() > kExampleLength) text = text.substr(0, kExampleLength) + "...";
  return text;
}

std::string show(const std::vector<int32_t>& ids) { return shorten(fmt::format("{}", ids)); }
std::string show(const std::string& text) { return shorten(Json(text).dump()); }

/// Calls check(line) for each line that is not empty.
Status each_line(const Path& path, const std::function<Status(const Section&)>& check) {
  FS_ASSIGN(const std::string text, read_file(path));
  size_t begin = 0;
  for (int number = 1; begin < text.size(); number++) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    FS_ASSIGN(const Json json, Json::parse(line, where));
    FS_TRY(check({json, where}));
  }
  return {};
}

class Comparison {
 public:
  explicit Comparison(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  Status encode_case(const Section& line) {
    FS_ASSIGN(const std::string text, line.text("text", ""));
    FS_ASSIGN(const auto ids, read_ids(line, "ids"));
    FS_ASSIGN(const auto ids_bos, read_ids(line, "ids_bos"));
    FS_TRY(encoded(line, "ids", text, {}, result.ids));
    FS_TRY(encoded(line, "ids_bos", text, {.add_special_tokens = true}, result.ids_bos));
    FS_TRY(encoded(line, "ids_plain", text, {.parse_special_tokens = false}, result.ids_plain));
    FS_TRY(decoded(line, "decoded", ids, false, result.decoded));
    return decoded(line, "decoded_skip_special", ids_bos, true, result.decoded_skip_special);
  }

  Status decode_case(const Section& line) {
    FS_ASSIGN(const auto ids, read_ids(line, "ids"));
    FS_TRY(decoded(line, "decoded", ids, false, result.decode_cases));
    return decoded(line, "decoded_skip_special", ids, true, result.decode_cases);
  }

  TokenizerParity result;

 private:
  Status encoded(const Section& line, const char* key, const std::string& text,
                 const EncodeOptions& options, ParityCount& count) {
    FS_ASSIGN(const auto expected, read_ids(line, key));
    const auto found = tokenizer_->encode(text, options);
    if (!found.ok())
      note(line, key, show(expected), found.error().message(), false, count);
    else
      note(line, key, show(expected), show(*found), *found == expected, count);
    return {};
  }

  Status decoded(const Section& line, const char* key, const std::vector<int32_t>& ids, bool skip,
                 ParityCount& count) {
    FS_ASSIGN(const std::string expected, line.required_text(key));
    const std::string found = tokenizer_->decode(ids, skip);
    note(line, key, show(expected), show(found), found == expected, count);
    return {};
  }

  void note(const Section& line, const char* key, const std::string& expected,
            const std::string& found, bool equal, ParityCount& count) {
    count.cases++;
    if (equal) return;
    count.mismatches++;
    if (count.mismatches > 1 && result.examples.size() >= kMostExamples) return;
    const std::string example =
        fmt::format("{}: {}: expected {}, found {}", line.where, key, expected, found);
    if (count.mismatches == 1) count.first_mismatch = example;
    if (result.examples.size() < kMostExamples) result.examples.push_back(example);
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace

Result<TokenizerParity> check_tokenizer_cases(const Path& directory) {
  FS_ASSIGN(auto tokenizer, Tokenizer::load(directory / "tokenizer.json"));
  Comparison comparison(std::move(tokenizer));
  FS_TRY(each_line(directory / "cases.jsonl",
                   [&](const Section& line) { return comparison.encode_case(line); }));
  const Path decode_cases = directory / "decode_cases.jsonl";
  if (std::filesystem::exists(decode_cases))
    FS_TRY(
        each_line(decode_cases, [&](const Section& line) { return comparison.decode_case(line); }));
  return std::move(comparison.result);
}

}  // namespace fastserve
