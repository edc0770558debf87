#include "gpu/cuda/cublaslt_engine.h"

#include <bit>
#include <map>

#include "gpu/cuda/cublaslt_call.h"

namespace fastserve::gpu {
namespace {

constexpr size_t kWorkspace = 32 << 20;
/// The heuristic is asked for this many, and its algorithm must run each of kRowsThatMustRun.
constexpr int kRowsOfChoice = 4096;
constexpr int kRowsThatMustRun[] = {1, 8, 136, 1024, 16384};

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(PlanBytes));

bool on_sixteen_bytes(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

/// The number of rows in the batch: what a plan is not chosen by, but for those of a weight
/// gradient that are many and round: its sums go over them, and small matrices fill the card only
/// if the sums are cut into parts.
int& rows_of(Product& p) { return p.kind == ProductKind::kWeightGrad ? p.k : p.m; }
bool by_rows(const Product& p) {
  return p.kind == ProductKind::kWeightGrad && p.k >= kRowsOfChoice && p.k % 1024 == 0;
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

class CublasLtEngine final : public MatmulEngine {
 public:
  CublasLtEngine(const CublasLt& library, const std::string& version, Runtime& runtime,
                 const Path& folder)
      : library_(library),
        runtime_(runtime),
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
    // The library adds a bias of the output's type: of ours only to floats.
    const bool stored = p.epilogue == ProductEpilogue::kStore && p.bias == nullptr;
    if (!stored && p.epilogue != ProductEpilogue::kStoreFloat &&
        p.epilogue != ProductEpilogue::kAddResidual)
      return false;
    for (const int ld : {p.lda, p.ldb, p.out_ld})
      if (ld % 8 != 0) return false;
    for (const void* pointer :
         {p.a, p.b, static_cast<const void*>(p.out), static_cast<const void*>(p.residual),
          static_cast<const void*>(p.bias)})
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
    cublasLtMatmulAlgo_t plan{};
    if (call.choose(handle_, kWorkspace, plan) != CUBLAS_STATUS_SUCCESS || !runs_all(p, plan))
      return std::nullopt;
    cache_.put(shape, std::bit_cast<PlanBytes>(plan));
    return plan;
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
                                                           Runtime& runtime, const Path& folder) {
  auto engine = std::make_unique<CublasLtEngine>(library, version, runtime, folder);
  FS_TRY(engine->open());
  return std::unique_ptr<MatmulEngine>(std::move(engine));
}

}  // namespace fastserve::gpu
