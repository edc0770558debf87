#include <algorithm>

#include "gpu/gemm_start.h"
#include "gpu/kernels/convert.cuh"
#include "gpu/kernels/finish.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {
namespace {

constexpr int kWide = 8;  // halves on 16 bytes
constexpr int kMostBlocksDown = 65535;

class FinishingEngine final : public MatmulEngine {
 public:
  FinishingEngine(std::unique_ptr<MatmulEngine> library, Runtime& runtime)
      : library_(std::move(library)), runtime_(runtime), biases_(runtime) {}

  std::string name() const override { return library_->name() + "+finish3"; }

  bool supports(const Product& p) const override { return way_of(p) != Way::kNone; }

  uint64_t scratch_version() const override {
    return biases_.version() + library_->scratch_version();
  }

  void run(const Product& p) override {
    const Way way = way_of(p);
    if (way == Way::kWhole) return library_->run(p);
    if (way == Way::kShortBias) return run_with_short_bias(p);
    const Product first = unfinished(p);
    library_->run(first);
    with_half(p.precision, [&]<class T>() { finish<T>(p, first); });
  }

 private:
  enum class Way {
    kNone,
    kWhole,      ///< the library has a word for it
    kShortBias,  ///< it adds a bias of the stored type
    kFinished,   ///< a pass of ours stands behind it
  };

  Way way_of(const Product& p) const {
    using enum ProductEpilogue;
    if (p.precision == Precision::kFloat32 || p.m <= 0) return Way::kNone;
    if (p.sums != nullptr && p.epilogue != kTimesSlope) return Way::kNone;
    const bool plain =
        p.epilogue == kStore || p.epilogue == kStoreFloat || p.epilogue == kAddResidual;
    if (plain && library_->supports(p)) return Way::kWhole;
    if (p.epilogue == kStore && p.bias != nullptr && library_->supports(with_short_bias(p, p.bias)))
      return Way::kShortBias;
    return finished(p) ? Way::kFinished : Way::kNone;
  }

  static Product with_short_bias(const Product& p, const void* bias) {
    Product q = p;
    q.bias = bias;
    q.short_bias = true;
    return q;
  }
  void run_with_short_bias(const Product& p) {
    if (!biases_.begin(Workspace::room<uint16_t>(static_cast<size_t>(p.n)))) return;
    uint16_t* const bias = biases_.take<uint16_t>(static_cast<size_t>(p.n));
    with_half(p.precision, [&]<class T>() {
      launch(runtime_, {"convert_rows", {1}, {kFinishThreads}}, convert_rows<T>,
             static_cast<const float*>(p.bias), p.n, reinterpret_cast<T*>(bias), p.n, p.n);
    });
    library_->run(with_short_bias(p, bias));
  }

  /// Those that a pass of ours finishes.
  bool finished(const Product& p) const {
    if (at(p.m, p.n) >> 32 != 0 || p.m > kMostBlocksDown * kSumRun) return false;
    if (p.n % (p.epilogue == ProductEpilogue::kSwiGlu ? 2 * kWide : kWide) != 0) return false;
    for (const int ld : {p.out_ld, p.slope != nullptr ? p.slope_ld : 0})
      if (ld % kWide != 0) return false;
    for (const void* pointer : {static_cast<const void*>(p.out), static_cast<const void*>(p.slope),
                                static_cast<const void*>(p.residual)})
      if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    // Gates and ups are twice as wide as what comes of them: without slopes there is no room.
    if (p.epilogue == ProductEpilogue::kSwiGlu && p.slope == nullptr) return false;
    return library_->supports(unfinished(p));
  }

  /// The product alone, where its epilogue finds it.
  static Product unfinished(const Product& p) {
    using enum ProductEpilogue;
    Product q = p;
    q.bias = nullptr;
    q.sums = nullptr;
    q.slope = nullptr;
    q.slope_ld = 0;
    if (p.epilogue == kStoreFloat || p.epilogue == kAddResidual) return q;
    q.epilogue = kStore;
    if ((p.epilogue == kGelu || p.epilogue == kSwiGlu) && p.slope != nullptr)
      q.out = p.slope, q.out_ld = p.slope_ld;
    if (p.epilogue == kTimesSlope && p.slope_parts == 2)  // the half that is written last
      q.out = static_cast<uint16_t*>(p.out) + p.n;
    return q;
  }

  template <class Body>
  static void with_half(Precision precision, const Body& body) {
    if (precision == Precision::kBFloat16) return body.template operator()<BFloat16>();
    body.template operator()<Float16>();
  }

  template <class T>
  void finish(const Product& p, const Product& first) {
    using enum ProductEpilogue;
    if (p.epilogue == kGelu) return finish_activations<T, 1>(p, first);
    if (p.epilogue == kSwiGlu) return finish_activations<T, 2>(p, first);
    if (p.epilogue == kTimesSlope)
      return p.slope_parts == 1 ? times_slopes<T, 1>(p, first) : times_slopes<T, 2>(p, first);
    ProductArguments arguments = arguments_of(p);
    const Launch how{"finish_product",
                     {blocks_for(at(p.m, p.n), size_t{kWide} * kFinishThreads)},
                     {kFinishThreads}};
    if (p.epilogue == kStore)
      return launch(runtime_, how, finish_product<T, T, kWide>, arguments,
                    static_cast<const T*>(first.out), first.out_ld);
    arguments.epilogue = kStoreFloat;  // what it is added to, the library has added
    launch(runtime_, how, finish_product<T, float, kWide>, arguments,
           static_cast<const float*>(first.out), first.out_ld);
  }

  /// Of a pass over [p.m, columns] by blocks that stay with their columns.
  static Launch walk(const char* kernel, const Product& p, int columns) {
    return {kernel,
            {blocks_for(static_cast<size_t>(columns), size_t{32} * kWide),
             blocks_for(static_cast<size_t>(p.m), kSumRun)},
            {32, kFinishWarps}};
  }

  template <class T, int kParts>
  void finish_activations(const Product& p, const Product& first) {
    launch(runtime_, walk("finish_activation", p, p.n / kParts),
           finish_activation<T, kParts, kWide>, arguments_of(p), static_cast<const T*>(first.out),
           first.out_ld);
  }

  template <class T, int kParts>
  void times_slopes(const Product& p, const Product& first) {
    const bool biased = p.bias != nullptr || p.sums != nullptr;
    Launch how = walk("finish_slopes", p, p.n);
    if (biased) how.shared_bytes = finish_slopes_shared(kParts);
    launch(runtime_, how,
           biased ? finish_slopes<T, kParts, true, kWide> : finish_slopes<T, kParts, false, kWide>,
           arguments_of(p), static_cast<const T*>(first.out), first.out_ld, p.sums);
  }

  const std::unique_ptr<MatmulEngine> library_;
  Runtime& runtime_;
  Workspace biases_;
};

}  // namespace

std::unique_ptr<MatmulEngine> make_finishing_engine(std::unique_ptr<MatmulEngine> library,
                                                    Runtime& runtime) {
  return std::make_unique<FinishingEngine>(std::move(library), runtime);
}

}  // namespace fastserve::gpu
