#include "gpu/decode_run.h"

#include <algorithm>
#include <cstring>

#include "gpu/kernels/decode_run.cuh"
#include "gpu/launch.h"

namespace fastserve::gpu {
namespace {

/// For its bytes to be found again among the tables: those between its numbers are zero, too.
template <class T>
T without_padding(T value) {
  __builtin_clear_padding(&value);
  return value;
}

/// What attention in heads of 128 halves takes beside the ring.
constexpr size_t kMostRoom = tile_bytes(2, 128, 2, kTileRows);

}  // namespace

int DecodeGathering::most_rows() const {
  // For others decode_run is not compiled. No ring is larger than 130 KiB.
  const DeviceProperties& card = runtime_.properties();
  const bool fits = card.shared_memory >= (size_t{130} << 10) + kMostRoom / 2;
  return card.major >= 9 && fits ? kOwnRows : 0;
}

bool DecodeGathering::has_room(size_t steps, size_t shared) const {
  return steps_.size() + steps <= size_t{kMostRunSteps} &&
         shared <= runtime_.properties().shared_memory;
}

bool DecodeGathering::add(const GpuDecodeMatrix& weight, const DecodeProductArguments& product,
                          const PrepareArguments& prepare) {
  const WeightKind format{weight.format(), weight.sparse()};
  if (product.rows > most_rows() || !prepare.fours) return false;
  if (format_ && *format_ != format) return false;
  size_t fixed = 0, room = 0;
  with_packed_format(format, [&]<PackedFormat kFormat, int kGroup>() {
    using Run = DecodeRun<kFormat, kGroup>;
    fixed = Run::kFixed;
    room = std::max(room_, Run::product_room(product.rows, product.units));
  });
  if (fixed == 0 || !has_room(1, fixed + room)) return false;
  format_ = format;
  fixed_ = fixed;
  room_ = room;
  DecodeStep step{};
  step.kind = DecodeStepKind::kProduct;
  step.product = product;
  step.prepare = prepare;
  steps_.push_back(step);
  weights_.push_back({product.weights, product.weight_scales, product.tiles, product.units});
  return true;
}

bool DecodeGathering::add(const DecodeAttentionArguments& attention, const AttendCut& cut) {
  const int dim = tile_dim(attention.head_dim);
  if (!format_ || attention.rows > most_rows() || !attention.appends || dim > 128) return false;
  size_t room = std::max(room_, tile_bytes(cut.codes != 0 ? 1 : 2, dim, 2, cut.heads));
  if (attention.partials) room = std::max(room, kJoinShared);
  if (!has_room(attention.partials ? 2 : 1, fixed_ + room)) return false;
  room_ = room;
  DecodeStep step{};
  step.kind = DecodeStepKind::kAttend;
  step.heads = cut.heads;
  step.parts = cut.parts;
  step.turns = cut.turns;
  step.codes = cut.codes;
  step.each = cut.each;
  step.attention = attention;
  steps_.push_back(step);
  if (!attention.partials) return true;
  step.kind = DecodeStepKind::kJoin;
  steps_.push_back(step);
  return true;
}

template <class Run>
void DecodeGathering::start() {
  std::vector<std::byte> all(steps_.size() * sizeof(DecodeStep) +
                             weights_.size() * sizeof(RunWeights));
  std::byte* to = all.data();
  for (const DecodeStep& step : steps_) {
    const DecodeStep bytes = without_padding(step);
    std::memcpy(to, &bytes, sizeof bytes);
    to += sizeof bytes;
  }
  if (!weights_.empty()) std::memcpy(to, weights_.data(), weights_.size() * sizeof(RunWeights));
  const std::byte* const table = tables_.get(std::span<const std::byte>(all));
  if (table == nullptr) return;  // it was reported
  launch_together(runtime_,
                  {"decode_run",
                   {static_cast<unsigned>(runtime_.properties().multiprocessors)},
                   {Run::kThreads},
                   fixed_ + room_},
                  decode_run<Run>, reinterpret_cast<const DecodeStep*>(table),
                  static_cast<int>(steps_.size()),
                  reinterpret_cast<const RunWeights*>(table + steps_.size() * sizeof(DecodeStep)),
                  static_cast<int>(weights_.size()), static_cast<uint32_t*>(arrived_.data()));
}

void DecodeGathering::flush() {
  if (!format_) return;
  if (arrived_.bytes() == 0) {
    Result<Memory> word = Memory::allocate(runtime_, sizeof(uint32_t));
    if (word.ok())
      arrived_ = std::move(word).value();
    else
      runtime_.report(word.error());
  }
  if (arrived_.bytes() > 0)
    with_packed_format(
        *format_, [&]<PackedFormat kFormat, int kGroup>() { start<DecodeRun<kFormat, kGroup>>(); });
  format_.reset();
  steps_.clear();
  weights_.clear();
  fixed_ = room_ = 0;
}

}  // namespace fastserve::gpu
