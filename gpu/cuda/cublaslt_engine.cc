#include "gpu/cuda/cublaslt_engine.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "gpu/cuda/cublaslt_call.h"

namespace fastserve::gpu {
namespace {

constexpr size_t kWorkspace = 32 << 20;
/// The heuristic is asked for this many, and its algorithm must run each of kRowsThatMustRun.
constexpr int kRowsOfChoice = 16384;
constexpr int kRowsThatMustRun[] = {1, 8, 136, 1024, 16384};
/// Candidates that are tried, with how many rows at most, and how often.
constexpr int kMostTrialRows = 16384, kTrialRuns = 4;
constexpr size_t kMostTrials = 12;

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(PlanBytes));

bool on_sixteen_bytes(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// The number of rows in the batch: what a plan is not chosen by, but for those of a weight
/// gradient that are many and round: its sums go over them, and small matrices fill the card only
/// if the sums are cut into parts.
int& rows_of(Product& p) { return p.kind == ProductKind::kWeightGrad ? p.k : p.m; }
bool by_rows(const Product& p) {
  return p.kind == ProductKind::kWeightGrad && p.k >= 4096 && p.k % 1024 == 0;
}

std::string shape_of(const Product& p) {
  static constexpr const char* kKinds[] = {"forward", "input-grad", "weight-grad"};
  const bool adds = p.epilogue == ProductEpilogue::kAddResidual;
  const bool floats = p.epilogue == ProductEpilogue::kStoreFloat;
  const bool weight_grad = p.kind == ProductKind::kWeightGrad;
  return std::string(kKinds[int(p.kind)]) +
         (adds     ? " add "
          : floats ? " float "
                   : " store ") +
         precision_name(p.precision) + " " + std::to_string(p.n) + " " +
         std::to_string(weight_grad ? p.m : p.k) + (p.bias != nullptr ? " bias" : "") +
         (by_rows(p) ? " over " + std::to_string(p.k) : "");
}

/// Random operands of a product, in memory of their own.
class TrialOperands {
 public:
  TrialOperands(Runtime& runtime, Precision precision)
      : runtime_(runtime),
        halves_(precision == Precision::kFloat16 ? numbers(to_float16) : numbers(to_bfloat16)) {}

  /// Puts them in the product's place; false when there is no room.
  bool stand_in_for(Product& p) {
    const auto rows = [](int rows, int ld) {
      return static_cast<size_t>(rows) * static_cast<size_t>(ld);
    };
    const bool weight = p.kind == ProductKind::kWeightGrad;
    const size_t a = rows(weight ? p.k : p.m, p.lda) * 2;
    const size_t b = rows(p.kind == ProductKind::kForward ? p.n : p.k, p.ldb) * 2;
    const bool floats = p.epilogue != ProductEpilogue::kStore;
    const size_t out = rows(p.m, p.out_ld) * (floats ? 4 : 2);
    p.a = make(a, false);
    p.b = make(b, false);
    p.out = out_ = make(out, floats);
    looked_at_ = std::min(out, kLookedAt);
    if (p.bias != nullptr) p.bias = make(rows(p.n, 4), !p.short_bias);
    if (p.residual != nullptr) p.residual = static_cast<const float*>(make(out, true));
    return whole_;
  }
  /// The result's first bytes, once it is there.
  std::vector<std::byte> result() const {
    std::vector<std::byte> bytes(looked_at_);
    runtime_.copy_out(bytes.data(), out_, bytes.size());
    return bytes;
  }
  void wait() const {
    std::byte one{};
    runtime_.copy_out(&one, out_, 1);
  }

 private:
  static constexpr size_t kLookedAt = size_t{4} << 20, kPattern = size_t{4} << 20;

  void* make(size_t bytes, bool floats) {
    if (!whole_) return nullptr;
    auto memory = Memory::allocate(runtime_, bytes);
    whole_ = memory.ok();
    if (!whole_) {  // that there is no room is no failure: there is less to try with
      if (memory.error().code != ErrorCode::kResourceExhausted) runtime_.report(memory.error());
      return nullptr;
    }
    const auto& pattern = floats ? floats_ : halves_;
    for (size_t at = 0; at < bytes; at += kPattern)
      runtime_.copy_in(static_cast<std::byte*>(memory->data()) + at, pattern.data(),
                       std::min(kPattern, bytes - at));
    memory_.push_back(std::move(*memory));
    return memory_.back().data();
  }

  /// Numbers between -1 and 1.
  template <class T>
  static std::vector<std::byte> numbers(T (*from)(float)) {
    std::vector<std::byte> bytes(kPattern);
    Rng rng(1);
    for (size_t at = 0; at < kPattern; at += sizeof(T)) {
      const T x = from(2 * static_cast<float>(rng.uniform()) - 1);
      std::memcpy(bytes.data() + at, &x, sizeof(T));
    }
    return bytes;
  }
  static float same(float x) { return x; }

  Runtime& runtime_;
  const std::vector<std::byte> floats_ = numbers(same), halves_;
  std::vector<Memory> memory_;
  void* out_ = nullptr;
  size_t looked_at_ = 0;
  bool whole_ = true;
};

class CublasLtEngine final : public MatmulEngine {
 public:
  CublasLtEngine(const CublasLt& library, const std::string& version, Runtime& runtime,
                 const Path& folder, const Clock* clock)
      : library_(library),
        runtime_(runtime),
        clock_(clock),
        name_("cublaslt2-" + version),
        cache_(folder, name_, card(runtime.properties())) {}

  ~CublasLtEngine() override {
    if (handle_ != nullptr) library_.cublasLtDestroy(handle_);
  }

  Status open() {
    FS_ASSIGN(workspace_, Memory::allocate(runtime_, kWorkspace));
    runtime_.stream();  // makes the card current
    const cublasStatus_t status = library_.cublasLtCreate(&handle_);
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    handle_ = nullptr;
    return Error{ErrorCode::kUnsupported,
                 "cuBLASLt does not start (status " + std::to_string(status) + ")",
                 runtime_.properties().name, ""};
  }

  std::string name() const override { return name_; }

  bool supports(const Product& p) const override {
    if (p.precision == Precision::kFloat32 || p.m <= 0 || p.n <= 0 || p.k <= 0) return false;
    const bool stored = p.epilogue == ProductEpilogue::kStore;
    if (!stored && p.epilogue != ProductEpilogue::kStoreFloat &&
        p.epilogue != ProductEpilogue::kAddResidual)
      return false;
    if (p.bias != nullptr && p.short_bias != stored) return false;  // it is of the output's type
    for (const int ld : {p.lda, p.ldb, p.out_ld})
      if (ld % 8 != 0) return false;
    for (const void* pointer :
         {p.a, p.b, static_cast<const void*>(p.out), static_cast<const void*>(p.residual), p.bias})
      if (!on_sixteen_bytes(pointer)) return false;
    return plan_of(p) != nullptr;
  }

  void run(const Product& p) override {
    if (runtime_.failed()) return;
    const cublasLtMatmulAlgo_t* plan = plan_of(p);
    FS_CHECK(plan != nullptr);
    const auto stream = static_cast<cudaStream_t>(runtime_.stream());
    const CublasLtCall call(library_, p);
    const cublasStatus_t status =
        call.run(handle_, *plan, workspace_.data(), workspace_.bytes(), stream);
    if (status != CUBLAS_STATUS_SUCCESS)
      runtime_.report({ErrorCode::kInternal,
                       "cuBLASLt refuses a product it had a plan for (status " +
                           std::to_string(status) + "): " + shape_of(p),
                       runtime_.properties().name,
                       "remove the gpu folder of plans below FASTSERVE_HOME and try again"});
  }

 private:
  static std::string card(const DeviceProperties& properties) {
    return properties.name + " " + std::to_string(properties.major) + "." +
           std::to_string(properties.minor);
  }

  /// Null when the library has no algorithm that will do; found once for each shape.
  const cublasLtMatmulAlgo_t* plan_of(const Product& p) const {
    const std::string shape = shape_of(p);
    auto known = plans_.find(shape);
    if (known == plans_.end()) known = plans_.emplace(shape, make_plan(p, shape)).first;
    return known->second ? &*known->second : nullptr;
  }

  std::optional<cublasLtMatmulAlgo_t> make_plan(const Product& p, const std::string& shape) const {
    runtime_.stream();
    if (const auto cached = cache_.find(shape)) {
      const auto plan = std::bit_cast<cublasLtMatmulAlgo_t>(*cached);
      if (runs_all(p, plan)) return plan;
    }
    Product at_choice = p;
    if (!by_rows(p)) rows_of(at_choice) = kRowsOfChoice;
    CublasLtCall call(library_, at_choice, by_rows(p));
    std::vector<cublasLtMatmulAlgo_t> good;
    for (const auto& candidate : call.candidates(handle_, kWorkspace))
      if (runs_all(p, candidate)) good.push_back(candidate);
    if (good.empty()) return std::nullopt;
    if (clock_ == nullptr || good.size() == 1) {
      cache_.put(shape, std::bit_cast<PlanBytes>(good.front()));
      return good.front();
    }
    const auto fastest = fastest_of(p, good);
    if (!fastest) return good.front();  // for this once
    cache_.put(shape, std::bit_cast<PlanBytes>(*fastest));
    return fastest;
  }

  /// Of those whose bits are the first one's. The heuristic orders them by a model of the card, and
  /// its first may take half as long again as the best. Nothing where there is no room to try.
  std::optional<cublasLtMatmulAlgo_t> fastest_of(
      const Product& p, const std::vector<cublasLtMatmulAlgo_t>& candidates) const {
    Product trial = p;
    rows_of(trial) = std::min(rows_of(trial), kMostTrialRows);
    TrialOperands operands(runtime_, p.precision);
    if (!operands.stand_in_for(trial)) return std::nullopt;
    const CublasLtCall call(library_, trial, by_rows(p));
    const auto run = [&](const cublasLtMatmulAlgo_t& algorithm) {
      return call.run(handle_, algorithm, workspace_.data(), workspace_.bytes(),
                      static_cast<cudaStream_t>(runtime_.stream())) == CUBLAS_STATUS_SUCCESS;
    };
    size_t best = 0;
    auto least = Nanoseconds::max();
    std::vector<std::byte> bits;
    for (size_t i = 0; i < std::min<size_t>(candidates.size(), kMostTrials); i++) {
      if (!run(candidates[i])) continue;
      const std::vector<std::byte> found = operands.result();
      if (bits.empty()) bits = found;
      if (found != bits || runtime_.failed()) continue;
      const Nanoseconds begun = clock_->now();
      for (int turn = 0; turn < kTrialRuns; turn++) run(candidates[i]);
      operands.wait();
      const Nanoseconds took = clock_->now() - begun;
      if (took < least) best = i, least = took;
    }
    if (bits.empty() || runtime_.failed()) return std::nullopt;
    return candidates[best];
  }

  bool runs_all(const Product& p, const cublasLtMatmulAlgo_t& plan) const {
    if (by_rows(p)) return CublasLtCall(library_, p, true).runs(handle_, plan, kWorkspace);
    for (const int rows : kRowsThatMustRun) {
      Product with_rows = p;
      rows_of(with_rows) = rows;
      if (!CublasLtCall(library_, with_rows).runs(handle_, plan, kWorkspace)) return false;
    }
    return true;
  }

  const CublasLt& library_;
  Runtime& runtime_;
  const Clock* const clock_;
  const std::string name_;
  cublasLtHandle_t handle_ = nullptr;
  Memory workspace_;
  // What supports() learns is kept for run(): one caller at a time, as for the engine.
  mutable PlanCache cache_;
  mutable std::map<std::string, std::optional<cublasLtMatmulAlgo_t>> plans_;
};

}  // namespace

Result<std::unique_ptr<MatmulEngine>> make_cublaslt_engine(const CublasLt& library,
                                                           const std::string& version,
                                                           Runtime& runtime, const Path& folder,
                                                           const Clock* clock) {
  auto engine = std::make_unique<CublasLtEngine>(library, version, runtime, folder, clock);
  FS_TRY(engine->open());
  return std::unique_ptr<MatmulEngine>(std::move(engine));
}

}  // namespace fastserve::gpu
