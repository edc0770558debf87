// A decoder and a tokenizer small enough to reason about.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "model/decoder.h"
#include "model/tokenizer.h"

namespace fastserve {

struct FakeShape {
  int vocab = 256, positions = 64, blocks = 16, block_tokens = 4, max_rows = 32;
  std::vector<int> eos = {};
  bool draws = false;   ///< as a device that draws tokens itself
  bool ahead = false;   ///< and takes the step behind the one it is at work on
  int host_places = 0;  ///< as a device with a memory of its own
  int parts = 0;        ///< of weights that are still to come
  bool beside = false;  ///< steps take them as they go
};

/// What several tests want to know of a decoder after it moved into an engine.
struct FakeRecord {
  int64_t steps = 0, rows = 0;
  int most_segments = 0;
  std::vector<int> rows_of_step;
  /// Tokens of which the logits are given: text so far -> next token, said with certainty.
  std::map<std::vector<int32_t>, int32_t> script;
  float poison = 0;                   ///< not 0: the logits of every row
  std::optional<Error> failure;       ///< what steps end with
  std::vector<TokenDraw> draws;       ///< that a device was asked for
  int moves = 0;                      ///< of blocks
  std::optional<Error> move_failure;  ///< what moving them ends with
  int logits_read = 0;                ///< rows of which it had to give the logits as well
  int at_work = 0, most_at_work = 0;  ///< steps whose tokens nobody has asked for yet
  int parts_taken = 0;                ///< of the weights, by load_more() or steps
  std::optional<Error> load_failure;  ///< what taking the last of them ends with
};

/// Logits are a hash of the text that lies in the sequence's blocks: a token written to a wrong
/// block, not written, or overwritten changes what follows.
class FakeDecoder final : public Decoder {
 public:
  FakeDecoder(const FakeShape& shape, std::shared_ptr<FakeRecord> record)
      : record_(std::move(record)),
        draws_(shape.draws),
        ahead_(shape.ahead),
        parts_(shape.parts),
        beside_(shape.beside),
        host_(static_cast<size_t>(shape.host_places * shape.block_tokens), -2),
        memory_(static_cast<size_t>(shape.blocks * shape.block_tokens), -1) {
    config_.vocab_size = shape.vocab;
    config_.max_positions = shape.positions;
    config_.eos_tokens = shape.eos;
    options_.kv_blocks = shape.blocks;
    options_.block_tokens = shape.block_tokens;
    options_.max_rows = options_.max_logits = shape.max_rows;
  }
  const ModelConfig& config() const override { return config_; }
  const DecoderOptions& options() const override { return options_; }
  size_t weight_bytes() const override { return 0; }
  size_t kv_bytes() const override { return 0; }

