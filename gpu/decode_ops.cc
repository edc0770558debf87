#include "gpu/decode_ops.h"

#include <algorithm>

#include "gpu/decode_pack.h"
#include "gpu/decode_run.h"
#include "gpu/kernels/classifier.cuh"
#include "gpu/kernels/decode_product.cuh"
#include "gpu/kernels/decode_rows.cuh"
#include "gpu/kernels/decode_tiles.cuh"
#include "gpu/kernels/decode_vector.cuh"
#include "gpu/kernels/embed.cuh"
#include "gpu/launch.h"
#include "gpu/packed_format.h"
#include "gpu/sampling.h"

namespace fastserve::gpu {
namespace {

unsigned ceil_div(int n, int by) { return static_cast<unsigned>((n + by - 1) / by); }

class GpuDecodeOps final : public DecodeOps {
 public:
  GpuDecodeOps(Runtime& runtime, size_t staging, PinnedShelf* shelf)
      : runtime_(runtime),
        workspace_(runtime),
        loading_(runtime, staging, shelf),
        gathering_(runtime) {}

  Result<std::unique_ptr<DecodeMatrix>> make_matrix(const DecodeMatrixSource& source) override {
    return GpuDecodeMatrix::make(loading_, source);
  }
  bool takes_stored() const override { return true; }
  Status load(void* to, std::span<const std::byte> from) override {
    if (!runtime_.pinned(from.data(), from.size()))
      return loading_.staging.copy(to, from.data(), from.size());
    loading_.direct.copy(to, from);
    return {};
  }
  void expect(size_t bytes) override {
    loading_.memory.expect(bytes);
    loading_.staging.expect(bytes);
    loading_.direct.expect(bytes);
  }
  std::optional<StoredFault> loaded() override {
    const std::optional<StoredFault> fault = loading_.checks.finish();
    loading_.staging.release();
    loading_.direct.release();
    loading_.memory.finish();
    return fault;
  }
  Result<std::unique_ptr<KvCache>> make_cache(const KvShape& shape) override {
    return make_kv_cache(runtime_, shape);
  }

  size_t block_bytes(const KvCache& cache) const override { return kv_block_bytes(cache); }
  void save_blocks(KvCache& cache, std::span<const int32_t> blocks, void* host) override {
    move_kv_blocks(runtime_, workspace_, cache, blocks, host, true);
  }
  void restore_blocks(KvCache& cache, std::span<const int32_t> blocks, const void* host) override {
    move_kv_blocks(runtime_, workspace_, cache, blocks, const_cast<void*>(host), false);
  }

  void embed(const DecodeEmbed& op) override {
    gathering_.flush();
    const size_t rows = op.resident ? size_t(op.resident->rows) : op.tokens.size();
    if (rows == 0 || !workspace_.begin(op.resident ? 0 : 2 * Workspace::room<int32_t>(rows)))
      return;
    const int32_t* const tokens = op.resident ? op.resident->tokens : workspace_.upload(op.tokens);
    const int32_t* const positions = op.resident         ? op.resident->positions
                                     : op.position_table ? workspace_.upload(op.positions)
                                                         : nullptr;
    const auto start = [&]<class T>() {
      launch_chained(runtime_, {"embed_forward", {static_cast<unsigned>(rows)}, {128}},
                     embed_forward<T>, tokens, positions, static_cast<const T*>(op.token_table),
                     op.position_table, op.out, static_cast<int>(rows), op.channels);
    };
    if (op.type == DType::kBF16) return start.template operator()<BFloat16>();
    if (op.type == DType::kF16) return start.template operator()<Float16>();
    start.template operator()<float>();
  }

  void matmul(const DecodeMatmul& op) override;
  void attention(const DecodeAttention& op) override {
    decode_attention(runtime_, workspace_, gathers_ ? &gathering_ : nullptr, op);
  }
  int fused_rows() const override { return gathering_.most_rows(); }
  void begin_fused() override { gathers_ = true; }
  void end_fused() override {
    gathers_ = false;
    gathering_.flush();
  }

  bool resident() const override { return true; }
  void feed(const DecodeFeed& op) override { feed_tokens(runtime_, op.tokens, op.drawn, op.rows); }
  void draw(const DecodeDraw& op) override {
    gathering_.flush();
    start_sampling(runtime_, op.logits, op.rows, op.vocab, op.ld, op.draws, op.tokens);
  }
  uint64_t scratch_version() const override { return workspace_.version() + gathering_.version(); }

