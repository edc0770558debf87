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

Sampler::Sampler(const TokenArray& tokens, Shape shape, uint64_t seed)
    : tokens_(tokens), shape_(shape), seed_(mix64(seed)) {
  const auto block = static_cast<uint64_t>(shape.block);
  FS_CHECK(shape.block >= 1 && tokens.size() > block);
  FS_CHECK(shape.microbatches >= 1 && shape.microbatches <= shape.sequences);
  windows_ = std::max<uint64_t>(1, (tokens.size() - block) / block);
  offsets_ = std::min(block, tokens.size() - windows_ * block);
}

uint64_t Sampler::window_start(uint64_t index) const {
  const uint64_t epoch = index / windows_, key = mix64(seed_ ^ mix64(epoch));
  const uint64_t offset = mix64(key ^ 1) % offsets_;
  return offset +
         Permutation(windows_, key)(index % windows_) * static_cast<uint64_t>(shape_.block);
}

Microbatch Sampler::microbatch(int64_t step, int g) const {
  FS_CHECK(step >= 0 && g >= 0 && g < shape_.microbatches);
  const auto sequences = static_cast<uint64_t>(shape_.sequences);
  const auto parts = static_cast<uint64_t>(shape_.microbatches), part = static_cast<uint64_t>(g);
  Microbatch batch;
  batch.starts.push_back(0);
  for (uint64_t i = sequences * part / parts; i < sequences * (part + 1) / parts; i++)
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
