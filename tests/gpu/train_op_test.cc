// The GPU's training operations against the reference, on the emulator.
#include "tests/cpu/attention_cases.h"
#include "tests/cpu/loss_cases.h"
#include "tests/cpu/matmul_cases.h"
#include "tests/cpu/norm_cases.h"
#include "tests/gpu/gpu_tests.h"

namespace fastserve::harness {
namespace {

/// On a card: large enough for blocks that add to the same gradients, if any do, to meet in orders
/// of their own.
std::vector<attention_cases::AttentionShape> repeated_attention() {
#if defined(FASTSERVE_ON_CARD)
  return {{{12, 12, 64}, {1024, 1024, 1024, 1024}, 0}, {{16, 4, 128}, {1024, 1024}, 0}};
#else
  return {{{2, 1, 64}, {70, 70}, 0}};
#endif
}

}  // namespace

TEST_CASE("the GPU normalises as the reference does, forward and backward") {
  std::vector<norm_cases::NormShape> shapes;
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
    for (const auto& [rows, channels] :
         {std::pair{1, 2}, {3, 7}, {17, 64}, {2, 768}, {41, 900}, {3, 1500}, {2, 2052}, {35, 97}}) {
      const bool layer = kind == NormKind::kLayerNorm;
      shapes.push_back({kind, rows, channels, layer, true});
      shapes.push_back({kind, rows, channels, false, false});
    }
  check_gpu_train_op("norm", shapes, norm_cases::run_norm);
}

TEST_CASE("the GPU embeds and sums embedding gradients in row order") {
  check_gpu_train_op("embed",
                     std::vector<norm_cases::EmbedShape>{
                         {1, 1, 1, 1}, {9, 5, 4, 7}, {40, 65, 16, 64}, {33, 3, 40, 17}},
                     norm_cases::run_embed);
}

TEST_CASE("the GPU rotates and normalises heads as the reference does") {
  std::vector<norm_cases::RotaryShape> shapes;
  for (const HeadShape& heads : {HeadShape{1, 1, 2}, {3, 1, 24}, {5, 5, 10}, {4, 2, 128}})
    for (const int rows : {1, 17}) {
      shapes.push_back({heads, rows, false, true, true});
      shapes.push_back({heads, rows, true, false, false});
      shapes.push_back({heads, rows, true, true, false});
    }
  check_gpu_train_op("rotary", shapes, norm_cases::run_rotary);
}

/// A card's library rounds a product before it is made an activation.
Outputs run_matmul(TrainOps& ops, const matmul_cases::MatmulShape& s) {
#if defined(FASTSERVE_ON_CARD)
  return matmul_cases::run_forward_rounded(ops, s, 2);
#else
  return matmul_cases::run_forward(ops, s);
#endif
}

// Among the shapes: leading dimensions on 16 bytes and not (the cases add a few to each), and
// products of enough tiles that large ones are taken.
TEST_CASE("the GPU multiplies by a weight matrix as the reference does") {
  check_gpu_train_op("matmul",
                     std::vector<matmul_cases::MatmulShape>{{1, 2, 1},
                                                            {2, 4, 3},
                                                            {7, 66, 63},
                                                            {64, 192, 59},
                                                            {70, 18, 200},
                                                            {256, 258, 59},
                                                            {70, 144, 59},
                                                            {33, 130, 99}},
                     run_matmul);
}

TEST_CASE("the GPU carries gradients back through a weight matrix") {
  check_gpu_train_op("matmul dx",
                     std::vector<matmul_cases::MatmulShape>{{1, 2, 1},
                                                            {2, 4, 3},
                                                            {7, 66, 63},
                                                            {64, 192, 64},
                                                            {40, 64, 48},
                                                            {300, 66, 480},
                                                            {33, 130, 100}},
                     matmul_cases::run_backward_input);
}

TEST_CASE("the GPU sums weight gradients in one chain per element") {
  check_gpu_train_op(
      "matmul dw",
      std::vector<matmul_cases::MatmulShape>{
          {1, 2, 1}, {2, 4, 3}, {7, 65, 62}, {600, 20, 18}, {40, 257, 254}, {33, 129, 102}},
      matmul_cases::run_backward_weight);
}

// Of 66000 rows there are 258 partial sums, and of those two.
TEST_CASE("the GPU sums the bias gradient of any number of rows") {
  const auto device = emulated_gpu();
  constexpr Precision kOne[] = {Precision::kFloat32};
  check_train_op_on(*device, kOne, "matmul dw",
                    std::vector<matmul_cases::MatmulShape>{{66000, 1, 1}},
                    matmul_cases::run_backward_weight);
}

TEST_CASE("the GPU attends as the reference does, forward and backward") {
  check_gpu_train_op("attention",
                     std::vector<attention_cases::AttentionShape>{{{1, 1, 1}, {1}, 0},
                                                                  {{1, 1, 5}, {3}, 0},
                                                                  {{1, 1, 16}, {1}, 0},
                                                                  {{2, 2, 64}, {64, 64}, 0},
                                                                  {{4, 2, 16}, {5, 17, 1}, 0},
                                                                  {{2, 1, 80}, {70}, 0},
                                                                  {{2, 1, 32}, {67, 2}, 1},
                                                                  {{2, 1, 128}, {40, 3}, 0},
                                                                  {{2, 2, 64}, {90}, 0, 30},
                                                                  {{2, 1, 33}, {19, 21}, 0},
                                                                  {{2, 1, 256}, {70, 3}, 0},
                                                                  {{1, 1, 136}, {40}, 0},
                                                                  {{2, 2, 192}, {5, 67}, 20},
                                                                  {{4, 2, 64}, {130, 31}, 50},
                                                                  {{2, 2, 96}, {200, 7}, 0},
                                                                  {{2, 1, 64}, {140}, 34},
                                                                  {{2, 1, 64}, {140}, 63},
                                                                  {{4, 2, 128}, {9, 150}, 100},
                                                                  {{4, 2, 64}, {290, 31}, 140}},
                     attention_cases::run_attention);
  // The last shapes, run in other orders, walk over each of a ring's buffers more than once.
  for (const int dim : {128, 256})
    check_gpu_train_op("attention",
                       std::vector<attention_cases::AttentionShape>{{{2, 1, dim}, {170, 3}, 0}},
                       attention_cases::run_attention);
}

TEST_CASE("attention's gradients have the same bits each time that the GPU computes them") {
  const auto device = emulated_gpu();
  const auto ops = device->make_train_ops(Precision::kBFloat16);
  for (const attention_cases::AttentionShape& shape : repeated_attention()) {
    const Outputs first = attention_cases::run_attention(*ops, shape);
    for (int again = 0; again < 2; again++)
      require_same_bits(shape.text(), first, attention_cases::run_attention(*ops, shape));
  }
  CHECK(device->sync().ok());
}

TEST_CASE("a card whose blocks have little shared memory attends all the same") {
  // Enough for flash attention forward and not backward; for neither.
  for (const auto& [kilobytes, dim] : {std::pair{60, 64}, {20, 64}, {140, 200}, {90, 200}}) {
    const auto device = emulated_gpu({.shared_memory = static_cast<size_t>(kilobytes) << 10});
    check_train_op_on(*device, kGpuPrecisions, "attention",
                      std::vector<attention_cases::AttentionShape>{{{2, 1, dim}, {70, 5}, 0}},
                      attention_cases::run_attention);
  }
}

TEST_CASE("the GPU finds the loss and its gradient as the reference does") {
  check_gpu_train_op("classifier",
                     std::vector<loss_cases::LossShape>{{1, 2, 3, 1},
                                                        {5, 65, 128, 3},
                                                        {9, 1000, 33, 2},
                                                        {37, 256, 64, 30},
                                                        {5, 8203, 8, 2},
                                                        {130, 97, 16, 1}},
                     loss_cases::run_loss);
}

TEST_CASE("the GPU takes AdamW's step, adds, and sums squares") {
  const std::vector<loss_cases::FlatShape> shapes = {{1}, {7}, {64}, {5000}, {1031}};
  check_gpu_train_op("adamw", shapes, loss_cases::run_adamw);
  check_gpu_train_op("add", shapes, loss_cases::run_add);
  check_gpu_train_op("sum_squares", shapes, loss_cases::run_sum_squares);
  const auto device = emulated_gpu();
  const auto ops = device->make_train_ops(Precision::kFloat32);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    Rng rng(1);
    Array x = random_floats(rng, 5000);
    x.floats()[617] = bad;
    CHECK_FALSE(std::isfinite(ops->sum_squares(x.floats(), x.size())));
    CHECK(device->sync().ok());
  }
}

}  // namespace fastserve::harness
