// The tokens a job trains on and those it is judged by.
#pragma once

#include <memory>
#include <optional>

#include "model/tokenizer.h"
#include "train/corpus.h"

namespace fastserve {

/// Training and validation tokens.
///
/// Split:    files named as validation data are the validation split. Otherwise, with many
///           documents, each goes whole to one side by a hash of its text, so that a new document
///           moves no other and twins stay together; with few, the last part of the text is held
///           out.
/// Order:    that of the corpus; an end-of-text token follows each document when there are several
///           and the tokenizer has one.
/// Threads:  const calls from any thread.
struct Dataset {
  TokenArray train, validation;
  size_t files = 0, documents = 0, validation_documents = 0;
  int vocab_size = 0;        ///< of the tokenizer, or as the shards say, or largest id + 1
  uint64_t fingerprint = 0;  ///< of both splits; a resumed job must see the same

  /// `block`: tokens of a sequence; training needs block + 1 (kInvalidArgument with the figures).
  /// With validation_fraction 0 nothing is held out. Requires a tokenizer for a corpus of texts.
  static Result<Dataset> build(const Corpus& corpus, const Tokenizer* tokenizer,
                               double validation_fraction, int block);
};

/// The parts of a corpus of texts that a tokenizer may be trained on: all but the held-out ones.
std::vector<std::string_view> training_texts(const Corpus& corpus, double validation_fraction);

/// The token that ends a document, by the names in common use; nothing when there is none.
std::optional<int32_t> end_of_text_token(const Tokenizer& tokenizer);

}  // namespace fastserve
