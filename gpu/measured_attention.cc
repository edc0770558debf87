// Which kinds of attention a library is faster at, measured once and kept.
#include <algorithm>
#include <optional>

#include "gpu/attention_engine.h"
#include "gpu/kernels/attention.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {
namespace {

constexpr int kRuns = 5;

class MeasuredAttention final : public AttentionEngine {
 public:
  MeasuredAttention(std::unique_ptr<AttentionEngine> engine, Runtime& runtime, const Path& folder,
                    std::vector<AttentionKind> kinds, const Clock& clock)
      : engine_(std::move(engine)),
        runtime_(runtime),
        kinds_(std::move(kinds)),
        clock_(clock),
        cache_(folder, "attention-" + engine_->name(), card(runtime.properties())) {}

  /// "cudnn-9.19.0:0110": a digit for each kind.
  std::string name() override {
    std::string choices;
    for (const bool chosen : choices_of()) choices += chosen ? '1' : '0';
    return engine_->name() + ":" + choices;
  }

  bool supports(const AttentionForward& op, Precision precision) override {
    const auto kind = std::find_if(kinds_.begin(), kinds_.end(), [&](const AttentionKind& k) {
      return op.shape.head_dim <= k.head_dim && longest(op) <= k.longest;
    });
    return kind != kinds_.end() && choices_of()[static_cast<size_t>(kind - kinds_.begin())] &&
           engine_->supports(op, precision);
  }
  void forward(const AttentionForward& op, Precision precision) override {
    engine_->forward(op, precision);
  }

 private:
  static std::string card(const DeviceProperties& p) {
    return p.name + " " + std::to_string(p.major) + "." + std::to_string(p.minor);
  }
  static int longest(const AttentionForward& op) {
    int most = 0;
    for (size_t s = 0; s + 1 < op.starts.size(); s++)
      most = std::max(most, op.starts[s + 1] - op.starts[s]);
    return most;
  }

  const std::vector<bool>& choices_of() {
    if (choices_) return *choices_;
    choices_.emplace();
    for (const AttentionKind& kind : kinds_) choices_->push_back(choose(kind));
    return *choices_;
  }

  bool choose(const AttentionKind& kind) {
    const std::string shape = "forward " + std::to_string(kind.head_dim) + " x " +
                              std::to_string(kind.tokens) + " of " + std::to_string(kind.heads) +
                              " heads";
    if (const auto known = cache_.find(shape)) return (*known)[0] == 1;
    const std::optional<Times> times = measure(kind);
    if (!times) return false;  // no room for it, perhaps for once: it is not kept
    PlanBytes plan{};
    plan[0] = times->theirs < times->ours ? 1 : 0;
    plan[1] = static_cast<uint64_t>(times->ours.count());
    plan[2] = static_cast<uint64_t>(times->theirs.count());
    cache_.put(shape, plan);
    return plan[0] == 1;
  }

  struct Times {
    Nanoseconds ours, theirs;
  };

  /// Nothing where the card has no room for it. An engine that fails is slower than any.
  std::optional<Times> measure(const AttentionKind& kind) {
    const int rows = kind.tokens * kind.sequences;
    const HeadShape heads{kind.heads, kind.heads, kind.head_dim};
    const size_t in = at(rows, heads.width()) * 2, out = at(rows, kind.heads * kind.head_dim) * 2;
    const auto room = [&](size_t bytes) {
      auto memory = Memory::allocate(runtime_, bytes);
      return memory.ok() ? std::move(memory).value() : Memory();
    };
    const Memory qkv = room(in), result = room(out), stats = room(at(rows, kind.heads) * 8);
    if (!qkv.data() || !result.data() || !stats.data()) {
      static_cast<void>(runtime_.sync().ok());
      return std::nullopt;
    }
    std::vector<int32_t> starts;
    for (int s = 0; s <= kind.sequences; s++) starts.push_back(s * kind.tokens);
    const AttentionForward op{.shape = heads,
                              .qkv = qkv.data(),
                              .out = result.data(),
                              .stats = static_cast<float*>(stats.data()),
                              .starts = starts,
                              .window = 0,
                              .scale = 0.125f};
    TrainState own(runtime_, {}, Precision::kBFloat16);
    const auto ours = time([&] { attention_forward(own, op); });
    if (!ours) return std::nullopt;
    const bool runs = engine_->supports(op, Precision::kBFloat16);
    const auto theirs =
        runs ? time([&] { engine_->forward(op, Precision::kBFloat16); }) : std::nullopt;
    return Times{*ours, theirs.value_or(Nanoseconds::max())};
  }

  /// Of kRuns, after one that loads and plans.
  template <class Run>
  std::optional<Nanoseconds> time(const Run& run) {
    run();
    if (!runtime_.sync().ok()) return std::nullopt;
    const Nanoseconds begun = clock_.now();
    for (int i = 0; i < kRuns; i++) run();
    if (!runtime_.sync().ok()) return std::nullopt;
    return clock_.now() - begun;
  }

  const std::unique_ptr<AttentionEngine> engine_;
  Runtime& runtime_;
  const std::vector<AttentionKind> kinds_;
  const Clock& clock_;
  PlanCache cache_;
  std::optional<std::vector<bool>> choices_;
};

}  // namespace

std::vector<AttentionKind> common_attention_kinds() {
  // GPT-2's heads and Llama's, in short sequences and long ones.
  constexpr int kAny = 1 << 30;
  return {{64, 1024, 1024, 16, 12},
          {64, kAny, 4096, 4, 12},
          {128, 1024, 1024, 16, 16},
          {128, kAny, 4096, 4, 16}};
}

std::unique_ptr<AttentionEngine> make_measured_attention(std::unique_ptr<AttentionEngine> engine,
                                                         Runtime& runtime, const Path& folder,
                                                         std::vector<AttentionKind> kinds,
                                                         const Clock& clock) {
  return std::make_unique<MeasuredAttention>(std::move(engine), runtime, folder, std::move(kinds),
                                             clock);
}

}  // namespace fastserve::gpu
