// Proves from a job's ledger that every sample counted exactly once an epoch.
#pragma once

#include <map>
#include <span>
#include <string>

#include "base/json.h"
#include "train/ledger_format.h"
#include "train/spec.h"

namespace fastserve {

/// What a ledger that holds comes to.
struct LedgerAudit {
  int64_t steps = 0;
  int64_t skipped = 0;         ///< of the steps: those whose gradient overflowed
  int64_t ahead = 0;           ///< steps in the ledger beyond these: not in a checkpoint yet
  int64_t incarnations = 0;    ///< times the job was begun or gone on with
  int64_t replayed_steps = 0;  ///< done again, so that their first record is void
  int64_t repeated_units = 0;  ///< answers that came second, and were dropped
  int64_t samples = 0;         ///< sequences that counted
  int64_t whole_epochs = 0;    ///< in each, every window of the data counted once
  uint64_t windows = 0;        ///< of an epoch
  std::map<std::string, int64_t> microbatches;  ///< that counted, by trainer

  Json to_json() const;
};

/// Holds the ledger's bytes against the first `steps_done` steps of the job that `spec` describes:
/// each of them has a record, and of several the last is valid; its units make up the step exactly
/// and are nodes of its tree; incarnations only go forward, each from a step that is known on
/// without a gap; each window of the data comes once an epoch. `windows` of an epoch; 0: as the
/// ledger says.
///
/// kCorrupt names the first step that does not hold; `where` names the ledger.
/// Takes 8 bytes a step and one bit a window.
Result<LedgerAudit> audit(std::span<const std::byte> ledger, const TrainSpec& spec,
                          int64_t steps_done, uint64_t windows, const std::string& where);

}  // namespace fastserve
