#include "model/transformer/decoder_options.h"

namespace fastserve {

Status check_options(const DecoderOptions& options) {
  const auto refuse = [](const char* what, const char* hint) {
    return Error{ErrorCode::kInvalidArgument, what, "decoder options", hint};
  };
  if (is_quantised(options.weights))
    return refuse("floats cannot be loaded as a quantised format", "compress the model first");
  if (options.kv_blocks <= 0 || options.block_tokens <= 0)
    return refuse("the KV cache needs at least one block of one token", "raise kv_blocks");
  if (options.max_rows <= 0 || options.max_logits < 0 || options.max_logits > options.max_rows)
    return refuse("a step needs at least one row, and no more logits than rows", "raise max_rows");
  return {};
}

}  // namespace fastserve
