#include "serve/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/json.h"
#include "model/safetensors.h"
#include "serve/sampler.h"

namespace fastserve {
namespace {

/// Float processors against double ones; the reference's own float run errs by 2e-7.
constexpr double kTolerance = 1e-5;
/// A float probability may be 0 below it.
constexpr double kSmallest = 1e-35;
const char kPrefix[] = "sample.probs.";

Result<SamplingParameters> recorded_settings(const Path& directory) {
  const Path path = directory / "reference.json";
  FS_ASSIGN(const std::string text, read_file(path));
  FS_ASSIGN(const Json json, Json::parse(text, path.string()));
  const Json* sample = json.find_set("sample");
  const Json* config = sample ? sample->find_set("config") : nullptr;
  if (!config)
    return Error{ErrorCode::kCorrupt, "no sample.config", path.string(),
                 "the directory needs a reference.json as its generator writes it"};
  SamplingParameters settings;
  FS_ASSIGN(settings.temperature, config->double_or("temperature", 1));
  FS_ASSIGN(const int64_t top_k, config->int_or("top_k", 0));
  settings.top_k = static_cast<int>(std::clamp<int64_t>(top_k, -1, 1 << 30));
  FS_ASSIGN(settings.top_p, config->double_or("top_p", 1));
  FS_ASSIGN(settings.min_p, config->double_or("min_p", 0));
  FS_ASSIGN(settings.repetition_penalty, config->double_or("repetition_penalty", 1));
  FS_TRY(settings.validate());
  return settings;
}

/// The settings with which the reference called `name` was made; kUnsupported for an unknown name.
Result<SamplingParameters> settings_of(const std::string& name, const SamplingParameters& all) {
  SamplingParameters only;
  if (name == "combined") return all;
  if (name == "plain") return only;
  if (name == "repetition_penalty")
    only.repetition_penalty = all.repetition_penalty;
  else if (name == "temperature")
    only.temperature = all.temperature;
  else if (name == "top_k")
    only.top_k = all.top_k;
  else if (name == "top_p")
    only.top_p = all.top_p;
  else if (name == "min_p")
    only.min_p = all.min_p;
  else
    return Error{ErrorCode::kUnsupported, "unknown sampling processor", name, ""};
  return only;
}

template <class T>
std::vector<T> numbers(const TensorView& view) {
  std::vector<T> out(view.bytes.size() / sizeof(T));
  std::memcpy(out.data(), view.bytes.data(), out.size() * sizeof(T));
  return out;
}

SamplingCheck compare(const std::string& name, const std::vector<double>& expected,
                      const Result<std::vector<double>>& found) {
  SamplingCheck check{.quantity = "sampling " + name + ", probabilities, max abs",
                      .error = 0,
                      .tolerance = kTolerance,
                      .passed = false,
                      .note = ""};
  if (!found.ok() || found->size() != expected.size()) {
    check.error = INFINITY;
    check.note = found.ok() ? "another vocabulary size" : found.error().message();
    return check;
  }
  int misplaced = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    check.error = std::max(check.error, std::abs((*found)[i] - expected[i]));
    if ((*found)[i] > 0 ? expected[i] == 0 : expected[i] > kSmallest) ++misplaced;
  }
  if (misplaced > 0) check.note = fmt::format("{} tokens wrongly kept or dropped", misplaced);
  check.passed = check.error <= kTolerance && misplaced == 0;
  return check;
}

}  // namespace

Result<std::vector<SamplingCheck>> check_sampling(const Path& directory) {
  FS_ASSIGN(const auto file, SafetensorsFile::open(directory / "reference.safetensors"));
  std::vector<SamplingCheck> checks;
  if (!file->contains("sample.logits")) return checks;
  FS_ASSIGN(const SamplingParameters all, recorded_settings(directory));
  FS_ASSIGN(const TensorView logits, file->tensor("sample.logits"));
  FS_ASSIGN(const TensorView ids, file->tensor("sample.context_ids"));
  if (ids.dtype != DType::kI64)
    return Error{ErrorCode::kCorrupt, "sample.context_ids is not I64", file->where(), ""};
  const std::vector<int64_t> wide = numbers<int64_t>(ids);
  const std::vector<int32_t> context(wide.begin(), wide.end());
  for (const std::string& tensor : file->names()) {
    if (!tensor.starts_with(kPrefix)) continue;
    const std::string name = tensor.substr(sizeof(kPrefix) - 1);
    FS_ASSIGN(const TensorView truth, file->tensor(tensor));
    if (truth.dtype != DType::kF64)
      return Error{ErrorCode::kCorrupt, tensor + " is not F64", file->where(), ""};
    FS_ASSIGN(const SamplingParameters settings, settings_of(name, all));
    checks.push_back(compare(name, numbers<double>(truth),
                             filtered_probabilities(logits.to_floats(), settings, context)));
  }
  return checks;
}

}  // namespace fastserve