  void cross_entropy(const float* logits, int rows, int vocab, int ld,
                     std::span<const int32_t> targets, double* losses) override {
    const size_t n = static_cast<size_t>(rows);
    std::fill_n(losses, n, 0.0);
    if (rows == 0 || !workspace_.begin(Workspace::room<int32_t>(n) + Workspace::room<double>(n)))
      return;
    const int32_t* const on_device = workspace_.upload(targets);
    double* const found = workspace_.take<double>(n);
    launch(
        runtime_,
        {"classifier_loss", {static_cast<unsigned>(rows)}, {kClassifierThreads}, kClassifierShared},
        classifier_loss<float, 1, kClassifierThreads>,
        ClassifierArguments{.logits = const_cast<float*>(logits),
                            .vocab = vocab,
                            .ld = ld,
                            .targets = on_device,
                            .losses = found});
    runtime_.copy_out(losses, found, n * sizeof(double));
  }

 private:
  void packed_product(const GpuDecodeMatrix& w, const DecodeProductArguments& arguments,
                      const PrepareArguments& prepare);
  void prepare(int rows, const PrepareArguments& arguments);

  Runtime& runtime_;
  Workspace workspace_;
  WeightLoading loading_;
  DecodeGathering gathering_;
  bool gathers_ = false;
};

PrepareArguments prepare_arguments(const DecodeMatmul& op) {
  PrepareArguments p{};
  p.x = op.x;
  p.x_ld = op.x_ld;
  p.in = op.weight->in();
  p.group = 128;
  if (!op.norm) return p;
  p.weight = op.norm->weight;
  p.bias = op.norm->bias;
  p.centred = op.norm->kind == NormKind::kLayerNorm;
  p.epsilon = op.norm->epsilon;
  return p;
}

bool on_16_bytes(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

void GpuDecodeOps::matmul(const DecodeMatmul& op) {
  const auto& w = static_cast<const GpuDecodeMatrix&>(*op.weight);
  if (op.rows == 0) return;
  const WeightFormat format = w.format();
  const bool quantised = is_quantised(format), bfloat = format == WeightFormat::kBFloat16;
  PrepareArguments prepare = prepare_arguments(op);
  prepare.gather = op.resident_gather;
  prepare.ld = w.x_ld();
  if (format_group(format) == 32) prepare.group = 32;
  prepare.scale_ld = (op.rows + 3) / 4 * 4;
  prepare.fours = (prepare.in | prepare.x_ld | prepare.ld) % 4 == 0 && on_16_bytes(prepare.x) &&
                  on_16_bytes(prepare.weight) && on_16_bytes(prepare.bias);
  DecodeProductArguments arguments{.epilogue = op.epilogue,
                                   .rows = op.rows,
                                   .out = w.out(),
                                   .in = w.in(),
                                   .weights = w.weights(),
                                   .weight_scales = w.scales(),
                                   .x = op.x,
                                   .x_ld = op.x_ld,
                                   .x_scales = nullptr,
                                   .x_scale_ld = prepare.scale_ld,
                                   .bias = op.bias,
                                   .y = op.out,
                                   .y_ld = op.out_ld,
                                   .tiles = op.epilogue == DecodeEpilogue::kSwiGlu
                                                ? (w.out() / 2 + 7) / 8
                                                : (w.out() + kProductOutputs - 1) / kProductOutputs,
                                   .units = w.x_ld() / kProductUnit,
                                   .stages = 0};
  if (gathers_) {
    if (op.gather.empty() && gathering_.add(w, arguments, prepare)) return;
    gathering_.flush();
  }
  const size_t n = at(op.rows, w.x_ld());
  const size_t groups = quantised ? at(w.x_ld() / prepare.group, prepare.scale_ld) : 0;
  if (!workspace_.begin(Workspace::room<float>(n) + Workspace::room<float>(groups) +
                        Workspace::room<int32_t>(op.gather.size())))
    return;
  if (quantised || bfloat || op.norm || op.resident_gather || !op.gather.empty()) {
    if (!op.gather.empty()) prepare.gather = workspace_.upload(op.gather);
    void* const x = workspace_.take<float>(n);
    if (quantised) {
      prepare.codes = static_cast<int8_t*>(x);
      prepare.scales = workspace_.take<float>(groups);
    } else if (bfloat) {
      prepare.bfloats = static_cast<BFloat16*>(x);
    } else {
      prepare.floats = static_cast<float*>(x);
    }
    arguments.x = x;
    arguments.x_ld = w.x_ld();
    arguments.x_scales = prepare.scales;
    if (quantised || bfloat) return packed_product(w, arguments, prepare);
    this->prepare(op.rows, prepare);
  }
  const int outputs = op.epilogue == DecodeEpilogue::kSwiGlu ? w.out() / 2 : w.out();
  const Launch how{"decode_vector_product",
                   {ceil_div(outputs, kVectorWarps), ceil_div(op.rows, kVectorRows)},
                   {32 * kVectorWarps}};
  const bool fours = w.in() % 4 == 0 && arguments.x_ld % 4 == 0 && on_16_bytes(arguments.x);
  if (format == WeightFormat::kFloat16)
    launch_chained(runtime_, how,
                   fours ? decode_vector_product<Float16, 4> : decode_vector_product<Float16, 1>,
                   arguments);
  else
    launch_chained(runtime_, how,
                   fours ? decode_vector_product<float, 4> : decode_vector_product<float, 1>,
                   arguments);
}

void GpuDecodeOps::prepare(int rows, const PrepareArguments& arguments) {
  const size_t shared = PrepareRoom::floats(1) * sizeof(float);
  launch_chained(runtime_,
                 {"prepare_rows", {static_cast<unsigned>(rows)}, {kPrepareThreads}, shared},
                 arguments.fours ? prepare_rows<true> : prepare_rows<false>, arguments);
}

/// Few rows wait for the weights, many for the tensor cores. All kernels add in the same order, so
/// the batch's size chooses between them and no row's bits change.
void GpuDecodeOps::packed_product(const GpuDecodeMatrix& w, const DecodeProductArguments& arguments,
                                  const PrepareArguments& prepared) {
  const DeviceProperties& card = runtime_.properties();
  const size_t room = card.shared_memory;  // 99 KiB on some cards
  const int rows = arguments.rows, tiles = arguments.tiles;
  // As many blocks as the card runs at once: each goes on to its next tile without a halt.
  const auto few = [&]<class Few>() {
    DecodeProductArguments with = arguments;
    with.stages = Few::kStages;
    if (Few::shared(rows, with.units, with.stages) > room) with.stages = Few::kLeastStages;
    const size_t shared = Few::shared(rows, with.units, with.stages);
    constexpr size_t kReserved = 1 << 10;  // the card's own, of each block
    const size_t fit =
        std::clamp<size_t>((room + kReserved) / (shared + kReserved), 1, Few::kBlocks);
    const auto blocks = static_cast<unsigned>(fit) * static_cast<unsigned>(card.multiprocessors);
    launch_chained(
        runtime_,
        {"decode_product",
         {std::min(static_cast<unsigned>(tiles), blocks), ceil_div(rows, 8 * Few::kRowTiles)},
         {Few::kThreads},
         shared},
        decode_product<Few>, with, prepared);
  };
  const auto many = [&]<PackedFormat kFormat, int kGroup, int kRowTiles>() {
    using Many = ManyRows<kFormat, kGroup, kRowTiles>;
    launch_chained(runtime_,
                   {"decode_tiles",
                    {ceil_div(rows, Many::kRows), ceil_div(tiles, Many::kOutputTiles)},
                    {Many::kThreads},
                    Many::kShared},
                   decode_tiles<kFormat, kGroup, kRowTiles>, arguments);
  };
  // Smaller tiles where larger ones would leave multiprocessors without a block.
  const bool fills =
      ceil_div(rows, 128) * ceil_div(tiles, 8) >= static_cast<unsigned>(card.multiprocessors);
  const auto start = [&]<PackedFormat kFormat, int kGroup>() {
    using Own = FewRows<kFormat, kGroup, 1, XPlace::kOwn>;
    using Eight = FewRows<kFormat, kGroup, 1, XPlace::kHeld>;
    using Held = FewRows<kFormat, kGroup, 4, XPlace::kHeld>;
    const auto fits = [&]<class Few>() {
      return Few::shared(rows, arguments.units, Few::kStages) <= room;
    };
    if (rows <= kOwnRows && prepared.fours && fits.template operator()<Own>())
      return few.template operator()<Own>();
    prepare(rows, prepared);
    if (rows <= 8 && fits.template operator()<Eight>()) return few.template operator()<Eight>();
    if (rows <= 32 && fits.template operator()<Held>()) return few.template operator()<Held>();
    if (rows > 32 && fills && ManyRows<kFormat, kGroup, 8>::kShared <= room)
      return many.template operator()<kFormat, kGroup, 8>();
    if (rows > 32 && ManyRows<kFormat, kGroup, 4>::kShared <= room)
      return many.template operator()<kFormat, kGroup, 4>();
    few.template operator()<FewRows<kFormat, kGroup, 4, XPlace::kRead>>();
  };
  with_packed_format({w.format(), w.sparse()}, start);
}

}  // namespace

std::unique_ptr<DecodeOps> make_decode_ops(Runtime& runtime, size_t staging, PinnedShelf* shelf) {
  return std::make_unique<GpuDecodeOps>(runtime, staging, shelf);
}

}  // namespace fastserve::gpu
