// The "post_processor" of tokenizer.json: the special tokens put around a text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/tokenizer/fields.h"

namespace fastserve {

/// Threads: const calls from any thread.
/// Knows: TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel (which only moves
/// offsets), and sequences with at most one of the first three.
class PostProcessor {
 public:
  /// `spec` may be null: then nothing is added.
  static Result<PostProcessor> parse(const Json* spec, const std::string& where);
  std::vector<int32_t> apply(std::vector<int32_t> ids) const;

 private:
  Status add(const Section& section);
  Status add_template(const Section& section);
  Status add_frame(const Section& section);
  static Result<std::vector<int32_t>> special_ids(const Section& section, const std::string& name);

  bool has_template_ = false;
  /// What stands before the text, between its repetitions (a template may name it twice), behind.
  std::vector<std::vector<int32_t>> around_ = {{}, {}};
};

}  // namespace fastserve
