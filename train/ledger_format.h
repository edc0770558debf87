// The bytes of a ledger: for each step of a job, whose work counted.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "train/job.h"

namespace fastserve {

/// A job begins, or goes on from a checkpoint. What the steps after it are measured by.
struct LedgerBegin {
  uint64_t incarnation = 0;
  StepId step;  ///< the first that it will do
  uint64_t windows = 0;
  uint32_t sequences = 0, microbatches = 0;  ///< of a step
  uint64_t seed = 0;
  bool operator==(const LedgerBegin&) const = default;
};

/// A step whose gradient was whole.
struct LedgerStep {
  struct Unit {
    Subtree subtree;
    uint32_t trainer = 0;  ///< index of its name
    bool operator==(const Unit&) const = default;
  };
  uint64_t incarnation = 0;
  StepId step;
  uint32_t microbatches = 0;
  bool applied = true;    ///< false: skipped
  uint64_t repeated = 0;  ///< answers that came second, and were dropped
  std::vector<Unit> units;
  bool operator==(const LedgerStep&) const = default;
};

/// A ledger is kLedgerMagic and then records, each a length, a checksum and a body. A name is a
/// record of its own, before the first step that speaks of it; names are counted from 0.
inline constexpr std::string_view kLedgerMagic = "FSLEDGR1";

// Each appends one record. A name of more than 255 bytes loses the rest.
void append_record(const LedgerBegin& begin, std::string& out);
void append_record(const LedgerStep& step, std::string& out);
void append_name(std::string_view name, std::string& out);

/// Reads a ledger record by record, up to the first that is not whole.
///
/// Threads:  not thread-safe. The bytes must outlive it.
/// Promises: takes any bytes; what it gives has names for all its trainers.
class LedgerReader {
 public:
  using Record = std::variant<LedgerBegin, LedgerStep>;

  /// kCorrupt when the bytes begin otherwise than a ledger does. `where` names them.
  static Result<LedgerReader> open(std::span<const std::byte> bytes, const std::string& where);

  /// Nothing at the end, and where a record is cut short or does not match its checksum.
  std::optional<Record> next();
  /// How much has been read, and is whole.
  size_t offset() const { return offset_; }
  bool at_end() const { return offset_ == bytes_.size(); }
  /// Those that came up to now.
  const std::vector<std::string>& names() const { return names_; }

  /// Where the record that next() gave last begins, and the step whose record begins there.
  size_t last() const { return last_; }
  LedgerStep step_at(size_t offset) const;

 private:
  explicit LedgerReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::optional<std::span<const std::byte>> body_at(size_t offset) const;

  std::span<const std::byte> bytes_;
  size_t offset_ = 0, last_ = 0;
  std::vector<std::string> names_;
};

}  // namespace fastserve
