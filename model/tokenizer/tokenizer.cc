#include "model/tokenizer.h"

#include <fmt/format.h>

#include <utility>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

constexpr size_t kLongestText = (size_t{1} << 31) - 1;

/// The parts of one tokenizer.json, in the order a text passes them.
struct Parts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  AddedTokens added;
  PostProcessor post_processor;
  TokenDecoder decoder;

  static Result<Parts> parse(const Json& json, const std::string& where);
};

Result<Parts> Parts::parse(const Json& json, const std::string& where) {
  const Section file{json, where};
  if (!json.is_object()) return file.corrupt("is not an object");
  FS_ASSIGN(const std::string version, file.text("version", "1.0"));
  if (version != "1.0")
    return file.unsupported(fmt::format("the format version \"{}\" is not supported", version));
  const Json* model_spec = json.find_set("model");
  if (model_spec == nullptr) return file.corrupt("has no \"model\"");
  const auto name = [&where](const char* part) { return where + ": " + part; };

  FS_ASSIGN(Bpe model, Bpe::parse({*model_spec, name("model")}));
  FS_ASSIGN(Normalizer normalizer,
            Normalizer::parse(json.find_set("normalizer"), name("normalizer")));
  FS_ASSIGN(PreTokenizer pre_tokenizer,
            PreTokenizer::parse(json.find_set("pre_tokenizer"), name("pre_tokenizer")));
  FS_ASSIGN(AddedTokens added,
            AddedTokens::parse(json.find_set("added_tokens"), name("added_tokens"),
                               model.vocabulary(), normalizer));
  FS_ASSIGN(PostProcessor post_processor,
            PostProcessor::parse(json.find_set("post_processor"), name("post_processor")));
  FS_ASSIGN(TokenDecoder decoder, TokenDecoder::parse(json.find_set("decoder"), name("decoder")));
  return Parts{std::move(normalizer), std::move(pre_tokenizer),  std::move(model),
               std::move(added),      std::move(post_processor), std::move(decoder)};
}

/// Turns pieces into ids.
class PieceEncoder final : public PieceSink {
 public:
  PieceEncoder(const Bpe& model, std::vector<int32_t>& out) : model_(model), out_(out) {}
  Status take(std::string_view piece, bool spelled_as_bytes) override {
    return model_.encode(piece, spelled_as_bytes, run_, out_);
  }

 private:
  const Bpe& model_;
  std::vector<int32_t>& out_;
  Bpe::Run run_;
};

class LoadedTokenizer final : public Tokenizer {
 public:
  LoadedTokenizer(Parts parts, std::string json)
      : parts_(std::move(parts)), json_(std::move(json)) {}

  Result<std::vector<int32_t>> encode(std::string_view text,
                                      const EncodeOptions& options) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  std::unique_ptr<Stream> open_stream(bool skip_special_tokens) const override;

  int vocab_size() const override {
    return std::max(parts_.model.vocabulary().end(), parts_.added.end());
  }
  std::optional<int32_t> token_id(std::string_view token) const override {
    if (const AddedToken* added = parts_.added.find(token)) return added->id;
    return parts_.model.vocabulary().id(token);
  }
  std::string token_text(int32_t id) const override {
    if (const AddedToken* added = parts_.added.find(id)) return added->content;
    return parts_.model.vocabulary().has(id) ? parts_.model.vocabulary().text(id) : "";
  }
  bool is_special(int32_t id) const override {
    const std::string* token = decoded_token(id);
    return token != nullptr && parts_.added.is_special_text(*token);
  }
  const std::string& json() const override { return json_; }

 private:
  class LoadedStream;
  Status encode_plain(std::string_view text, bool at_start, const EncodeOptions& options,
                      PieceEncoder& encoder, std::vector<int32_t>& out) const;
  /// What the decoder gets for an id; nullptr when there is no such token.
  const std::string* decoded_token(int32_t id) const {
    if (const AddedToken* added = parts_.added.find(id)) return &added->normalized_content;
    return parts_.model.vocabulary().has(id) ? &parts_.model.vocabulary().text(id) : nullptr;
  }

  Parts parts_;
  std::string json_;
};

class LoadedTokenizer::LoadedStream final : public Tokenizer::Stream {
 public:
  LoadedStream(const LoadedTokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special), stream_(tokenizer.parts_.decoder) {}

  void feed(int32_t id) {
    const std::string* token = tokenizer_.decoded_token(id);
    if (token == nullptr) return;
    if (skip_special_ && tokenizer_.parts_.added.is_special_text(*token)) return;
    stream_.push(*token);
  }
  std::string push(int32_t id) override {
    feed(id);
    return stream_.take();
  }
  std::string finish() override {
    stream_.finish();
    return stream_.take();
  }

 private:
  const LoadedTokenizer& tokenizer_;
  bool skip_special_;
  TokenDecoder::Stream stream_;
};

Status LoadedTokenizer::encode_plain(std::string_view text, bool at_start,
                                     const EncodeOptions& options, PieceEncoder& encoder,
                                     std::vector<int32_t>& out) const {
  std::string normalized;
  if (!parts_.normalizer.changes_nothing()) {
    FS_ASSIGN(normalized, parts_.normalizer.apply(text));
    text = normalized;
  }
  for (const auto& span : parts_.added.split(text, true, options.parse_special_tokens)) {
    if (span.id) {
      out.push_back(*span.id);
      continue;
    }
    FS_TRY(parts_.pre_tokenizer.cut(text.substr(span.begin, span.end - span.begin),
                                    at_start && span.begin == 0, encoder));
  }
  return {};
}

Result<std::vector<int32_t>> LoadedTokenizer::encode(std::string_view text,
                                                     const EncodeOptions& options) const {
  if (text.size() > kLongestText / 4)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("is longer than {}", human_bytes(kLongestText / 4)), "text",
                 "split it into shorter texts"};
  FS_TRY(require_utf8(text, "text"));
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  PieceEncoder encoder(parts_.model, ids);
  for (const auto& span : parts_.added.split(text, false, options.parse_special_tokens)) {
    if (span.id) {
      ids.push_back(*span.id);
      continue;
    }
    FS_TRY(encode_plain(text.substr(span.begin, span.end - span.begin), span.begin == 0, options,
                        encoder, ids));
  }
  if (options.add_special_tokens) return parts_.post_processor.apply(std::move(ids));
  return ids;
}

std::string LoadedTokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  LoadedStream stream(*this, skip_special_tokens);
  for (const int32_t id : ids) stream.feed(id);
  return stream.finish();
}

std::unique_ptr<Tokenizer::Stream> LoadedTokenizer::open_stream(bool skip_special_tokens) const {
  return std::make_unique<LoadedStream>(*this, skip_special_tokens);
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json,
                                                              const std::string& where) {
  FS_ASSIGN(const Json json, Json::parse(tokenizer_json, where));
  FS_ASSIGN(Parts parts, Parts::parse(json, where));
  return std::shared_ptr<const Tokenizer>(
      std::make_shared<LoadedTokenizer>(std::move(parts), std::string(tokenizer_json)));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const Path& tokenizer_json) {
  FS_ASSIGN(const std::string text, read_file(tokenizer_json));
  return from_json(text, tokenizer_json.string());
}

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), stream_(tokenizer_->open_stream(skip_special_tokens)) {}

std::string StreamDecoder::push(int32_t id) { return stream_->push(id); }

std::string StreamDecoder::finish() { return stream_->finish(); }

}  // namespace fastserve
