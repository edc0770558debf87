#include "model/transformer/step_inputs.h"

#include <algorithm>

#include "base/check.h"
#include "model/device.h"

namespace fastserve {

/// First without memory, to learn the size; then with it.
template <class T>
void StepInputs::place(Array<T>& array, size_t size, size_t& bytes) {
  constexpr size_t kAlign = 16;
  if (memory_) {
    array.host = reinterpret_cast<T*>(static_cast<std::byte*>(pinned_->data()) + bytes);
    array.device = reinterpret_cast<T*>(static_cast<std::byte*>(memory_->data()) + bytes);
    array.size = size;
  }
  bytes += (size * sizeof(T) + kAlign - 1) / kAlign * kAlign;
}

Result<std::unique_ptr<StepInputs>> StepInputs::make(Device& device, const DecoderOptions& options,
                                                     int max_positions) {
  std::unique_ptr<StepInputs> inputs(new StepInputs(device));
  inputs->block_tokens_ = options.block_tokens;
  const size_t rows = static_cast<size_t>(options.max_rows);
  const size_t logits = static_cast<size_t>(options.max_logits);
  const int longest = std::min(options.kv_blocks,
                               (max_positions + options.block_tokens - 1) / options.block_tokens);
  const auto place_all = [&] {
    size_t bytes = 0;
    inputs->place(inputs->draws_, logits, bytes);
    inputs->place(inputs->places_, rows, bytes);
    inputs->place(inputs->tokens_, rows, bytes);
    inputs->place(inputs->positions_, rows, bytes);
    inputs->place(inputs->wanted_, logits, bytes);
    inputs->place(inputs->blocks_, rows * static_cast<size_t>(longest), bytes);
    return bytes;
  };
  const size_t bytes = place_all();
  FS_ASSIGN(inputs->pinned_, device.allocate_host(bytes));
  FS_ASSIGN(inputs->memory_, device.allocate(bytes));
  place_all();
  inputs->rows_ = {.tokens = inputs->tokens_.device,
                   .positions = inputs->positions_.device,
                   .places = inputs->places_.device,
                   .blocks = inputs->blocks_.device,
                   .rows = 0,
                   .reach = 0};
  return inputs;
}

/// The last step's copy may have been waited for by nobody.
StepInputs::~StepInputs() { device_.wait(copied_); }

void StepInputs::fill(const Step& step) {
  device_.wait(copied_);  // long done, but for a caller that waits for nothing between two steps
  const size_t given = step.tokens.size(), rows = static_cast<size_t>(step.rows);
  FS_CHECK(given <= rows && rows <= tokens_.size && step.wanted.size() <= wanted_.size);
  std::copy(step.tokens.begin(), step.tokens.end(), tokens_.host);
  std::fill(tokens_.host + given, tokens_.host + rows, 0);
  std::fill(positions_.host + given, positions_.host + rows, 0);
  std::fill(places_.host + given, places_.host + rows, RowPlace{-1, 0});
  size_t used = 0;
  for (const Segment& s : step.segments) {
    const size_t blocks = static_cast<size_t>((s.position + s.rows - 1) / block_tokens_ + 1);
    FS_CHECK(blocks <= s.blocks.size() && used + blocks <= blocks_.size);
    for (int i = 0; i < s.rows; ++i) {
      const size_t row = static_cast<size_t>(s.first_row + i);
      positions_.host[row] = s.position + i;
      places_.host[row] = {s.position + i, static_cast<int32_t>(used)};
    }
    std::copy_n(s.blocks.begin(), blocks, blocks_.host + used);
    used += blocks;
  }
  std::copy(step.wanted.begin(), step.wanted.end(), wanted_.host);
  const size_t drawn = std::min(rows, draws_.size);
  std::fill_n(draws_.host, drawn, TokenDraw{});
  std::copy(step.draws.begin(), step.draws.end(), draws_.host);
  rows_.rows = step.rows;
  rows_.reach = step.reach;
  const auto* const begin = static_cast<const std::byte*>(pinned_->data());
  const auto* const end = reinterpret_cast<const std::byte*>(blocks_.host + used);
  copied_ = device_.copy_in_async(memory_->data(), begin, static_cast<size_t>(end - begin));
}

}  // namespace fastserve
