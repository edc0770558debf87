#include "train/gradient_format.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <optional>

namespace fastserve {
namespace {

constexpr int kBlock = 4096;  // of which `kept` are counted

constexpr const char* kGradientNames =
    "fp32, bf16, fp16, int8, topk:FRACTION, sign or lowrank:RANK";
constexpr const char* kWeightNames =
    "exact, bf16, int8-delta, sign-delta, topk-delta:FRACTION or lowrank-delta:RANK";

Error unknown(std::string_view text, const char* what, const char* names) {
  return {ErrorCode::kInvalidArgument, fmt::format("is no form of {}", what), std::string(text),
          fmt::format("choose one of {}", names)};
}

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

struct Name {
  std::string_view name;
  std::optional<std::string_view> setting;  // behind the colon
};

Name split(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return {text, std::nullopt};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

Result<int> parse_kept(std::string_view text, std::string_view whole) {
  const auto fraction = number<double>(text);
  if (fraction && *fraction > 0 && *fraction * kBlock <= GradientFormat::kMostKept)
    return std::max(1, static_cast<int>(std::lround(*fraction * kBlock)));
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("'{}' is no part of the values above 0 and up to 0.5", text),
               std::string(whole), "topk:0.01 sends one value in a hundred"};
}

Result<int> parse_rank(std::string_view text, std::string_view whole) {
  const auto rank = number<int>(text);
  if (rank && *rank >= 1 && *rank <= GradientFormat::kMostRank) return *rank;
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("'{}' is no rank from 1 to {}", text, GradientFormat::kMostRank),
               std::string(whole), "lowrank:4 is a usual choice"};
}

/// Nothing when there is no such name.
Result<std::optional<GradientFormat>> parse_named(Name name, std::string_view whole) {
  GradientFormat format;
  if (name.name == "topk") {
    format.kind = GradientKind::kTopK;
    FS_ASSIGN(format.kept, parse_kept(name.setting.value_or(""), whole));
    return std::optional(format);
  }
  if (name.name == "lowrank") {
    format.kind = GradientKind::kLowRank;
    FS_ASSIGN(format.rank, parse_rank(name.setting.value_or(""), whole));
    return std::optional(format);
  }
  constexpr std::pair<const char*, GradientKind> kPlain[] = {{"fp32", GradientKind::kFloat32},
                                                             {"bf16", GradientKind::kBFloat16},
                                                             {"fp16", GradientKind::kFloat16},
                                                             {"int8", GradientKind::kInt8},
                                                             {"sign", GradientKind::kSign}};
  for (const auto& [plain, kind] : kPlain) {
    format.kind = kind;
    if (name.name == plain && !name.setting) return std::optional(format);
  }
  return std::optional<GradientFormat>();
}

}  // namespace

Result<GradientFormat> GradientFormat::parse(std::string_view text) {
  FS_ASSIGN(const auto format, parse_named(split(text), text));
  if (!format) return unknown(text, "gradients", kGradientNames);
  return *format;
}

std::string GradientFormat::text() const {
  switch (kind) {
    case GradientKind::kFloat32:
      return "fp32";
    case GradientKind::kBFloat16:
      return "bf16";
    case GradientKind::kFloat16:
      return "fp16";
    case GradientKind::kInt8:
      return "int8";
    case GradientKind::kTopK:
      return fmt::format("topk:{}", static_cast<double>(kept) / kBlock);
    case GradientKind::kSign:
      return "sign";
    case GradientKind::kLowRank:
      return fmt::format("lowrank:{}", rank);
  }
  return "";
}

Result<WeightsBack> WeightsBack::parse(std::string_view text) {
  if (text == "exact") return WeightsBack{};
  if (text == "bf16") return WeightsBack{Kind::kBFloat16, {}};
  constexpr std::string_view kEnding = "-delta";
  Name name = split(text);
  if (!name.name.ends_with(kEnding)) return unknown(text, "weights", kWeightNames);
  name.name.remove_suffix(kEnding.size());
  FS_ASSIGN(const auto delta, parse_named(name, text));
  // Changes of weights are too small beside the weights to be rounded without a residual.
  if (!delta || !delta->keeps_residual()) return unknown(text, "weights", kWeightNames);
  return WeightsBack{Kind::kDelta, *delta};
}

std::string WeightsBack::text() const {
  if (kind == Kind::kExact) return "exact";
  if (kind == Kind::kBFloat16) return "bf16";
  std::string text = delta.text();
  return text.insert(std::min(text.size(), text.find(':')), "-delta");
}

}  // namespace fastserve
