#include "gpu/plan_cache.h"

#include <fmt/format.h>

#include "base/hash.h"
#include "base/json.h"

namespace fastserve::gpu {
namespace {

constexpr uint64_t kMostBytes = 4 << 20;
constexpr size_t kMostPlans = 10000;
constexpr size_t kDigits = 16;  // of a uint64_t in hexadecimal

std::string file_name(std::string_view library, std::string_view card) {
  std::string name = std::string(library) + "-" + std::string(card) + ".plans";
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  return name;
}

std::string to_hex(const PlanBytes& plan) {
  std::string hex;
  for (const uint64_t word : plan) hex += fmt::format("{:016x}", word);
  return hex;
}

std::optional<uint64_t> word_of(std::string_view hex) {
  uint64_t word = 0;
  for (const char c : hex) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return std::nullopt;
    word = word << 4 | static_cast<uint64_t>(digit);
  }
  return word;
}

std::optional<PlanBytes> from_hex(std::string_view hex) {
  PlanBytes plan{};
  if (hex.size() != plan.size() * kDigits) return std::nullopt;
  for (size_t i = 0; i < plan.size(); i++) {
    const auto word = word_of(hex.substr(i * kDigits, kDigits));
    if (!word) return std::nullopt;
    plan[i] = *word;
  }
  return plan;
}

}  // namespace

PlanCache::PlanCache(const Path& folder, std::string library, std::string card)
    : library_(std::move(library)), card_(std::move(card)) {
  if (folder.empty()) return;
  file_ = folder / file_name(library_, card_);
  if (const auto text = read_file(file_, kMostBytes); text.ok()) take(*text);
}

std::optional<PlanBytes> PlanCache::find(const std::string& shape) const {
  const auto found = plans_.find(shape);
  if (found == plans_.end()) return std::nullopt;
  return found->second;
}

void PlanCache::put(const std::string& shape, const PlanBytes& plan) {
  plans_[shape] = plan;
  if (file_.empty() || plans_.size() > kMostPlans) return;
  if (make_directories(file_.parent_path()).ok())
    static_cast<void>(write_file_atomically(file_, text()).ok());
}

std::string PlanCache::text() const {
  Json plans = Json::object({});
  for (const auto& [shape, plan] : plans_) plans.set(shape, to_hex(plan));
  const std::string body =
      Json::object({{"library", library_}, {"card", card_}, {"plans", plans}}).dump(1) + "\n";
  return fmt::format("{:016x}\n", hash64(body)) + body;
}

void PlanCache::take(std::string_view text) {
  if (text.size() <= kDigits || text.size() > kMostBytes || text[kDigits] != '\n') return;
  const std::string_view body = text.substr(kDigits + 1);
  if (word_of(text.substr(0, kDigits)) != hash64(body)) return;
  const auto json = Json::parse(body, "the plan cache", {.depth = 8});
  if (!json.ok() || !json->is_object()) return;
  const auto library = json->string_or("library", ""), card = json->string_or("card", "");
  if (!library.ok() || !card.ok() || *library != library_ || *card != card_) return;
  const Json* plans = json->find("plans");
  if (plans == nullptr || !plans->is_object() || plans->as_object().size() > kMostPlans) return;
  for (const auto& [shape, hex] : plans->as_object())
    if (const auto plan = hex.is_string() ? from_hex(hex.as_string()) : std::nullopt)
      plans_[shape] = *plan;
}

}  // namespace fastserve::gpu
