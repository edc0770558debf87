#include "gpu/simt/emulated_link.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "gpu/simt/emulated_runtime.h"

namespace fastserve::simt {
namespace {

class EmulatedLink final : public DeviceLink {
 public:
  EmulatedLink(std::vector<gpu::Runtime*> cards, std::optional<Error> no_collectives)
      : cards_(std::move(cards)), no_collectives_(std::move(no_collectives)) {}

  std::string description() const override {
    return open_ ? "sums over a ring" : "copies from card to card";
  }
  void copy(size_t to, void* into, size_t from, const void* data, size_t bytes) override {
    if (bytes == 0 || card(to).failed() || card(to).refused("a copy from another card")) return;
    if (card(from).failed() || card(from).refused("a copy to another card"))
      return report(to, "what another card was to send has not come: it has failed");
    move(to, into, from, data, bytes);
  }

  Status open_collectives() override {
    if (no_collectives_) return *no_collectives_;
    open_ = true;
    return {};
  }
  std::string reduce_id() const override { return "ring of " + std::to_string(cards_.size()); }

  void reduce(size_t to, float* into, std::span<const float* const> parts, size_t n) override {
    FS_CHECK(open_ && parts.size() == cards_.size());
    if (n == 0 || !start_on_all("a sum over all cards")) return;
    for (size_t i = 0; i < cards_.size(); i++)
      if (!card(i).memory().holds(parts[i])) return report(i, "a sum of what is not its own");
    if (!card(to).memory().holds(into)) return report(to, "a sum into what is not its own");
    const Opened opened(*this);
    const size_t first = (to + 1) % cards_.size();
    std::vector<float> sum(parts[first], parts[first] + n);
    for (size_t hop = 1; hop < cards_.size(); hop++) {
      const size_t i = (first + hop) % cards_.size();
      count((i + cards_.size() - 1) % cards_.size(), i, n * sizeof(float));
      for (size_t j = 0; j < n; j++) sum[j] += parts[i][j];
    }
    std::ranges::copy(sum, into);
  }

  void broadcast(size_t from, std::span<float* const> ranges, size_t n) override {
    FS_CHECK(open_ && ranges.size() == cards_.size());
    if (n == 0 || !start_on_all("weights for all cards")) return;
    for (size_t i = 0; i < cards_.size(); i++)
      if (i != from) move(i, ranges[i], from, ranges[from], n * sizeof(float));
  }

 private:
  /// The memory of all cards, for as long as it lives.
  class Opened {
   public:
    explicit Opened(EmulatedLink& link) {
      for (size_t i = 0; i < link.cards_.size(); i++)
        access_.push_back(std::make_unique<DeviceMemory::Access>(link.card(i).memory()));
    }

   private:
    std::vector<std::unique_ptr<DeviceMemory::Access>> access_;
  };

  LinkedCard& card(size_t i) const { return static_cast<LinkedCard&>(*cards_[i]); }
  void report(size_t i, const char* what) const {
    card(i).report({ErrorCode::kInternal, what, "emulated GPU", ""});
  }

  void move(size_t to, void* into, size_t from, const void* data, size_t bytes) {
    if (!card(to).memory().holds(into) || !card(from).memory().holds(data))
      return report(to, "a copy between cards of what is not theirs");
    const DeviceMemory::Access access(card(to).memory()), others(card(from).memory());
    std::memcpy(into, data, bytes);
    count(from, to, bytes);
  }
  void count(size_t from, size_t to, size_t bytes) const {
    if (Traffic* const traffic = card(from).traffic()) traffic->out += bytes;
    if (Traffic* const traffic = card(to).traffic()) traffic->in += bytes;
  }

  /// A collective is a kernel on each card. Where it cannot start on one it never ends on the
  /// others: they are told instead.
  bool start_on_all(const char* what) {
    bool all = true;
    for (size_t i = 0; i < cards_.size(); i++)
      all = !card(i).failed() && !card(i).refused("a collective") && card(i).start_kernel(what) &&
            all;
    for (size_t i = 0; i < cards_.size() && !all; i++)
      if (!card(i).failed()) report(i, "a collective has not begun: another card has failed");
    return all;
  }

  const std::vector<gpu::Runtime*> cards_;
  const std::optional<Error> no_collectives_;
  bool open_ = false;
};

}  // namespace

std::unique_ptr<DeviceLink> make_emulated_link(std::vector<gpu::Runtime*> cards,
                                               std::optional<Error> no_collectives) {
  return std::make_unique<EmulatedLink>(std::move(cards), std::move(no_collectives));
}

}  // namespace fastserve::simt
