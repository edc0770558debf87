// LayerNorm and RMSNorm.
#include "gpu/kernels/norm.cuh"
#include "gpu/train_state.h"

namespace fastserve::gpu {

void norm_forward(TrainState& state, const NormForward& op) {
  if (op.rows == 0) return;
  const bool fours =
      op.channels % 4 == 0 && on_fours({op.x, op.weight, op.bias, static_cast<float*>(op.out)});
  const Launch how{
      "norm_forward", {blocks_for(static_cast<size_t>(op.rows), kNormWarps)}, {32 * kNormWarps}};
  with_type(state.precision, [&]<class T>() {
    const auto kernel = !fours                    ? gpu::norm_forward<T, 1>
                        : op.channels <= 6 * 128  ? norm_forward_held<T, 6>
                        : op.channels <= 16 * 128 ? norm_forward_held<T, 16>
                                                  : gpu::norm_forward<T, 4>;
    launch(state.runtime, how, kernel, op.x, op.weight, op.bias, op.epsilon,
           op.kind == NormKind::kLayerNorm, op.rows, op.channels, static_cast<T*>(op.out),
           op.stats);
  });
}

void norm_backward(TrainState& state, const NormBackward& op) {
  if (op.rows == 0) return;
  const int each = norm_backward_rows(op.rows, op.channels),
            wide = op.channels * (1 + (op.dbias != nullptr) + (op.dx_sums != nullptr));
  const unsigned blocks = blocks_for(static_cast<size_t>(op.rows), static_cast<size_t>(each));
  const size_t partials = at(static_cast<int>(blocks), wide);
  if (!state.workspace.begin(Workspace::room<float>(partials))) return;
  const NormBackwardArguments arguments{.dy = op.dy,
                                        .x = op.x,
                                        .weight = op.weight,
                                        .stats = op.stats,
                                        .rows = op.rows,
                                        .channels = op.channels,
                                        .centred = op.kind == NormKind::kLayerNorm,
                                        .accumulate = op.accumulate,
                                        .with_bias = op.dbias != nullptr,
                                        .with_dx = op.dx_sums != nullptr,
                                        .dx = op.dx,
                                        .dx_compute = op.dx_compute,
                                        .each = each,
                                        .partials = state.workspace.take<float>(partials),
                                        .wide = wide};
  const bool fours =
      op.channels % 4 == 0 && on_fours({static_cast<const float*>(op.dy), op.x, op.weight, op.dx,
                                        static_cast<float*>(op.dx_compute)});
  const auto start = [&]<int kWide, int kHeld, int kRows, int kThreads, bool kAhead>() {
    const unsigned threads =
        blocks_for(static_cast<size_t>(op.channels), size_t{32} * kHeld * kWide) * 32;
    if (threads > kThreads)
      return state.runtime.report({ErrorCode::kUnsupported,
                                   "a norm of " + std::to_string(op.channels) + " channels",
                                   state.runtime.properties().name,
                                   "the most are 16384, or 8192 where they are no multiple of 4"});
    with_type(state.precision, [&]<class T>() {
      launch(state.runtime,
             {"norm_backward",
              {blocks},
              {threads},
              norm_backward_shared<kWide, kHeld, kRows, kAhead>(static_cast<int>(threads))},
             gpu::norm_backward<T, kWide, kHeld, kRows, kThreads, kAhead>, arguments);
    });
  };
  // As many of a row's numbers in a thread, and rows at a time, as its registers hold. The last,
  // for models that few cards could train, keeps some of them in memory.
  if (!fours)
    start.template operator()<1, 16, 1, 512, false>();
  else if (op.channels <= 1024)
    start.template operator()<4, 1, 2, 256, true>();
  else if (op.channels <= 2048)
    start.template operator()<4, 1, 2, 512, true>();
  else if (op.channels <= 4096)
    start.template operator()<4, 2, 1, 512, true>();
  else
    start.template operator()<4, 8, 1, 512, false>();
  const JoinedSums sums{.first = op.dweight,
                        .second = op.dbias ? op.dbias : op.dx_sums,
                        .third = op.dx_sums,
                        .channels = op.channels,
                        .wide = wide};
  add_sums(state.runtime, arguments.partials, static_cast<int>(blocks), sums);
}

}  // namespace fastserve::gpu
