#include "train/sampler.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/rng.h"

namespace fastserve {
namespace {

void append_window(const TokenArray& tokens, uint64_t from, uint64_t length, Microbatch& batch) {
  for (uint64_t i = from; i < from + length; i++) {
    batch.tokens.push_back(tokens[i]);
    batch.targets.push_back(tokens[i + 1]);
  }
  batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
}

uint64_t windows_of(const TokenArray& tokens, const Sampler::Shape& shape) {
  const auto block = static_cast<uint64_t>(shape.block);
  FS_CHECK(shape.block >= 1 && tokens.size() > block);
  return std::max<uint64_t>(1, (tokens.size() - block) / block);
}

}  // namespace

Permutation::Permutation(uint64_t n, uint64_t key)
    : n_(n), key_(key), half_bits_(std::max(1, static_cast<int>(std::bit_width(n - 1) + 1) / 2)) {
  FS_CHECK(n >= 1);
}

uint64_t Permutation::operator()(uint64_t i) const {
  FS_CHECK(i < n_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = i >> half_bits_, right = i & mask;
    for (uint64_t round = 0; round < 6; round++) {
      const uint64_t mixed = left ^ (mix64(key_ ^ mix64(right ^ round << 32)) & mask);
      left = right;
      right = mixed;
    }
    i = left << half_bits_ | right;
  } while (i >= n_);
  return i;
}

WindowOrder::WindowOrder(uint64_t windows, uint64_t seed) : windows_(windows), seed_(mix64(seed)) {
  FS_CHECK(windows >= 1);
}

uint64_t WindowOrder::epoch_key(uint64_t epoch) const { return mix64(seed_ ^ mix64(epoch)); }

uint64_t WindowOrder::window(uint64_t sequence) const {
  return Permutation(windows_, epoch_key(epoch(sequence)))(sequence % windows_);
}

Sampler::Sampler(const TokenArray& tokens, Shape shape, uint64_t seed)
    : tokens_(tokens), shape_(shape), order_(windows_of(tokens, shape), seed) {
  FS_CHECK(shape.microbatches >= 1 && shape.microbatches <= shape.sequences);
  const auto block = static_cast<uint64_t>(shape.block);
  offsets_ = std::min(block, tokens.size() - windows() * block);
}

uint64_t Sampler::window_start(uint64_t index) const {
  const uint64_t offset = mix64(order_.epoch_key(order_.epoch(index)) ^ 1) % offsets_;
  return offset + order_.window(index) * static_cast<uint64_t>(shape_.block);
}

std::pair<uint64_t, uint64_t> Sampler::sequences_of(const Shape& shape, int g) {
  const auto sequences = static_cast<uint64_t>(shape.sequences);
  const auto parts = static_cast<uint64_t>(shape.microbatches), part = static_cast<uint64_t>(g);
  return {sequences * part / parts, sequences * (part + 1) / parts};
}

Microbatch Sampler::microbatch(int64_t step, int g) const {
  FS_CHECK(step >= 0 && g >= 0 && g < shape_.microbatches);
  const auto sequences = static_cast<uint64_t>(shape_.sequences);
  const auto [first, end] = sequences_of(shape_, g);
  Microbatch batch;
  batch.starts.push_back(0);
  for (uint64_t i = first; i < end; i++)
    append_window(tokens_, window_start(static_cast<uint64_t>(step) * sequences + i),
                  static_cast<uint64_t>(shape_.block), batch);
  return batch;
}

int Sampler::max_rows() const {
  return (shape_.sequences + shape_.microbatches - 1) / shape_.microbatches * shape_.block;
}

EvaluationPlan::EvaluationPlan(const TokenArray& tokens, int block, int sequences, int max_rows)
    : tokens_(tokens), block_(block) {
  const uint64_t targets = tokens.size() == 0 ? 0 : tokens.size() - 1;
  const auto length = static_cast<uint64_t>(block);
  windows_ = (targets + length - 1) / length;
  used_ = sequences == 0 ? windows_ : std::min(windows_, static_cast<uint64_t>(sequences));
  per_chunk_ = static_cast<uint64_t>(std::max(1, max_rows / block));
  chunks_ = static_cast<uint32_t>((used_ + per_chunk_ - 1) / per_chunk_);
  for (uint64_t i = 0; i < used_; i++)
    counted_ += static_cast<int64_t>(std::min(length, targets - window_start(i)));
}

uint64_t EvaluationPlan::window_start(uint64_t index) const {
  return index * windows_ / used_ * static_cast<uint64_t>(block_);
}

Microbatch EvaluationPlan::chunk(uint32_t index) const {
  FS_CHECK(index < chunks_);
  Microbatch batch;
  batch.starts.push_back(0);
  for (uint64_t i = index * per_chunk_; i < std::min(used_, (index + 1) * per_chunk_); i++) {
    const uint64_t from = window_start(i);
    append_window(tokens_, from, std::min<uint64_t>(block_, tokens_.size() - 1 - from), batch);
  }
  return batch;
}

}  // namespace fastserve
