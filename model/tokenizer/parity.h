// A tokenizer against recorded results of the tokenizers library.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace fastserve {

/// How one kind of result compares.
struct ParityCount {
  size_t cases = 0, mismatches = 0;
  std::string first_mismatch;  ///< case, kind, expected and found
};

struct TokenizerParity {
  ParityCount ids;                    ///< encode(text)
  ParityCount ids_bos;                ///< encode(text) with the post-processor
  ParityCount ids_plain;              ///< encode(text) with special tokens as plain text
  ParityCount decoded;                ///< decode(ids)
  ParityCount decoded_skip_special;   ///< decode(ids_bos) without special tokens
  ParityCount decode_cases;           ///< both decodings of each line of decode_cases.jsonl
  std::vector<std::string> examples;  ///< the first few mismatches: case, kind, expected and found

  size_t mismatches() const {
    return ids.mismatches + ids_bos.mismatches + ids_plain.mismatches + decoded.mismatches +
           decoded_skip_special.mismatches + decode_cases.mismatches;
  }
};

/// Runs the cases of a directory with tokenizer.json, cases.jsonl and, where there is one,
/// decode_cases.jsonl (shared/reference's format). An Error when a file is missing or broken; a
/// mismatch is a result.
Result<TokenizerParity> check_tokenizer_cases(const Path& directory);

}  // namespace fastserve
