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

  /// "cudnn-9.19.0:0110b0010": a digit for each kind, forward and backward.
  std::string name() override {
    std::string forward, backward;
    for (const Choice& choice : choices_of()) {
      forward += choice.forward ? '1' : '0';
      backward += choice.backward ? '1' : '0';
    }
    return engine_->name() + ":" + forward + "b" + backward;
  }

  uint64_t scratch_version() const override { return engine_->scratch_version(); }
  uint64_t most_scratch() override {
    const auto& choices = choices_of();
    const bool any = std::any_of(choices.begin(), choices.end(),
                                 [](const Choice& c) { return c.forward || c.backward; });
    return any ? engine_->most_scratch() : 0;
  }
  bool supports(const AttentionForward& op, Precision precision) override {
    return choice_of(op).forward && engine_->supports(op, precision);
  }
  bool supports(const AttentionBackward& op, Precision precision) override {
    return choice_of(op.forward).backward && engine_->supports(op, precision);
  }
  void forward(const AttentionForward& op, Precision precision) override {
    engine_->forward(op, precision);
  }
  void backward(const AttentionBackward& op, Precision precision) override {
    engine_->backward(op, precision);
  }

 private:
  /// Whether the engine is the faster one.
  struct Choice {
    bool forward = false, backward = false;
  };

  static std::string card(const DeviceProperties& p) {
    return p.name + " " + std::to_string(p.major) + "." + std::to_string(p.minor);
  }
  static int longest(const AttentionForward& op) {
    int most = 0;
    for (size_t s = 0; s + 1 < op.starts.size(); s++)
      most = std::max(most, op.starts[s + 1] - op.starts[s]);
    return most;
  }

  const std::vector<Choice>& choices_of() {
    if (choices_) return *choices_;
    choices_.emplace();
    for (const AttentionKind& kind : kinds_) choices_->push_back(choose(kind));
    return *choices_;
  }
  Choice choice_of(const AttentionForward& op) {
    const auto kind = std::find_if(kinds_.begin(), kinds_.end(), [&](const AttentionKind& k) {
      return op.shape.head_dim <= k.head_dim && longest(op) <= k.longest;
    });
    return kind == kinds_.end() ? Choice{}
                                : choices_of()[static_cast<size_t>(kind - kinds_.begin())];
  }

  struct Times {
    Nanoseconds ours, theirs;
  };
  /// What one kind is measured on.
  struct Trial {
    std::vector<Memory> memory;
    std::vector<int32_t> starts;
    AttentionBackward op{};
  };

  Choice choose(const AttentionKind& kind) {
    std::optional<Trial> trial;  // what it needs is had once for both ways, if for any
    const auto faster = [&](const char* way, const auto& measure) {
      const std::string shape = std::string(way) + " " + std::to_string(kind.head_dim) + " x " +
                                std::to_string(kind.tokens) + " of " + std::to_string(kind.heads) +
                                " heads";
      if (const auto known = cache_.find(shape)) return (*known)[0] == 1;
      if (!trial) trial = trial_of(kind);
      const std::optional<Times> times = trial ? measure(*trial) : std::nullopt;
      if (!times) return false;  // no room for it, perhaps for once: it is not kept
      PlanBytes plan{};
      plan[0] = times->theirs < times->ours ? 1 : 0;
      plan[1] = static_cast<uint64_t>(times->ours.count());
      plan[2] = static_cast<uint64_t>(times->theirs.count());
      cache_.put(shape, plan);
      return plan[0] == 1;
    };
    Choice choice;
    choice.forward = faster("forward", [&](const Trial& on) {
      return measure(
          on.op.forward, [&](TrainState& own) { attention_forward(own, on.op.forward); },
          [&] { engine_->forward(on.op.forward, Precision::kBFloat16); });
    });
    choice.backward = faster("backward", [&](const Trial& on) {
      return measure(
          on.op, [&](TrainState& own) { attention_backward(own, on.op); },
          [&] { engine_->backward(on.op, Precision::kBFloat16); });
    });
    return choice;
  }

  /// Nothing where the card has no room for it.
  std::optional<Trial> trial_of(const AttentionKind& kind) {
    Trial made;
    const int rows = kind.tokens * kind.sequences;
    const HeadShape heads{kind.heads, kind.heads, kind.head_dim};
    const size_t in = at(rows, heads.width()) * 2, out = at(rows, kind.heads * kind.head_dim) * 2;
    for (const size_t bytes : {in, in, out, out, at(rows, kind.heads) * 8}) {
      auto memory = Memory::allocate(runtime_, bytes);
      if (!memory.ok()) {
        static_cast<void>(runtime_.sync().ok());
        return std::nullopt;
      }
      made.memory.push_back(std::move(memory).value());
    }
    for (int s = 0; s <= kind.sequences; s++) made.starts.push_back(s * kind.tokens);
    const AttentionForward forward{.shape = heads,
                                   .qkv = made.memory[0].data(),
                                   .out = made.memory[2].data(),
                                   .stats = static_cast<float*>(made.memory[4].data()),
                                   .starts = {made.starts.data(), made.starts.size()},
                                   .window = 0,
                                   .scale = 0.125f};
    made.op = {forward, made.memory[3].data(), made.memory[1].data()};
    return made;
  }

  /// Nothing where our kernels do not run. An engine that fails is slower than any.
  template <class Op, class Ours, class Theirs>
  std::optional<Times> measure(const Op& op, const Ours& ours, const Theirs& theirs) {
    TrainState own(runtime_, {}, Precision::kBFloat16);
    const auto by_us = time([&] { ours(own); });
    if (!by_us) return std::nullopt;
    const auto by_them = engine_->supports(op, Precision::kBFloat16) ? time(theirs) : std::nullopt;
    return Times{*by_us, by_them.value_or(Nanoseconds::max())};
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
  std::optional<std::vector<Choice>> choices_;
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
