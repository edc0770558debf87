// The "decoder" of tokenizer.json: from tokens back to text, one token at a time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/pattern.h"

namespace fastserve {

/// One step of decoding; it hands its results to the step behind it.
class DecodeStage {
 public:
  explicit DecodeStage(DecodeStage* next) : next_(next) {}
  virtual ~DecodeStage() = default;
  /// Takes one token. Behind a step that fuses all tokens into one: takes a part of that token.
  virtual void push(std::string_view token) = 0;
  /// Hands on what waited for a later token.
  virtual void finish() { next_->finish(); }

 protected:
  DecodeStage* next_;
};

/// Threads: const calls from any thread; each stream belongs to one.
/// Knows: ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and sequences of them; without
/// any, tokens are joined by spaces.
class TokenDecoder {
 public:
  /// `spec` may be null.
  static Result<TokenDecoder> parse(const Json* spec, const std::string& where);

  /// One text being decoded.
  class Stream {
   public:
    explicit Stream(const TokenDecoder& decoder);
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    void push(std::string_view token) { first_->push(token); }
    void finish() { first_->finish(); }
    /// The text that no later token can change and that was not taken before.
    std::string take();

   private:
    std::string text_;
    std::vector<std::unique_ptr<DecodeStage>> stages_;  ///< last first
    DecodeStage* first_;
  };

 private:
  /// Makes the step in front of `next`; `fused`: what arrives are parts of one token.
  using MakeStage = std::function<std::unique_ptr<DecodeStage>(DecodeStage* next)>;
  struct Step {
    MakeStage make;
    bool fuses = false;             ///< hands on parts of one token
    MakeStage make_behind_fused{};  ///< none: what comes fused is collected first
  };
  Status add(const Section& section);
  Status add_strip(const Section& section);
  Status add_replace(const Section& section);
  Status add_metaspace(const Section& section);

  std::vector<Step> steps_;  ///< first first
  bool joins_with_spaces_ = false;
};

}  // namespace fastserve
