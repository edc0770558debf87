#include "train/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "base/json.h"

namespace fastserve {
namespace {

constexpr uint64_t kLargestFile = uint64_t{64} << 30;

bool is_text(const Path& file) { return file.extension() == ".txt" || file.extension() == ".md"; }
bool is_lines(const Path& file) { return file.extension() == ".jsonl"; }
bool is_tokens(const Path& file) {
  return file.extension() == ".fstok" || file.extension() == ".bin";
}

bool names_validation(const Path& file) {
  std::string name = file.filename().string();
  name = name.substr(0, name.find('.'));
  for (const char* whole : {"val", "valid", "validation", "test"})
    if (name == whole) return true;
  return name.find("_val") != std::string::npos || name.find("-val") != std::string::npos;
}

Error bad_file(const Path& file, std::string what, std::string hint) {
  return {ErrorCode::kInvalidArgument, std::move(what), file.string(), std::move(hint)};
}

/// Every readable file below `folder`, sorted, so that the order is the same on every machine.
Result<std::vector<Path>> list_files(const Path& folder) {
  namespace fs = std::filesystem;
  std::vector<Path> found;
  std::error_code error;
  auto it = fs::recursive_directory_iterator(folder, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const Path& path = it->path();
    std::error_code unreadable;  // a link to nowhere or to itself is no file
    if (path.filename().string().starts_with('.')) {
      if (it->is_directory(unreadable)) it.disable_recursion_pending();
      continue;
    }
    if ((is_text(path) || is_lines(path) || is_tokens(path)) && it->is_regular_file(unreadable))
      found.push_back(path);
  }
  if (error)
    return Error{ErrorCode::kIo, "cannot be listed: " + error.message(), folder.string(), ""};
  std::sort(found.begin(), found.end());
  return found;
}

/// What text is called that begins with the byte order mark of a wider encoding; null: it does not.
const char* wide_encoding(std::string_view text) {
  using namespace std::string_view_literals;
  if (text.starts_with("\xff\xfe\0\0"sv) || text.starts_with("\0\0\xfe\xff"sv)) return "UTF-32";
  if (text.starts_with("\xff\xfe"sv) || text.starts_with("\xfe\xff"sv)) return "UTF-16";
  return nullptr;
}

Status check_text(const Path& file, std::string_view text) {
  if (text.empty()) return bad_file(file, "is empty", "remove it or put text in it");
  if (const char* encoding = wide_encoding(text))
    return bad_file(file, fmt::format("is {}, not UTF-8", encoding),
                    fmt::format("convert it: iconv -f {} -t utf-8", encoding));
  if (const void* nul = std::memchr(text.data(), 0, text.size()))
    return bad_file(file,
                    fmt::format("is binary: there is a NUL at byte {}",
                                static_cast<const char*>(nul) - text.data()),
                    "only text belongs in .txt, .md and .jsonl files");
  const size_t bad = first_invalid_utf8(text);
  if (bad != std::string_view::npos)
    return bad_file(file, fmt::format("is not UTF-8 at byte {}", bad),
                    "convert it, for example with iconv -f latin1 -t utf-8");
  return {};
}

}  // namespace

size_t first_invalid_utf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    uint64_t word;
    if (i + 8 <= n && (std::memcpy(&word, bytes + i, 8), (word & 0x8080808080808080) == 0)) {
      i += 8;
      continue;
    }
    const unsigned char lead = bytes[i];
    if (lead < 0x80) {
      i++;
      continue;
    }
    const size_t more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || i + more >= n) return i;
    // The second byte's range keeps out long forms, surrogates and what lies past U+10FFFF.
    const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (bytes[i + 1] < low || bytes[i + 1] > high) return i;
    for (size_t j = 2; j <= more; j++)
      if ((bytes[i + j] & 0xc0) != 0x80) return i;
    i += more + 1;
  }
  return std::string_view::npos;
}

void Corpus::keep(std::string text, bool validation) {
  bytes_ += text.size();
  texts_.push_back(std::make_shared<const std::string>(std::move(text)));
  documents_.push_back({*texts_.back(), validation});
}

Status Corpus::add_text(const Path& file, std::string text, bool validation) {
  FS_TRY(check_text(file, text));
  keep(std::move(text), validation);
  return {};
}

Status Corpus::add_lines(const Path& file, const std::string& lines, bool validation) {
  FS_TRY(check_text(file, lines));
  size_t number = 0;
  const size_t before = documents_.size();
  for (size_t from = 0; from < lines.size(); number++) {
    size_t to = lines.find('\n', from);
    if (to == std::string::npos) to = lines.size();
    const std::string_view line(lines.data() + from, to - from);
    from = to + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", file.string(), number + 1);
    const auto json = Json::parse(line, where);
    if (!json.ok()) {
      Error error = json.error();
      error.hint = "correct or remove the line: each must look like {\"text\": \"...\"}";
      return error;
    }
    const Json* text = json->find("text");
    if (text == nullptr || !text->is_string())
      return Error{ErrorCode::kInvalidArgument, "has no `text` field that is a string", where,
                   "each line must look like {\"text\": \"...\"}"};
    if (text->as_string().find('\0') != std::string::npos)
      return Error{ErrorCode::kInvalidArgument, "holds a NUL character in its text", where,
                   "remove the line"};
    if (!text->as_string().empty()) keep(text->as_string(), validation);
  }
  if (documents_.size() == before)
    return bad_file(file, "holds no text", "remove it or put lines with a `text` field in it");
  return {};
}

Result<Corpus> Corpus::load(const Path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    return Error{ErrorCode::kNotFound, "does not exist", path.string(), "check the path"};
  if (error)
    return Error{ErrorCode::kIo, "cannot be opened: " + error.message(), path.string(),
                 "check the path and its permissions"};
  const char* wanted = "put .txt, .md or .jsonl files there, or .fstok or .bin shards of tokens";
  std::vector<Path> files{path};
  if (fs::is_directory(status)) {
    FS_ASSIGN(files, list_files(path));
    if (files.empty())
      return Error{ErrorCode::kNotFound, "holds no text to train on", path.string(), wanted};
  } else if (!fs::is_regular_file(status) ||
             (!is_text(path) && !is_lines(path) && !is_tokens(path))) {
    return bad_file(path, "is not a kind of file that can be trained on", wanted);
  }
  Corpus corpus;
  corpus.path_ = path;
  corpus.files_ = files.size();
  for (const Path& file : files) {
    const bool validation = names_validation(file);
    if (is_tokens(file)) {
      FS_ASSIGN(TokenFile shard, read_token_file(file));
      corpus.shards_.push_back({std::move(shard), validation});
      continue;
    }
    FS_ASSIGN(std::string text, read_file(file, kLargestFile));
    if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);  // a byte order mark is no text
    if (is_lines(file))
      FS_TRY(corpus.add_lines(file, text, validation));
    else
      FS_TRY(corpus.add_text(file, std::move(text), validation));
  }
  if (!corpus.shards_.empty() && !corpus.documents_.empty())
    return Error{ErrorCode::kInvalidArgument, "holds both texts and pre-tokenised shards",
                 path.string(), "move one kind to a directory of its own"};
  return corpus;
}

}  // namespace fastserve
