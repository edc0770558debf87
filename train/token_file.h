// Token ids on disk.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"

namespace fastserve {

/// Token ids, two bytes each while every id fits.
///
/// Threads: const calls from any thread.
class TokenArray {
 public:
  size_t size() const { return wide_.empty() ? narrow_.size() : wide_.size(); }
  int32_t operator[](size_t i) const {
    return wide_.empty() ? int32_t{narrow_[i]} : static_cast<int32_t>(wide_[i]);
  }
  void append(std::span<const int32_t> ids);  ///< requires ids >= 0
  void append(std::span<const uint16_t> ids);
  void append(const TokenArray& other, size_t from, size_t to);
  int32_t largest() const { return largest_; }  ///< -1 when empty
  /// Over the ids, whatever their width in memory.
  uint64_t fingerprint() const;

 private:
  void widen();
  std::vector<uint16_t> narrow_;
  std::vector<uint32_t> wide_;  // used once an id needs it; narrow_ is empty then
  int32_t largest_ = -1;
};

/// A pre-tokenised shard. Three formats are read:
///   FSTOK1  "FSTOK1", u8 bytes per id (2 or 4), u8 0, u64 ids, u32 vocabulary size (0: unknown),
///           u32 end-of-text id (0xffffffff: none), then the ids; all little-endian.
///   llm.c   i32 20240520, i32 1, i32 ids, zeros up to byte 1024, then u16 ids.
///   nanoGPT nothing but u16 ids.
struct TokenFile {
  TokenArray tokens;
  int vocab_size = 0;                  ///< 0: the file does not say
  std::optional<int32_t> end_of_text;  ///< when the file says
};

/// kCorrupt when the header contradicts the size or an id the vocabulary.
Result<TokenFile> read_token_file(const Path& path);
/// The bytes of an FSTOK1 file.
std::string encode_token_file(const TokenFile& file);
/// Writes FSTOK1, whole or not at all.
Status write_token_file(const Path& path, const TokenFile& file);

}  // namespace fastserve
