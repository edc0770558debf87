#include "gpu/cuda/cudnn_attention.h"

#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "gpu/cuda/sdpa_plan.h"
#include "gpu/workspace.h"

namespace fastserve::gpu {
namespace {

constexpr int kLargestHead = 128;
/// Cards whose way back keeps its bits by its graph alone: later ones want a knob as well, and no
/// earlier one has been looked at.
constexpr int kMajorBackward = 9;
/// A way back's scores' gradients take no more than this part of the card's memory.
constexpr size_t kPartBackward = 64;

/// What a graph is given by value; read when it is started.
struct Numbers {
  float scale, never = std::numeric_limits<float>::lowest(), one = 1;
};

/// Queries of all heads.
size_t rows_of(const SdpaShape& shape) {
  return static_cast<size_t>(shape.sequences * shape.tokens * shape.heads.heads);
}

/// Nothing where the sequences are not all of one length.
std::optional<SdpaShape> shape_of(const AttentionForward& op, Precision precision) {
  const auto sequences = static_cast<int64_t>(op.starts.size()) - 1;
  if (sequences < 1 || op.starts[1] == op.starts[0]) return std::nullopt;
  const int32_t tokens = op.starts[1] - op.starts[0];
  for (size_t s = 1; s + 1 < op.starts.size(); s++)
    if (op.starts[s + 1] - op.starts[s] != tokens) return std::nullopt;
  return SdpaShape{sequences, tokens, op.shape, precision};
}

/// Bytes that lie between cuDNN's products backward, above all: a sequence's scores' gradients.
size_t scores_bytes(const SdpaShape& shape) {
  const auto side = static_cast<size_t>((shape.tokens + 63) / 64 * 64);
  return static_cast<size_t>(shape.heads.heads) * side * side * 2;
}

bool on_sixteen_bytes(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// Where each of queries, keys and values begins in the fused rows.
struct Fused {
  uint16_t *query, *key, *value;

  /// From row `row` on.
  Fused(const void* rows, const HeadShape& heads, int64_t row) {
    query = static_cast<uint16_t*>(const_cast<void*>(rows)) + row * heads.width();
    key = query + heads.heads * heads.head_dim;
    value = key + heads.kv_heads * heads.head_dim;
  }
};

class CudnnAttention final : public AttentionEngine {
 public:
  CudnnAttention(const Cudnn& library, const std::string& version, Runtime& runtime)
      : library_(library), runtime_(runtime), name_("cudnn-" + version), workspace_(runtime) {}
  ~CudnnAttention() override {
    plans_.clear();
    if (handle_ != nullptr) library_.cudnnDestroy(handle_);
  }

  std::string name() override { return name_; }
  uint64_t scratch_version() const override { return workspace_.version(); }
  uint64_t most_scratch() override {
    if (runtime_.properties().major != kMajorBackward) return 0;
    return Workspace::grown(runtime_.properties().memory / kPartBackward);
  }

  bool supports(const AttentionForward& op, Precision precision) override {
    if (!takes(op, precision)) return false;
    const auto shape = shape_of(op, precision);
    return shape && start() && plan_of(*shape, SdpaPass::kForward) != nullptr;
  }
  bool supports(const AttentionBackward& op, Precision precision) override {
    if (runtime_.properties().major != kMajorBackward || !takes(op.forward, precision) ||
        op.forward.stats == nullptr || !on_sixteen_bytes(op.dout) || !on_sixteen_bytes(op.dqkv))
      return false;
    const auto shape = shape_of(op.forward, precision);
    const auto some = shape ? at_once(*shape) : std::nullopt;
    return some && start() && plan_of(*some, SdpaPass::kBackward) != nullptr;
  }

  void forward(const AttentionForward& op, Precision precision) override {
    if (runtime_.failed()) return;
    const auto shape = shape_of(op, precision);
    FS_CHECK(shape);
    const SdpaPlan* const plan = plan_of(*shape, SdpaPass::kForward);
    FS_CHECK(plan != nullptr);
    const size_t sums = rows_of(*shape);
    const auto scratch = static_cast<size_t>(plan->workspace_bytes());
    if (!workspace_.begin(Workspace::room<float>(sums) + Workspace::room<std::byte>(scratch)))
      return;
    if (!follow_stream()) return;
    float* const log_sums = workspace_.take<float>(sums);
    auto* const room = workspace_.take<std::byte>(scratch);
    const Fused in(op.qkv, op.shape, 0);
    Numbers numbers{op.scale};
    const Status status = plan->run(handle_,
                                    {{kSdpaQuery, in.query},
                                     {kSdpaKey, in.key},
                                     {kSdpaValue, in.value},
                                     {kSdpaOut, op.out},
                                     {kSdpaStats, log_sums},
                                     {kSdpaScale, &numbers.scale},
                                     {kSdpaNever, &numbers.never}},
                                    room);
    if (!status.ok()) return runtime_.report(status.error());
    if (op.stats != nullptr)
      store_log_sums(runtime_, log_sums, static_cast<int>(shape->sequences),
                     static_cast<int>(shape->tokens), op.shape.heads, op.stats);
  }

  void backward(const AttentionBackward& op, Precision precision) override {
    if (runtime_.failed()) return;
    const auto shape = shape_of(op.forward, precision);
    FS_CHECK(shape);
    const auto some = at_once(*shape);
    FS_CHECK(some);
    const SdpaPlan* const plan = plan_of(*some, SdpaPass::kBackward);
    FS_CHECK(plan != nullptr);
    const auto scratch = static_cast<size_t>(plan->workspace_bytes());
    if (!workspace_.begin(Workspace::room<float>(rows_of(*shape)) +
                          Workspace::room<float>(rows_of(*some)) +
                          Workspace::room<std::byte>(scratch)))
      return;
    if (!follow_stream()) return;
    float* const log_sums = workspace_.take<float>(rows_of(*shape));
    float* const row_dots = workspace_.take<float>(rows_of(*some));
    auto* const room = workspace_.take<std::byte>(scratch);
    load_log_sums(runtime_, op.forward.stats, static_cast<int>(shape->sequences),
                  static_cast<int>(shape->tokens), op.forward.shape.heads, log_sums);
    Numbers numbers{op.forward.scale};
    for (int64_t done = 0; done < shape->sequences; done += some->sequences) {
      auto operands = operands_from(op, shape->heads, done * shape->tokens, numbers);
      operands[kSdpaStats] = log_sums + done * shape->tokens * shape->heads.heads;
      operands[kSdpaRowDots] = row_dots;
      const Status status = plan->run(handle_, operands, room);
      if (!status.ok()) return runtime_.report(status.error());
    }
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int, int, int, Precision, SdpaPass>;

  /// Once; false where it does not, on this card.
  bool start() {
    if (started_) return handle_ != nullptr;
    started_ = true;
    stream_ = static_cast<cudaStream_t>(runtime_.stream());  // makes the card current
    if (library_.cudnnCreate(&handle_) != CUDNN_STATUS_SUCCESS) handle_ = nullptr;
    if (handle_ != nullptr && library_.cudnnSetStream(handle_, stream_) != CUDNN_STATUS_SUCCESS) {
      library_.cudnnDestroy(handle_);
      handle_ = nullptr;
    }
    return handle_ != nullptr;
  }

  /// What follows goes where this thread's work goes: into a graph, while it captures.
  bool follow_stream() {
    const auto stream = static_cast<cudaStream_t>(runtime_.stream());
    if (stream == stream_) return true;
    const cudnnStatus_t status = library_.cudnnSetStream(handle_, stream);
    if (status == CUDNN_STATUS_SUCCESS) {
      stream_ = stream;
      return true;
    }
    runtime_.report(
        {ErrorCode::kInternal,
         std::string("does not change its stream: ") + library_.cudnnGetErrorString(status),
         "cuDNN", ""});
    return false;
  }

  /// What both ways ask for.
  bool takes(const AttentionForward& op, Precision precision) const {
    const HeadShape& heads = op.shape;
    return precision != Precision::kFloat32 && op.window <= 0 && heads.head_dim % 8 == 0 &&
           heads.head_dim <= kLargestHead && on_sixteen_bytes(op.qkv) && on_sixteen_bytes(op.out) &&
           !runtime_.failed();
  }

  /// As many of the sequences as a part of the card's memory has room for, the same number each
  /// time; nothing where that is none.
  std::optional<SdpaShape> at_once(SdpaShape shape) const {
    const size_t most = runtime_.properties().memory / kPartBackward / scores_bytes(shape);
    int64_t some = std::min(shape.sequences, static_cast<int64_t>(most));
    if (some == 0) return std::nullopt;
    while (shape.sequences % some != 0) some--;
    shape.sequences = some;
    return shape;
  }

  /// What lies in the op's own memory, from row `row` on.
  static std::map<SdpaOperand, void*> operands_from(const AttentionBackward& op,
                                                    const HeadShape& heads, int64_t row,
                                                    Numbers& numbers) {
    const int64_t width = int64_t{heads.heads} * heads.head_dim;
    const Fused in(op.forward.qkv, heads, row), grad(op.dqkv, heads, row);
    return {{kSdpaQuery, in.query},
            {kSdpaKey, in.key},
            {kSdpaValue, in.value},
            {kSdpaOut, static_cast<uint16_t*>(op.forward.out) + row * width},
            {kSdpaOutGrad, static_cast<uint16_t*>(const_cast<void*>(op.dout)) + row * width},
            {kSdpaQueryGrad, grad.query},
            {kSdpaKeyGrad, grad.key},
            {kSdpaValueGrad, grad.value},
            {kSdpaScale, &numbers.scale},
            {kSdpaNever, &numbers.never},
            {kSdpaOne, &numbers.one}};
  }

  /// Null when the library has none; made once for each shape.
  const SdpaPlan* plan_of(const SdpaShape& shape, SdpaPass pass) {
    const Key key{shape.sequences,
                  shape.tokens,
                  shape.heads.heads,
                  shape.heads.kv_heads,
                  shape.heads.head_dim,
                  shape.precision,
                  pass};
    auto known = plans_.find(key);
    if (known == plans_.end()) {
      runtime_.stream();
      auto plan = SdpaPlan::make(library_, shape, pass, {handle_, ""});
      known = plans_.emplace(key, std::nullopt).first;
      if (plan.ok()) known->second.emplace(std::move(plan).value());
    }
    return known->second ? &*known->second : nullptr;
  }

  const Cudnn& library_;
  Runtime& runtime_;
  const std::string name_;
  Workspace workspace_;
  bool started_ = false;
  cudnnHandle_t handle_ = nullptr;
  cudaStream_t stream_ = nullptr;  // the handle's
  std::map<Key, std::optional<SdpaPlan>> plans_;
};

}  // namespace

std::unique_ptr<AttentionEngine> make_cudnn_attention(const Cudnn& library,
                                                      const std::string& version,
                                                      Runtime& runtime) {
  return std::make_unique<CudnnAttention>(library, version, runtime);
}

}  // namespace fastserve::gpu
