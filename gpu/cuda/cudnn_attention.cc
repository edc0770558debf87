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

/// Nothing where the sequences are not all of one length.
std::optional<SdpaShape> shape_of(const AttentionForward& op, Precision precision) {
  const auto sequences = static_cast<int64_t>(op.starts.size()) - 1;
  if (sequences < 1 || op.starts[1] == op.starts[0]) return std::nullopt;
  const int32_t tokens = op.starts[1] - op.starts[0];
  for (size_t s = 1; s + 1 < op.starts.size(); s++)
    if (op.starts[s + 1] - op.starts[s] != tokens) return std::nullopt;
  return SdpaShape{sequences, tokens, op.shape, precision};
}

bool on_sixteen_bytes(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

class CudnnAttention final : public AttentionEngine {
 public:
  CudnnAttention(const Cudnn& library, const std::string& version, Runtime& runtime)
      : library_(library), runtime_(runtime), name_("cudnn-" + version), workspace_(runtime) {}
  ~CudnnAttention() override {
    plans_.clear();
    if (handle_ != nullptr) library_.cudnnDestroy(handle_);
  }

  std::string name() override { return name_; }

  bool supports(const AttentionForward& op, Precision precision) override {
    const HeadShape& heads = op.shape;
    if (precision == Precision::kFloat32 || op.window > 0 || heads.head_dim % 8 != 0 ||
        heads.head_dim > kLargestHead || !on_sixteen_bytes(op.qkv) || !on_sixteen_bytes(op.out) ||
        runtime_.failed())
      return false;
    const auto shape = shape_of(op, precision);
    return shape && start() && plan_of(*shape) != nullptr;
  }

  void forward(const AttentionForward& op, Precision precision) override {
    if (runtime_.failed()) return;
    const auto shape = shape_of(op, precision);
    FS_CHECK(shape);
    const SdpaPlan* const plan = plan_of(*shape);
    FS_CHECK(plan != nullptr);
    const int heads = op.shape.heads;
    const auto sums =
        static_cast<size_t>(shape->sequences * shape->tokens) * static_cast<size_t>(heads);
    const auto scratch = static_cast<size_t>(plan->workspace_bytes());
    if (!workspace_.begin(Workspace::room<float>(sums) + Workspace::room<std::byte>(scratch)))
      return;
    float* const log_sums = workspace_.take<float>(sums);
    auto* const room = workspace_.take<std::byte>(scratch);
    auto* const query = static_cast<uint16_t*>(const_cast<void*>(op.qkv));
    uint16_t* const key = query + heads * op.shape.head_dim;
    uint16_t* const value = key + op.shape.kv_heads * op.shape.head_dim;
    float scale = op.scale, never = std::numeric_limits<float>::lowest();
    const Status status = plan->run(handle_,
                                    {{kSdpaQuery, query},
                                     {kSdpaKey, key},
                                     {kSdpaValue, value},
                                     {kSdpaOut, op.out},
                                     {kSdpaStats, log_sums},
                                     {kSdpaScale, &scale},
                                     {kSdpaNever, &never}},
                                    room);
    if (!status.ok()) return runtime_.report(status.error());
    if (op.stats != nullptr)
      store_log_sums(runtime_, log_sums, static_cast<int>(shape->sequences),
                     static_cast<int>(shape->tokens), heads, op.stats);
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int, int, int, Precision>;

  /// Once; false where it does not, on this card.
  bool start() {
    if (started_) return handle_ != nullptr;
    started_ = true;
    const auto stream = static_cast<cudaStream_t>(runtime_.stream());  // makes the card current
    if (library_.cudnnCreate(&handle_) != CUDNN_STATUS_SUCCESS) handle_ = nullptr;
    if (handle_ != nullptr && library_.cudnnSetStream(handle_, stream) != CUDNN_STATUS_SUCCESS) {
      library_.cudnnDestroy(handle_);
      handle_ = nullptr;
    }
    return handle_ != nullptr;
  }

  /// Null when the library has none; made once for each shape.
  const SdpaPlan* plan_of(const SdpaShape& shape) {
    const Key key{shape.sequences,      shape.tokens,         shape.heads.heads,
                  shape.heads.kv_heads, shape.heads.head_dim, shape.precision};
    auto known = plans_.find(key);
    if (known == plans_.end()) {
      runtime_.stream();
      auto plan = SdpaPlan::make(library_, shape, SdpaPass::kForward, {handle_, ""});
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
  std::map<Key, std::optional<SdpaPlan>> plans_;
};

}  // namespace

std::unique_ptr<AttentionEngine> make_cudnn_attention(const Cudnn& library,
                                                      const std::string& version,
                                                      Runtime& runtime) {
  return std::make_unique<CudnnAttention>(library, version, runtime);
}

}  // namespace fastserve::gpu
