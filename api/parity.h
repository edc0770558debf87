// Holds this build against recorded ground truth: the library behind `fsctl parity`.
#pragma once

#include <functional>
#include <string>

#include "base/file.h"
#include "model/transformer/parity.h"

namespace fastserve {

/// Checks whatever `directory` holds, itself or in folders below it: models (reference.safetensors
/// beside config.json), tokenizers (cases.jsonl), chat templates (cases.jsonl beside .jinja files),
/// quantisation sets (quant.safetensors), malformed files (manifest.json: a list of {path, kind,
/// expected}, with kind "safetensors", "sharded index", "config", "tokenizer" or "model", and
/// expected "ok", "clear error" or "error or ok"). kNotFound when it holds none of these. `report`
/// sees each check at once, with the file or folder it is about; models run on `device`.
Status check_parity(
    const Path& directory, Device& device,
    const std::function<void(const std::string& subject, const ParityCheck&)>& report);

}  // namespace fastserve
