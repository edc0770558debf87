#include "train/dataset.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/hash.h"
#include "base/rng.h"

namespace fastserve {
namespace {

/// From this many documents on, whole ones are held out.
constexpr size_t kManyDocuments = 64;

struct Piece {
  std::string_view text;
  bool validation;
  bool ends_document;  ///< false: the rest of its document is on the other side
};

bool held_out_by_hash(std::string_view text, double fraction) {
  return static_cast<double>(hash64(text) >> 11) * 0x1.0p-53 < fraction;
}

std::vector<Piece> split_by_document(const Corpus& corpus, double fraction) {
  std::vector<Piece> pieces;
  for (const Corpus::Document& document : corpus.documents())
    pieces.push_back({document.text, held_out_by_hash(document.text, fraction), true});
  return pieces;
}

std::vector<Piece> split_by_position(const Corpus& corpus, double fraction) {
  const auto total = static_cast<double>(corpus.bytes());
  const size_t cut = corpus.bytes() - static_cast<size_t>(total * fraction);
  std::vector<Piece> pieces;
  size_t at = 0;
  for (const Corpus::Document& document : corpus.documents()) {
    const std::string_view text = document.text;
    size_t head = cut <= at ? 0 : std::min(cut - at, text.size());
    while (head > 0 && head < text.size() && (text[head] & 0xc0) == 0x80)
      head--;  // whole characters
    if (head > 0) pieces.push_back({text.substr(0, head), false, head == text.size()});
    if (head < text.size()) pieces.push_back({text.substr(head), true, true});
    at += text.size();
  }
  return pieces;
}

std::vector<Piece> split(const Corpus& corpus, double fraction) {
  const auto& documents = corpus.documents();
  std::vector<Piece> pieces;
  const bool named = std::any_of(documents.begin(), documents.end(),
                                 [](const auto& document) { return document.validation; });
  if (named || fraction <= 0) {
    for (const auto& document : documents)
      pieces.push_back({document.text, document.validation, true});
    return pieces;
  }
  if (documents.size() >= kManyDocuments) {
    pieces = split_by_document(corpus, fraction);
    double held_out = 0;
    for (const Piece& piece : pieces) held_out += piece.validation * double(piece.text.size());
    const double wanted = fraction * static_cast<double>(corpus.bytes());
    if (held_out > wanted / 3 && held_out < wanted * 3) return pieces;  // else: a few giants
  }
  return split_by_position(corpus, fraction);
}

Status tokenise(const Corpus& corpus, const Tokenizer& tokenizer, double fraction,
                Dataset& dataset) {
  const std::optional<int32_t> end = end_of_text_token(tokenizer);
  const bool mark_ends = end && corpus.documents().size() > 1;
  for (const Piece& piece : split(corpus, fraction)) {
    auto ids = tokenizer.encode(piece.text);
    if (!ids.ok()) {
      Error error = std::move(ids).error();
      error.where = fmt::format("{}: {}", corpus.path().string(), error.where);
      if (error.hint.empty())
        error.hint = "train the tokenizer on this data too, or use one that covers all bytes";
      return error;
    }
    if (mark_ends && piece.ends_document) ids->push_back(*end);
    (piece.validation ? dataset.validation : dataset.train).append(*ids);
    dataset.documents += piece.ends_document;
    dataset.validation_documents += piece.validation;
  }
  dataset.vocab_size = tokenizer.vocab_size();
  return {};
}

Status take_shards(const Corpus& corpus, const Tokenizer* tokenizer, double fraction,
                   Dataset& dataset) {
  bool named = false;
  for (const Corpus::Shard& shard : corpus.shards()) {
    named |= shard.validation;
    TokenArray& side = shard.validation ? dataset.validation : dataset.train;
    side.append(shard.file.tokens, 0, shard.file.tokens.size());
    dataset.documents++;
    dataset.validation_documents += shard.validation;
    if (shard.file.vocab_size != 0 && dataset.vocab_size != 0 &&
        shard.file.vocab_size != dataset.vocab_size)
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("its shards disagree about the vocabulary: {} and {}",
                               dataset.vocab_size, shard.file.vocab_size),
                   corpus.path().string(), "tokenise all of it with one tokenizer"};
    dataset.vocab_size = std::max(dataset.vocab_size, shard.file.vocab_size);
  }
  if (!named && fraction > 0) {
    const TokenArray all = std::move(dataset.train);
    const size_t cut = all.size() - static_cast<size_t>(static_cast<double>(all.size()) * fraction);
    dataset.train = {};
    dataset.train.append(all, 0, cut);
    dataset.validation.append(all, cut, all.size());
  }
  const int seen = std::max(dataset.train.largest(), dataset.validation.largest()) + 1;
  if (tokenizer != nullptr) dataset.vocab_size = tokenizer->vocab_size();
  if (dataset.vocab_size == 0) dataset.vocab_size = seen;
  if (seen <= dataset.vocab_size) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("holds the token {}, outside the tokenizer's vocabulary of {}", seen - 1,
                           dataset.vocab_size),
               corpus.path().string(), "use the tokenizer that the shards were made with"};
}

Status check_length(const Corpus& corpus, const TokenArray& tokens, const char* split, int block) {
  if (tokens.size() > static_cast<size_t>(block)) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("leaves {} tokens for {}, and one sequence of {} needs {}",
                           tokens.size(), split, block, block + 1),
               corpus.path().string(), "add text, or choose a smaller block"};
}

}  // namespace

Result<Dataset> Dataset::build(const Corpus& corpus, const Tokenizer* tokenizer,
                               double validation_fraction, int block) {
  if (!(validation_fraction >= 0 && validation_fraction < 1))
    return Error{ErrorCode::kInvalidArgument, "must be at least 0 and less than 1",
                 "validation_fraction", ""};
  Dataset dataset;
  dataset.files = corpus.files();
  if (corpus.shards().empty()) {
    FS_CHECK(tokenizer != nullptr);
    FS_TRY(tokenise(corpus, *tokenizer, validation_fraction, dataset));
  } else {
    FS_TRY(take_shards(corpus, tokenizer, validation_fraction, dataset));
  }
  FS_TRY(check_length(corpus, dataset.train, "training", block));
  if (validation_fraction > 0 || dataset.validation.size() > 0) {
    if (dataset.validation.size() < 2)
      return Error{ErrorCode::kInvalidArgument, "leaves no text to validate on",
                   corpus.path().string(), "add text, or set the validation fraction to 0"};
  }
  dataset.fingerprint =
      mix64(dataset.train.fingerprint() ^ mix64(dataset.validation.fingerprint()));
  return dataset;
}

std::vector<std::string_view> training_texts(const Corpus& corpus, double validation_fraction) {
  std::vector<std::string_view> texts;
  for (const Piece& piece : split(corpus, validation_fraction))
    if (!piece.validation) texts.push_back(piece.text);
  return texts;
}

std::optional<int32_t> end_of_text_token(const Tokenizer& tokenizer) {
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"})
    if (const auto id = tokenizer.token_id(name)) return id;
  return std::nullopt;
}

}  // namespace fastserve
