#include "train/token_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "base/rng.h"

namespace fastserve {
namespace {

constexpr char kMagic[] = "FSTOK1";
constexpr size_t kMagicBytes = 6, kHeaderBytes = 24;
constexpr uint32_t kNoEndOfText = 0xffffffff;
constexpr int32_t kLlmcMagic = 20240520;
constexpr size_t kLlmcHeaderBytes = 1024;

template <class T>
T load(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <class T>
void store(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

Error corrupt(const Path& path, std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), path.string(),
          "write the shard again: FSTOK1, llm.c and bare two-byte ids can be read"};
}

void append_narrow(TokenArray& tokens, std::span<const std::byte> bytes) {
  std::vector<uint16_t> ids(bytes.size() / 2);
  std::memcpy(ids.data(), bytes.data(), ids.size() * 2);
  tokens.append(ids);
}

Result<TokenFile> read_fstok(const Path& path, std::span<const std::byte> bytes) {
  if (bytes.size() < kHeaderBytes) return corrupt(path, "ends inside its header");
  const auto width = load<uint8_t>(bytes, 6);
  const auto count = load<uint64_t>(bytes, 8);
  const auto vocab = load<uint32_t>(bytes, 16), end_of_text = load<uint32_t>(bytes, 20);
  const auto body = bytes.subspan(kHeaderBytes);
  if (width != 2 && width != 4)
    return corrupt(path, fmt::format("says {} bytes per id; 2 or 4 are possible", width));
  if (body.size() % width != 0 || count != body.size() / width)
    return corrupt(path, fmt::format("promises {} ids of {} bytes and holds {} bytes of them",
                                     count, width, body.size()));
  if (vocab > INT32_MAX) return corrupt(path, "has an absurd vocabulary size");
  TokenFile file;
  file.vocab_size = static_cast<int>(vocab);
  if (end_of_text != kNoEndOfText) file.end_of_text = static_cast<int32_t>(end_of_text);
  if (width == 2) {
    append_narrow(file.tokens, body);
  } else {
    std::vector<int32_t> ids(count);
    std::memcpy(ids.data(), body.data(), body.size());
    const auto bad = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
    if (bad != ids.end())
      return corrupt(path, fmt::format("id {} is larger than 2^31 - 1", bad - ids.begin()));
    file.tokens.append(ids);
  }
  if (vocab != 0 && file.tokens.largest() >= file.vocab_size)
    return corrupt(path, fmt::format("holds the id {}, outside its vocabulary of {}",
                                     file.tokens.largest(), vocab));
  return file;
}

}  // namespace

void TokenArray::widen() {
  wide_.assign(narrow_.begin(), narrow_.end());
  narrow_ = {};
}

void TokenArray::append(std::span<const int32_t> ids) {
  if (ids.empty()) return;
  const auto [least, most] = std::minmax_element(ids.begin(), ids.end());
  FS_CHECK(*least >= 0);
  largest_ = std::max(largest_, *most);
  if (wide_.empty() && *most > UINT16_MAX) widen();
  if (largest_ > UINT16_MAX)
    wide_.insert(wide_.end(), ids.begin(), ids.end());
  else
    narrow_.insert(narrow_.end(), ids.begin(), ids.end());
}

void TokenArray::append(std::span<const uint16_t> ids) {
  if (ids.empty()) return;
  largest_ = std::max(largest_, int32_t{*std::max_element(ids.begin(), ids.end())});
  if (wide_.empty())
    narrow_.insert(narrow_.end(), ids.begin(), ids.end());
  else
    wide_.insert(wide_.end(), ids.begin(), ids.end());
}

void TokenArray::append(const TokenArray& other, size_t from, size_t to) {
  if (other.wide_.empty()) {
    append(std::span(other.narrow_).subspan(from, to - from));
    return;
  }
  append(std::vector<int32_t>(other.wide_.begin() + static_cast<ptrdiff_t>(from),
                              other.wide_.begin() + static_cast<ptrdiff_t>(to)));
}

uint64_t TokenArray::fingerprint() const {
  uint64_t hash = mix64(size());
  constexpr size_t kPiece = 1 << 16;
  std::vector<int32_t> piece;
  for (size_t from = 0; from < size(); from += kPiece) {
    piece.clear();
    for (size_t i = from; i < std::min(size(), from + kPiece); i++) piece.push_back((*this)[i]);
    hash = hash64(std::as_bytes(std::span(piece)), hash);
  }
  return hash;
}

Result<TokenFile> read_token_file(const Path& path) {
  FS_ASSIGN(const MappedFile map, MappedFile::open(path));
  const auto bytes = map.bytes();
  if (bytes.empty())
    return Error{ErrorCode::kInvalidArgument, "is empty", path.string(), "remove it"};
  if (bytes.size() >= kMagicBytes && std::memcmp(bytes.data(), kMagic, kMagicBytes) == 0)
    return read_fstok(path, bytes);
  TokenFile file;
  if (bytes.size() >= kLlmcHeaderBytes && load<int32_t>(bytes, 0) == kLlmcMagic &&
      load<int32_t>(bytes, 4) == 1) {
    const auto body = bytes.subspan(kLlmcHeaderBytes);
    const auto count = load<int32_t>(bytes, 8);
    if (count < 0 || body.size() != static_cast<size_t>(count) * 2)
      return corrupt(path, fmt::format("promises {} ids of 2 bytes and holds {} bytes of them",
                                       count, body.size()));
    append_narrow(file.tokens, body);
    return file;
  }
  if (bytes.size() % 2 != 0)
    return corrupt(
        path, fmt::format("holds {} bytes, which are no whole number of 2-byte ids", bytes.size()));
  append_narrow(file.tokens, bytes);
  return file;
}

std::string encode_token_file(const TokenFile& file) {
  const bool wide = file.tokens.largest() > UINT16_MAX;
  std::string out(kMagic, kMagicBytes);
  out.reserve(kHeaderBytes + file.tokens.size() * (wide ? 4 : 2));
  store(out, static_cast<uint8_t>(wide ? 4 : 2));
  store(out, uint8_t{0});
  store(out, uint64_t{file.tokens.size()});
  store(out, static_cast<uint32_t>(file.vocab_size));
  store(out, file.end_of_text ? static_cast<uint32_t>(*file.end_of_text) : kNoEndOfText);
  for (size_t i = 0; i < file.tokens.size(); i++) {
    if (wide)
      store(out, file.tokens[i]);
    else
      store(out, static_cast<uint16_t>(file.tokens[i]));
  }
  return out;
}

Status write_token_file(const Path& path, const TokenFile& file) {
  return write_file_atomically(path, encode_token_file(file));
}

}  // namespace fastserve
