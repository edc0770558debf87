// Text to token ids and back, as Hugging Face's tokenizer.json describes it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/result.h"

namespace fastserve {

struct EncodeOptions {
  bool add_special_tokens = false;  ///< apply the post-processor (BOS, EOS)
  bool parse_special_tokens =
      true;  ///< false: special tokens in the text are plain text; other added tokens still match
};

/// Byte-level BPE (GPT-2, Llama 3, Qwen2 pre-tokenisers) and SentencePiece-style BPE with byte
/// fallback (Llama 2's legacy normaliser, Metaspace), with added and special tokens.
///
/// Threads: const calls from any thread. Exact to tokenizers 0.23 on the constructs it accepts;
/// others are refused by name (kUnsupported), never guessed. "truncation" and "padding" in the file
/// are left to the caller: a text is always encoded whole.
class Tokenizer {
 public:
  /// kCorrupt: a merge of unknown tokens, a missing merge result, no model section, broken JSON.
  static Result<std::shared_ptr<const Tokenizer>> from_json(std::string_view tokenizer_json,
                                                            const std::string& where);
  static Result<std::shared_ptr<const Tokenizer>> load(const Path& tokenizer_json);
  virtual ~Tokenizer() = default;

  /// kInvalidArgument when the text is not UTF-8 (byte offset), or holds a character for which the
  /// vocabulary has neither token, byte nor unknown token.
  virtual Result<std::vector<int32_t>> encode(std::string_view text,
                                              const EncodeOptions& options = {}) const = 0;
  /// Bytes that do not form UTF-8 become U+FFFD. Ids outside the vocabulary decode to nothing.
  virtual std::string decode(std::span<const int32_t> ids,
                             bool skip_special_tokens = false) const = 0;

  virtual int vocab_size() const = 0;  ///< largest id + 1
  virtual std::optional<int32_t> token_id(std::string_view token) const = 0;
  virtual std::string token_text(int32_t id) const = 0;  ///< as spelled in the vocabulary
  virtual bool is_special(int32_t id) const = 0;
  /// tokenizer.json, as loaded or as trained.
  virtual const std::string& json() const = 0;

  /// decode() of ids that come one by one; what it hands out joins to decode(all ids).
  class Stream {
   public:
    virtual ~Stream() = default;
    virtual std::string push(int32_t id) = 0;
    virtual std::string finish() = 0;
  };
  /// The tokenizer must outlive the stream: StreamDecoder sees to that.
  virtual std::unique_ptr<Stream> open_stream(bool skip_special_tokens) const = 0;
};

/// Decodes one stream of ids piece by piece: text is handed out as soon as no later id can change
/// it (a partial UTF-8 character or a run of byte tokens waits). The pieces join to decode(all
/// ids); a push costs the same however many came before.
class StreamDecoder {
 public:
  StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens);
  std::string push(int32_t id);
  std::string finish();  ///< what was held back

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Tokenizer::Stream> stream_;
};

struct BpeTrainerOptions {
  int vocab_size = 4096;  ///< with the special tokens; 0: the alphabet and them, no merges
  /// Alphabet: all 256 bytes (any text can be encoded), or only those that occur (nanoGPT's
  /// character models: unseen characters cannot be encoded).
  enum class Alphabet { kAllBytes, kSeenBytes } alphabet = Alphabet::kAllBytes;
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  int min_frequency = 2;
};

/// Trains a byte-level BPE with the GPT-2 pre-tokeniser on `texts` and returns its tokenizer.json,
/// which transformers loads. Ids: the alphabet in byte order, what the merges make, the special
/// tokens. Ties break by the lower pair of ids, so the result is the same everywhere.
/// kInvalidArgument: a text that is not UTF-8, a vocab_size too small for the alphabet and the
/// special tokens, a special token that is empty, repeated or already in the vocabulary.
Result<std::string> train_bpe(std::span<const std::string_view> texts,
                              const BpeTrainerOptions& options);

}  // namespace fastserve
