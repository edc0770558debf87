// Holds this build against recorded ground truth: the library behind `fsctl parity`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/file.h"
#include "cpu/isa.h"

namespace fastserve {

struct ParityCheck {
  std::string subject;   ///< the file or folder, relative to the directory asked for
  std::string quantity;  ///< "logits, max abs"
  double error = 0, tolerance = 0;
  bool passed = false;
  std::string note;      ///< what differs, or why a quantity is skipped
};

/// Checks whatever `directory` holds, itself or in folders below it: models (reference.safetensors
/// beside config.json), tokenizers (cases.jsonl), quantisation sets (quant.safetensors), malformed
/// files (manifest.json). kNotFound when it holds none of these. `report` sees each check at once.
Status check_parity(const Path& directory, Isa isa, int lanes, const std::function<void(const ParityCheck&)>& report);

}  // namespace fastserve