  Result<std::span<const float>> step(std::span<const int32_t> tokens,
                                      std::span<const Segment> segments,
                                      std::span<const int32_t> wanted) override {
    REQUIRE(static_cast<int>(tokens.size()) <= options_.max_rows);
    REQUIRE((loaded() || beside_));
    REQUIRE_FALSE(record_->at_work);
    while (!loaded()) FS_TRY(load_more());
    ++record_->steps;
    record_->rows += static_cast<int64_t>(tokens.size());
    record_->rows_of_step.push_back(static_cast<int>(tokens.size()));
    record_->most_segments = std::max(record_->most_segments, static_cast<int>(segments.size()));
    logits_.assign(wanted.size() * static_cast<size_t>(config_.vocab_size), 0);
    for (const Segment& s : segments)
      for (int r = 0; r < s.rows; ++r) {
        slot(s, s.position + r) = tokens[static_cast<size_t>(s.first_row + r)];
        for (size_t w = 0; w < wanted.size(); ++w)
          if (wanted[w] == s.first_row + r) answer(s, s.position + r, w);
      }
    if (record_->failure) return *record_->failure;
    return std::span<const float>(logits_);
  }
  Result<std::vector<double>> score(std::span<const int32_t>, std::span<const int32_t>) override {
    return std::vector<double>();
  }
  bool loaded() const override { return record_->parts_taken >= parts_; }
  Status load_more() override {
    if (record_->parts_taken + 1 == parts_ && record_->load_failure) return *record_->load_failure;
    if (!loaded()) ++record_->parts_taken;
    return {};
  }
  bool steps_while_loading() const override { return beside_; }
  int host_places() const override {
    return static_cast<int>(host_.size()) / options_.block_tokens;
  }
  Status move_blocks(std::span<const BlockMove> moves) override {
    REQUIRE_FALSE(record_->at_work);
    if (record_->move_failure) return *record_->move_failure;
    const auto size = static_cast<std::ptrdiff_t>(options_.block_tokens);
    for (const BlockMove& m : moves) {
      const auto block = memory_.begin() + m.block * size, place = host_.begin() + m.place * size;
      if (m.out)
        std::copy_n(block, size, place);
      else
        std::copy_n(place, size, block);
      ++record_->moves;
    }
    return {};
  }
  bool draws() const override { return draws_; }
  /// The likeliest, whatever is asked for.
  bool draws_ahead() const override { return ahead_; }
  Status begin_drawing(std::span<const int32_t> tokens, std::span<const Segment> segments,
                       std::span<const int32_t> wanted, std::span<const TokenDraw> draws) override {
    REQUIRE(record_->at_work < (ahead_ ? 2 : 1));
    std::vector<int32_t> known(tokens.begin(), tokens.end());
    for (int32_t& token : known) {
      if (token >= 0) continue;
      REQUIRE(record_->at_work == 1);
      token = std::max(drawing_.back().tokens.at(static_cast<size_t>(~token)), 0);
    }
    const int at_work = std::exchange(record_->at_work, 0);
    const auto stepped = step(known, segments, wanted);
    record_->at_work = at_work + 1;
    record_->most_at_work = std::max(record_->most_at_work, record_->at_work);
    record_->draws.insert(record_->draws.end(), draws.begin(), draws.end());
    Drawing& drawing = drawing_.emplace_back();
    if (!stepped.ok()) drawing.status = stepped.error();
    const size_t vocab = static_cast<size_t>(config_.vocab_size);
    for (size_t first = 0; first < logits_.size(); first += vocab) {
      const auto row = std::span<const float>(logits_).subspan(first, vocab);
      const auto best = std::max_element(row.begin(), row.end());
      drawing.tokens.push_back(std::isfinite(*best) ? static_cast<int32_t>(best - row.begin())
                                                    : -1);
    }
    return {};
  }
  Result<std::span<const int32_t>> drawn() override {
    REQUIRE(!drawing_.empty());
    const Drawing first = std::move(drawing_.front());
    drawing_.pop_front();
    if (!first.status.ok()) drawing_.clear();
    record_->at_work = static_cast<int>(drawing_.size());
    FS_TRY(first.status);
    drawn_ = first.tokens;
    return std::span<const int32_t>(drawn_);
  }
  Result<std::span<const float>> logits_of(size_t i) override {
    REQUIRE_FALSE(record_->at_work);
    ++record_->logits_read;
    const size_t vocab = static_cast<size_t>(config_.vocab_size);
    return std::span<const float>(logits_).subspan(i * vocab, vocab);
  }

 private:
  int32_t& slot(const Segment& s, int position) {
    const size_t block = static_cast<size_t>(position / options_.block_tokens);
    REQUIRE(block < s.blocks.size());
    return memory_[static_cast<size_t>(s.blocks[block] * options_.block_tokens +
                                       position % options_.block_tokens)];
  }
  void answer(const Segment& s, int last, size_t row) {
    std::vector<int32_t> text;
    uint64_t hash = 0;
    for (int p = 0; p <= last; ++p) {
      text.push_back(slot(s, p));
      hash = mix64(hash ^ static_cast<uint64_t>(text.back()));
    }
    const size_t vocab = static_cast<size_t>(config_.vocab_size);
    for (size_t v = 0; v < vocab; ++v) {
      float& logit = logits_[row * vocab + v];
      logit = static_cast<float>(mix64(hash + v) >> 40) * 0x1.0p-22f;
      if (record_->poison != 0) logit = record_->poison;
    }
    const auto said = record_->script.find(text);
    if (said != record_->script.end())
      logits_[row * vocab + static_cast<size_t>(said->second)] = 100;
  }

  std::shared_ptr<FakeRecord> record_;
  const bool draws_, ahead_;
  const int parts_;
  const bool beside_;
  std::vector<int32_t> host_;
  ModelConfig config_;
  DecoderOptions options_;
  std::vector<int32_t> memory_;
  std::vector<float> logits_;
  std::vector<int32_t> drawn_;
  struct Drawing {
    std::vector<int32_t> tokens;
    Status status;
  };
  std::deque<Drawing> drawing_;
};

/// One token a byte; ids from 256 on are special and print as nothing.
class ByteTokenizer final : public Tokenizer {
 public:
  Result<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (int32_t id : ids)
      if (id < 256) text += static_cast<char>(id);
    return text;
  }
  int vocab_size() const override { return 256; }
  std::optional<int32_t> token_id(std::string_view) const override { return std::nullopt; }
  std::string token_text(int32_t) const override { return ""; }
  bool is_special(int32_t id) const override { return id >= 256; }
  const std::string& json() const override { return json_; }
  std::unique_ptr<Stream> open_stream(bool) const override {
    return std::make_unique<ByteStream>();
  }

 private:
  class ByteStream final : public Stream {
   public:
    std::string push(int32_t id) override {
      return id < 256 ? std::string(1, static_cast<char>(id)) : "";
    }
    std::string finish() override { return ""; }
  };
  std::string json_ = "{}";
};

}  // namespace fastserve
