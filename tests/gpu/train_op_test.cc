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
    for (const auto& [rows, channels] : {std::pair{1, 2},
                                         {3, 7},
                                         {17, 64},
                                         {2, 768},
                                         {41, 900},
                                         {3, 1500},
                                         {2, 2052},
                                         {2, 1031},
                                         {1, 4100},
                                         {141, 36},
                                         {35, 97},
                                         {3080, 132}}) {
      const bool layer = kind == NormKind::kLayerNorm;
      shapes.push_back({kind, rows, channels, layer, true});
      shapes.push_back({kind, rows, channels, false, false});
    }
  check_gpu_train_op("norm", shapes, norm_cases::run_norm);
}

TEST_CASE("the GPU embeds and sums embedding gradients in row order") {
  check_gpu_train_op(
      "embed",
      std::vector<norm_cases::EmbedShape>{
          {1, 1, 1, 1}, {9, 5, 4, 7}, {40, 65, 16, 64}, {33, 3, 40, 17}, {71, 2, 3, 132}},
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

Outputs run_through_activation(TrainOps& ops, const matmul_cases::MatmulShape& s) {
#if defined(FASTSERVE_ON_CARD)
  return matmul_cases::run_activation_rounded(ops, s, 3);
#else
  return matmul_cases::run_activation(ops, s);
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

/// More rows than one sum of columns is of, and neurons that a block's lanes do not fill.
TEST_CASE("the GPU carries gradients back through an activation, and sums those of its bias") {
  check_gpu_train_op(
      "activation",
      std::vector<matmul_cases::MatmulShape>{
          {1, 2, 1}, {7, 66, 63}, {64, 192, 64}, {40, 24, 264}, {300, 24, 48}, {33, 130, 100}},
      run_through_activation);
}

TEST_CASE("the GPU sums weight gradients in one chain per element") {
  check_gpu_train_op(
      "matmul dw",
      std::vector<matmul_cases::MatmulShape>{
          {1, 2, 1}, {2, 4, 3}, {7, 65, 62}, {600, 20, 18}, {40, 257, 254}, {33, 129, 102}},
      matmul_cases::run_backward_weight);
}

// Of 66000 rows there are 516 partial sums, of those five, and of those one.
// 200 and 300 rows are one block and three.
TEST_CASE("the GPU sums the bias gradient of any number of rows") {
  const auto device = emulated_gpu();
  constexpr Precision kOne[] = {Precision::kFloat32};
  check_train_op_on(*device, kOne, "matmul dw",
                    std::vector<matmul_cases::MatmulShape>{{66000, 1, 1}, {200, 5, 1}, {300, 8, 1}},
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
  using loss_cases::LossShape;
  check_gpu_train_op("classifier",
                     std::vector<LossShape>{{1, 2, 3, 1},
                                            {5, 65, 128, 3},
                                            {9, 1000, 33, 2},
                                            {37, 256, 64, 30},
                                            {9, 1000, 64, 0.1},
                                            {130, 97, 16, 1}},
                     loss_cases::run_loss_of_rounded);
  check_gpu_train_op("classifier", std::vector<LossShape>{{3, 8200, 8, 0.1}, {5, 8203, 8, 2}},
                     loss_cases::run_loss_of_rounded);
}

TEST_CASE("a row of logits has the same bits however little of it a block can hold") {
  const loss_cases::LossShape shape{2, 30011, 8, 2};
  for (const Precision precision : kGpuPrecisions) {
    const auto whole = emulated_gpu(), part = emulated_gpu({.shared_memory = 99 << 10});
    require_same_bits(shape.text(), loss_cases::run_loss(*whole->make_train_ops(precision), shape),
                      loss_cases::run_loss(*part->make_train_ops(precision), shape));
    CHECK(whole->sync().ok());
    CHECK(part->sync().ok());
  }
}

// The target's logit is 64.1: the nearest number of bf16 is 64, of fp16 64.094. The others are 60.
TEST_CASE("a loss is as exact as its target's logit in float, though halves are stored") {
  for (const int vocab : {40, 5000})
    for (const Precision precision : kGpuPrecisions) {
      const auto run = [&](TrainOps& ops) {
        Rng rng(1);
        Array masters = random_floats(rng, static_cast<size_t>(2 * vocab), 0);
        for (int v = 0; v < vocab; ++v) masters.floats()[2 * v] = v == 7 ? 64.0f : 60.0f;
        masters.floats()[2 * 7 + 1] = 0.1f;
        const auto head = ops.make_matrix(vocab, 2);
        ops.pack(*head, 0, vocab, masters.floats());
        Array x = zero_floats(2);
        for (int i = 0; i < 2; ++i) reference::Compute(precision).store(x.data(), size_t(i), 1);
        Array dlogits = unwritten_compute(precision, size_t{5056}), loss(1, sizeof(double));
        const std::vector<int32_t> targets = {7};
        ops.classifier_loss({head.get(), x.data(), 1, targets, static_cast<double*>(loss.data()),
                             dlogits.data(), 5056, 1.0f});
        return *static_cast<double*>(loss.data());
      };
      const auto device = emulated_gpu();
      const double expected = run(*make_reference_device()->make_train_ops(precision));
      CHECK(run(*device->make_train_ops(precision)) == doctest::Approx(expected).epsilon(1e-4));
      CHECK(device->sync().ok());
    }
}

TEST_CASE("the GPU takes AdamW's step, adds, and sums squares") {
  const std::vector<loss_cases::FlatShape> shapes = {{1}, {7}, {64}, {5000}, {1031}, {70003}};
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
