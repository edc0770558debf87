#include "train/ledger_format.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/hash.h"

namespace fastserve {
namespace {

static_assert(std::endian::native == std::endian::little);

enum class Kind : uint8_t { kBegin = 'b', kName = 'n', kStep = 's' };
constexpr size_t kHead = 8;                         // length and checksum of a body
constexpr size_t kLongestBody = size_t{128} << 20;  // a step has at most 2^24 microbatches
constexpr size_t kLongestName = 255;

uint32_t checksum(std::span<const std::byte> body) { return static_cast<uint32_t>(hash64(body)); }

void put(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

/// Reserves the head of a record; finish() fills it in.
size_t start(Kind kind, std::string& out) {
  const size_t at = out.size();
  out.append(kHead, 0);
  out.push_back(static_cast<char>(kind));
  return at;
}

void finish(size_t at, std::string& out) {
  const auto body = std::as_bytes(std::span(out)).subspan(at + kHead);
  const uint32_t head[2] = {static_cast<uint32_t>(body.size()), checksum(body)};
  std::memcpy(out.data() + at, head, kHead);
}

/// Numbers out of a body; once one is missing or out of range, ok() is false.
class Numbers {
 public:
  explicit Numbers(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t next(uint64_t most = std::numeric_limits<uint64_t>::max()) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const auto byte = static_cast<uint64_t>(bytes_.front());
      bytes_ = bytes_.subspan(1);
      if (shift == 63 && byte > 1) break;
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80 && value <= most) return value;
      if (byte < 0x80) break;
    }
    ok_ = false;
    return 0;
  }
  uint32_t next32() { return static_cast<uint32_t>(next(std::numeric_limits<uint32_t>::max())); }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && bytes_.empty(); }
  size_t left() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

std::optional<LedgerBegin> read_begin(std::span<const std::byte> body) {
  Numbers numbers(body);
  LedgerBegin begin;
  begin.incarnation = numbers.next();
  begin.step = {numbers.next()};
  begin.windows = numbers.next();
  begin.sequences = numbers.next32();
  begin.microbatches = numbers.next32();
  begin.seed = numbers.next();
  return numbers.done() ? std::optional(begin) : std::nullopt;
}

std::optional<LedgerStep> read_step(std::span<const std::byte> body, size_t names) {
  Numbers numbers(body);
  LedgerStep step;
  step.incarnation = numbers.next();
  step.step = {numbers.next()};
  step.microbatches = numbers.next32();
  step.applied = numbers.next(1) == 1;
  step.repeated = numbers.next();
  const uint64_t units = numbers.next(numbers.left());
  uint32_t end = 0;
  for (uint64_t i = 0; i < units && numbers.ok(); i++) {
    // How far a unit begins behind the last one's end is 0 where all is well.
    const uint64_t jump = numbers.next32();
    const auto off = static_cast<uint32_t>(jump >> 1 ^ (~(jump & 1) + 1));
    const Subtree subtree{end + off, numbers.next32()};
    const uint32_t trainer = numbers.next32();
    if (trainer >= names) return std::nullopt;
    step.units.push_back({subtree, trainer});
    end = subtree.end();
  }
  return numbers.done() ? std::optional(std::move(step)) : std::nullopt;
}

}  // namespace

void append_record(const LedgerBegin& begin, std::string& out) {
  const size_t at = start(Kind::kBegin, out);
  for (const uint64_t value : {begin.incarnation, begin.step.value, begin.windows,
                               uint64_t{begin.sequences}, uint64_t{begin.microbatches}, begin.seed})
    put(value, out);
  finish(at, out);
}

void append_record(const LedgerStep& step, std::string& out) {
  const size_t at = start(Kind::kStep, out);
  for (const uint64_t value : {step.incarnation, step.step.value, uint64_t{step.microbatches},
                               uint64_t{step.applied}, step.repeated, uint64_t{step.units.size()}})
    put(value, out);
  uint32_t end = 0;
  for (const LedgerStep::Unit& unit : step.units) {
    const uint32_t off = unit.subtree.first - end;
    put(off << 1 ^ (0 - (off >> 31)), out);
    put(unit.subtree.count, out);
    put(unit.trainer, out);
    end = unit.subtree.end();
  }
  finish(at, out);
}

void append_name(std::string_view name, std::string& out) {
  const size_t at = start(Kind::kName, out);
  out += name.substr(0, kLongestName);
  finish(at, out);
}

Result<LedgerReader> LedgerReader::open(std::span<const std::byte> bytes,
                                        const std::string& where) {
  const size_t there = std::min(bytes.size(), kLedgerMagic.size());
  if (there > 0 && std::memcmp(bytes.data(), kLedgerMagic.data(), there) != 0)
    return Error{ErrorCode::kCorrupt, "is no ledger of a job", where, ""};
  LedgerReader reader(bytes);
  if (there == kLedgerMagic.size()) reader.offset_ = there;
  return reader;
}

std::optional<std::span<const std::byte>> LedgerReader::body_at(size_t offset) const {
  if (offset < kLedgerMagic.size() || bytes_.size() - offset <= kHead) return std::nullopt;
  uint32_t head[2];
  std::memcpy(head, bytes_.data() + offset, kHead);
  const size_t length = head[0];
  if (length == 0 || length > std::min(kLongestBody, bytes_.size() - offset - kHead))
    return std::nullopt;
  const auto body = bytes_.subspan(offset + kHead, length);
  return checksum(body) == head[1] ? std::optional(body) : std::nullopt;
}

std::optional<LedgerReader::Record> LedgerReader::next() {
  for (;;) {
    const auto body = body_at(offset_);
    if (!body) return std::nullopt;
    const auto content = body->subspan(1);
    std::optional<Record> record;
    switch (static_cast<Kind>(body->front())) {
      case Kind::kName:
        if (content.size() > kLongestName) return std::nullopt;
        names_.emplace_back(reinterpret_cast<const char*>(content.data()), content.size());
        break;
      case Kind::kBegin:
        if (auto begin = read_begin(content)) record = *begin;
        if (!record) return std::nullopt;
        break;
      case Kind::kStep:
        if (auto step = read_step(content, names_.size())) record = std::move(*step);
        if (!record) return std::nullopt;
        break;
      default:
        return std::nullopt;
    }
    last_ = offset_;
    offset_ += kHead + body->size();
    if (record) return record;
  }
}

LedgerStep LedgerReader::step_at(size_t offset) const {
  const auto body = body_at(offset);
  FS_CHECK(body.has_value());
  auto step = read_step(body->subspan(1), names_.size());
  FS_CHECK(step.has_value());
  return std::move(*step);
}

}  // namespace fastserve
