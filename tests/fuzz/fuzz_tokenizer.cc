// Any text as a tokenizer.json: refused, or a tokenizer that encodes and decodes whatever it gets.
#include <cstdint>
#include <string>

#include "model/tokenizer.h"

using namespace fastserve;

namespace {

void check_error(const Error& error) {
  FS_CHECK(!error.what.empty() && !error.where.empty() && !error.hint.empty());
}

void check_text(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const auto ids =
        tokenizer->encode(text, {.add_special_tokens = special, .parse_special_tokens = special});
    if (!ids.ok()) {
      check_error(ids.error());
      continue;
    }
    StreamDecoder stream(tokenizer, special);
    std::string joined;
    for (const int32_t id : *ids) joined += stream.push(id);
    joined += stream.finish();
    FS_CHECK(joined == tokenizer->decode(*ids, special));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::from_json(text, "input");
  if (!tokenizer.ok()) {
    check_error(tokenizer.error());
    return 0;
  }
  FS_CHECK((*tokenizer)->vocab_size() >= 0);
  for (int32_t id = -1; id < 64; id++) (void)(*tokenizer)->token_text(id);
  check_text(*tokenizer, "");
  check_text(*tokenizer, " ab abab<s>Ab aab\u00e9 A\u0301\u0323 12 xx \u2581a's\n\n  b");
  check_text(*tokenizer, text.substr(size / 2));
  return 0;
}
