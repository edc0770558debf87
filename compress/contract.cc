#include "compress/contract.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/file.h"

namespace fastserve {
namespace {

struct KindEntry {
  PruningKind kind;
  const char* name;
};
constexpr KindEntry kKinds[] = {
    {PruningKind::kNone, "none"},           {PruningKind::kMagnitude, "magnitude"},
    {PruningKind::kWanda, "wanda"},         {PruningKind::k2of4, "2:4"},
    {PruningKind::kWanda2of4, "wanda-2:4"}, {PruningKind::kNeurons, "neurons"},
};

/// By growing error, as measured on the reference matrices; sizes shrink towards the end.
constexpr WeightFormat kByQuality[] = {WeightFormat::kFloat32,     WeightFormat::kBFloat16,
                                       WeightFormat::kInt8Group32, WeightFormat::kInt8Group128,
                                       WeightFormat::kInt8Row,     WeightFormat::kInt4Group32,
                                       WeightFormat::kInt4Group128};
constexpr size_t kMaxAlternatives = 12;

size_t quality_rank(WeightFormat format) {
  if (format == WeightFormat::kFloat16) format = WeightFormat::kBFloat16;
  const auto* found = std::find(std::begin(kByQuality), std::end(kByQuality), format);
  FS_CHECK(found != std::end(kByQuality));
  return static_cast<size_t>(found - kByQuality);
}

bool rises_too_far(const CompressSpec& spec, const Measurement& before, const Measurement& after) {
  return spec.max_perplexity_increase > 0 &&
         after.perplexity > before.perplexity * (1 + spec.max_perplexity_increase);
}

bool quality_broken(const CompressSpec& spec, const Measurement& before, const Measurement& after) {
  if (!std::isfinite(after.perplexity)) return true;
  if (spec.max_perplexity > 0 && after.perplexity > spec.max_perplexity) return true;
  return rises_too_far(spec, before, after);
}

bool cost_broken(const CompressSpec& spec, const Measurement& after) {
  return (spec.max_bytes > 0 && after.bytes > spec.max_bytes) ||
         (spec.min_tokens_per_second > 0 && after.tokens_per_second < spec.min_tokens_per_second);
}

CompressSpec with_pruning(CompressSpec spec, PruningKind kind, double sparsity) {
  spec.pruning = kind;
  spec.sparsity = sparsity;
  return spec;
}

CompressSpec with_weights(CompressSpec spec, WeightFormat weights) {
  spec.weights = weights;
  spec.head.reset();
  return spec;
}

CompressSpec unpruned(const CompressSpec& spec) {
  return with_pruning(spec, PruningKind::kNone, 0);
}

/// Less error: less pruning first, then finer formats.
std::vector<CompressSpec> gentler(const CompressSpec& spec) {
  std::vector<CompressSpec> out;
  const bool pruned = spec.pruning != PruningKind::kNone;
  if (spec.has_sparsity())
    for (const double part : {0.5, 0.25})
      out.push_back(with_pruning(spec, spec.pruning, spec.sparsity * part));
  if (pruned) out.push_back(unpruned(spec));
  if (spec.head) out.push_back(with_weights(unpruned(spec), spec.weights));
  for (size_t rank = quality_rank(spec.weights); rank-- > quality_rank(WeightFormat::kBFloat16);) {
    const CompressSpec next = with_weights(spec, kByQuality[rank]);
    if (pruned) out.push_back(next);
    out.push_back(unpruned(next));
  }
  return out;
}

/// Smaller and faster: coarser formats first, then fewer neurons, then both.
std::vector<CompressSpec> harsher(const CompressSpec& spec) {
  std::vector<CompressSpec> out;
  for (size_t rank = quality_rank(spec.weights) + 1; rank < std::size(kByQuality); rank++)
    out.push_back(with_weights(spec, kByQuality[rank]));
  const double already = spec.pruning == PruningKind::kNeurons ? spec.sparsity : 0;
  for (const double sparsity : {0.25, 0.5, 0.75})
    if (sparsity > already) out.push_back(with_pruning(spec, PruningKind::kNeurons, sparsity));
  if (format_bits(spec.weights) > 4)
    for (const double sparsity : {0.25, 0.5})
      if (sparsity > already)
        out.push_back(with_pruning(with_weights(spec, WeightFormat::kInt4Group32),
                                   PruningKind::kNeurons, sparsity));
  return out;
}

/// When quality and cost are both broken: zeros cost quality and save nothing, and neurons cost
/// more of it than bits do, so another way to the same size may hold both.
std::vector<CompressSpec> otherwise(const CompressSpec& spec) {
  std::vector<CompressSpec> out;
  const CompressSpec plain = unpruned(spec);
  for (size_t rank = quality_rank(WeightFormat::kBFloat16); rank < std::size(kByQuality); rank++) {
    const bool same = kByQuality[rank] == spec.weights && !spec.head;
    if (same && spec.pruning == PruningKind::kNone) continue;
    out.push_back(with_weights(plain, kByQuality[rank]));
  }
  for (const WeightFormat format : {WeightFormat::kInt8Row, WeightFormat::kInt4Group32})
    out.push_back(with_pruning(with_weights(spec, format), PruningKind::kNeurons, 0.25));
  return out;
}

}  // namespace

const char* pruning_kind_name(PruningKind kind) { return kKinds[static_cast<size_t>(kind)].name; }

Result<PruningKind> parse_pruning_kind(std::string_view name) {
  for (const KindEntry& known : kKinds)
    if (name == known.name) return known.kind;
  return Error{ErrorCode::kInvalidArgument, fmt::format("\"{}\" is not a kind of pruning", name),
               "", "use none, magnitude, wanda, 2:4, wanda-2:4 or neurons"};
}

WeightFormat CompressSpec::head_format() const {
  if (head) return *head;
  return format_bits(weights) >= 8 ? weights : WeightFormat::kInt8Group128;
}

bool CompressSpec::has_sparsity() const {
  return pruning == PruningKind::kMagnitude || pruning == PruningKind::kWanda ||
         pruning == PruningKind::kNeurons;
}

bool CompressSpec::needs_calibration() const {
  return pruning == PruningKind::kWanda || pruning == PruningKind::kWanda2of4 ||
         pruning == PruningKind::kNeurons;
}

std::string CompressSpec::text() const {
  std::string out = weight_format_name(weights);
  if (head) out += fmt::format(" with a head of {}", weight_format_name(*head));
  if (pruning != PruningKind::kNone) out += fmt::format(", {}", pruning_kind_name(pruning));
  if (has_sparsity()) out += fmt::format(" {:.3g} %", 100 * sparsity);
  return out;
}

Status CompressSpec::validate() const {
  const auto bad = [](std::string what, const char* where, const char* hint) {
    return Error{ErrorCode::kInvalidArgument, std::move(what), where, hint};
  };
  if (has_sparsity() && !(sparsity > 0 && sparsity < 1))
    return bad(fmt::format("{} pruning needs a fraction to remove, and {} is outside (0, 1)",
                           pruning_kind_name(pruning), sparsity),
               "sparsity", "give one such as 0.25");
  if (!has_sparsity() && sparsity != 0)
    return bad(fmt::format("a sparsity of {} means nothing for \"{}\" pruning", sparsity,
                           pruning_kind_name(pruning)),
               "sparsity", "choose magnitude, wanda or neurons, or leave the sparsity out");
  for (const auto& [name, bound] : {std::pair("max perplexity increase", max_perplexity_increase),
                                    std::pair("max perplexity", max_perplexity),
                                    std::pair("min tokens per second", min_tokens_per_second)})
    if (!(bound >= 0 && std::isfinite(bound)))
      return bad(fmt::format("{} is not a bound", bound), name,
                 "give a positive number, or 0 for no bound");
  return {};
}

std::string measurement_text(const Measurement& m) {
  if (std::isinf(m.perplexity) && m.tokens_per_second == 0) return human_bytes(m.bytes);
  return fmt::format("{}, perplexity {:.4g}, {:.0f} tokens/s", human_bytes(m.bytes), m.perplexity,
                     m.tokens_per_second);
}

std::vector<std::string> broken_bounds(const CompressSpec& spec, const Measurement& before,
                                       const Measurement& after) {
  std::vector<std::string> broken;
  const double increase = after.perplexity / before.perplexity - 1;
  if (!std::isfinite(after.perplexity)) {
    broken.push_back(
        fmt::format("the perplexity is {} (it was {:.4g})", after.perplexity, before.perplexity));
  } else {
    if (rises_too_far(spec, before, after))
      broken.push_back(fmt::format(
          "the perplexity rises by {:.3g} % ({:.5g} to {:.5g}) and may rise by {:.3g} %",
          100 * increase, before.perplexity, after.perplexity, 100 * spec.max_perplexity_increase));
    if (spec.max_perplexity > 0 && after.perplexity > spec.max_perplexity)
      broken.push_back(fmt::format("the perplexity is {:.5g} (it was {:.5g}) and may be {:.5g}",
                                   after.perplexity, before.perplexity, spec.max_perplexity));
  }
  if (spec.max_bytes > 0 && after.bytes > spec.max_bytes)
    broken.push_back(fmt::format("the size is {} ({} bytes; it was {}) and may be {} bytes",
                                 human_bytes(after.bytes), after.bytes, human_bytes(before.bytes),
                                 spec.max_bytes));
  if (spec.min_tokens_per_second > 0 && after.tokens_per_second < spec.min_tokens_per_second)
    broken.push_back(
        fmt::format("it decodes {:.4g} tokens/s (it was {:.4g}) and should decode {:.4g}",
                    after.tokens_per_second, before.tokens_per_second, spec.min_tokens_per_second));
  return broken;
}

std::vector<CompressSpec> alternatives(const CompressSpec& spec, const Measurement& before,
                                       const Measurement& after) {
  const bool quality = quality_broken(spec, before, after), cost = cost_broken(spec, after);
  if (!quality && !cost) return {};
  // No compression makes a model better than it was.
  if (spec.max_perplexity > 0 && before.perplexity > spec.max_perplexity) return {};
  std::vector<CompressSpec> out = quality && cost ? otherwise(spec)
                                  : quality       ? gentler(spec)
                                                  : harsher(spec);
  if (out.size() > kMaxAlternatives) out.resize(kMaxAlternatives);
  return out;
}

Status judge(const CompressSpec& spec, const Measurement& before, const Measurement& after,
             const ContractTrial& trial) {
  const std::vector<std::string> broken = broken_bounds(spec, before, after);
  if (broken.empty()) return {};
  Error error{ErrorCode::kContractBroken, fmt::format("{}", fmt::join(broken, "; ")), spec.text(),
              "loosen the bound"};
  const std::vector<CompressSpec> others = alternatives(spec, before, after);
  if (spec.max_perplexity > 0 && before.perplexity > spec.max_perplexity)
    error.hint = fmt::format("the original itself has {:.5g}: loosen the bound", before.perplexity);
  if (others.empty()) return error;
  if (!trial) {
    error.hint = fmt::format("try {}, or loosen the bound", others.front().text());
    return error;
  }
  const bool quality = quality_broken(spec, before, after);
  std::optional<std::pair<CompressSpec, Measurement>> nearest;
  for (const CompressSpec& other : others) {
    Result<Measurement> measured = trial(other);
    if (!measured.ok()) return std::move(measured).error();
    if (broken_bounds(other, before, *measured).empty()) {
      error.hint = fmt::format("{} would pass: {}", other.text(), measurement_text(*measured));
      return error;
    }
    const bool nearer = !nearest || (quality ? measured->perplexity < nearest->second.perplexity
                                             : measured->bytes < nearest->second.bytes);
    if (nearer) nearest.emplace(other, *measured);
  }
  error.hint = fmt::format("none of {} other settings passes, the nearest being {} ({}): loosen {}",
                           others.size(), nearest->first.text(), measurement_text(nearest->second),
                           broken.size() > 1 ? "a bound" : "the bound");
  return error;
}

}  // namespace fastserve
