// The reference's backward ops against differences of its forward ops.
#include <functional>

#include "tests/cpu/op_harness.h"

namespace fastserve::harness {
namespace {

constexpr double kStep = 1e-2;
/// Central differences: the cubic term is about kStep^2 of a gradient, and forward results are
/// rounded to float, 2^-24 / kStep of a result.
constexpr double kTolerance = 2e-3;

/// Differentiates loss() by elements of `x` and compares with `gradient`, scaled by its largest.
void check_gradient(const std::string& what, Array& x, Array& gradient,
                    const std::function<double()>& loss) {
  double largest = 1e-3;
  for (size_t i = 0; i < gradient.size(); ++i)
    largest = std::max(largest, std::abs(double(gradient.floats()[i])));
  for (size_t i = 0; i < x.size(); ++i) {
    const float before = x.floats()[i];
    x.floats()[i] = static_cast<float>(before + kStep);
    const double above = loss(), high = x.floats()[i];
    x.floats()[i] = static_cast<float>(before - kStep);
    const double below = loss(), low = x.floats()[i];
    x.floats()[i] = before;
    const double slope = (above - below) / (high - low);
    const double error = std::abs(slope - gradient.floats()[i]) / largest;
    CHECK_MESSAGE(error <= kTolerance, what << "[" << i << "]: the gradient is "
                                            << gradient.floats()[i] << ", differences give "
                                            << slope);
  }
}

double weighted(Array& out, Array& by) {
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) sum += double(out.floats()[i]) * by.floats()[i];
  return sum;
}

std::unique_ptr<TrainOps> reference_ops() {
  return make_reference_device()->make_train_ops(Precision::kFloat32);
}

}  // namespace

TEST_CASE("the reference's norm gradients are its differences") {
  const auto ops = reference_ops();
  constexpr int kRows = 3, kChannels = 6;
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
    Rng rng(71);
    Array x = random_floats(rng, kRows * kChannels), dy = random_floats(rng, kRows * kChannels);
    Array weight = random_floats(rng, kChannels), bias = random_floats(rng, kChannels);
    Array out = zero_floats(kRows * kChannels), stats = zero_floats(2 * kRows);
    const auto loss = [&] {
      ops->norm_forward({kind, x.floats(), weight.floats(), bias.floats(), 1e-5f, kRows, kChannels,
                         out.data(), stats.floats()});
      return weighted(out, dy);
    };
    loss();
    Array dx = zero_floats(x.size()), dweight = zero_floats(kChannels),
          dbias = zero_floats(kChannels);
    ops->norm_backward({kind, dy.floats(), x.floats(), weight.floats(), stats.floats(), kRows,
                        kChannels, dx.floats(), false, nullptr, dweight.floats(), dbias.floats()});
    check_gradient("dx", x, dx, loss);
    check_gradient("dweight", weight, dweight, loss);
    check_gradient("dbias", bias, dbias, loss);
  }
}

TEST_CASE("the reference's linear and gated layers' gradients are their differences") {
  const auto ops = reference_ops();
  constexpr int kRows = 3, kIn = 5, kOut = 8;
  for (const MatmulEpilogue epilogue :
       {MatmulEpilogue::kStoreFloat, MatmulEpilogue::kGelu, MatmulEpilogue::kSwiGlu}) {
    Rng rng(72);
    const bool gated = epilogue == MatmulEpilogue::kSwiGlu;
    const int width = gated ? kOut / 2 : kOut;
    Array x = random_floats(rng, kRows * kIn), masters = random_floats(rng, kOut * kIn);
    Array bias = random_floats(rng, kOut), dy = random_floats(rng, reference::at(kRows, width));
    Array out = zero_floats(reference::at(kRows, width)), slope = zero_floats(kRows * kOut);
    const auto matrix = ops->make_matrix(kOut, kIn);
    const auto loss = [&] {
      ops->pack(*matrix, 0, kOut, masters.floats());
      ops->matmul_forward({matrix.get(), x.data(), kRows, kIn, bias.floats(), epilogue, out.data(),
                           width, nullptr,
                           epilogue == MatmulEpilogue::kStoreFloat ? nullptr : slope.data()});
      return weighted(out, dy);
    };
    loss();
    // The layer's own gradient, as kTimesSlope makes it from the next layer's: here an identity.
    Array dp = zero_floats(kRows * kOut);
    const auto identity = ops->make_matrix(width, width);
    Array unit = zero_floats(reference::at(width, width));
    for (int i = 0; i < width; ++i) unit.floats()[i * width + i] = 1;
    ops->pack(*identity, 0, width, unit.floats());
    const bool linear = epilogue == MatmulEpilogue::kStoreFloat;
    ops->matmul_backward_input({identity.get(), dy.data(), kRows, width,
                                linear ? InputGradEpilogue::kStore : InputGradEpilogue::kTimesSlope,
                                dp.data(), kOut, slope.data(), gated ? 2 : 1});
    Array dx = zero_floats(kRows * kIn), dweight = zero_floats(kOut * kIn),
          dbias = zero_floats(kOut);
    ops->matmul_backward_input({matrix.get(), dp.data(), kRows, kOut,
                                InputGradEpilogue::kStoreFloat, dx.data(), kIn, nullptr, 1});
    ops->matmul_backward_weight({dp.data(), x.data(), kRows, kOut, kIn, kOut, kIn, dweight.floats(),
                                 dbias.floats(), false});
    check_gradient("dx", x, dx, loss);
    check_gradient("dweight", masters, dweight, loss);
    check_gradient("dbias", bias, dbias, loss);
  }
}

TEST_CASE("the reference's rotary gradients are its differences") {
  const auto ops = reference_ops();
  constexpr HeadShape kHeads{4, 2, 4};
  constexpr int kRows = 3;
  const size_t n = reference::at(kRows, kHeads.width());
  for (const bool norms : {false, true}) {
    Rng rng(73);
    Array in = random_floats(rng, n), dy = random_floats(rng, n), out = zero_floats(n);
    Array q_norm = random_floats(rng, 4), k_norm = random_floats(rng, 4);
    Array table = zero_floats(8 * 4), stats = zero_floats(kRows * 6);
    for (int p = 0; p < 8; ++p)
      for (int i : {0, 1}) {
        table.floats()[p * 4 + i] = static_cast<float>(std::cos(p / (i + 1.0)));
        table.floats()[p * 4 + 2 + i] = static_cast<float>(std::sin(p / (i + 1.0)));
      }
    const std::vector<int32_t> positions = {2, 0, 7};
    const RotaryForward forward{kHeads,
                                in.data(),
                                out.data(),
                                kRows,
                                positions,
                                table.floats(),
                                norms ? q_norm.floats() : nullptr,
                                norms ? k_norm.floats() : nullptr,
                                1e-5f,
                                stats.floats()};
    const auto loss = [&] {
      ops->rotary_forward(forward);
      return weighted(out, dy);
    };
    loss();
    Array din = zero_floats(n), dq = zero_floats(4), dk = zero_floats(4);
    std::copy_n(dy.floats(), n, din.floats());
    ops->rotary_backward(
        {forward, din.data(), norms ? dq.floats() : nullptr, norms ? dk.floats() : nullptr});
    check_gradient("dqkv", in, din, loss);
    if (!norms) continue;
    check_gradient("dq_norm", q_norm, dq, loss);
    check_gradient("dk_norm", k_norm, dk, loss);
  }
}

TEST_CASE("the reference's attention gradient is its differences") {
  const auto ops = reference_ops();
  constexpr HeadShape kHeads{4, 2, 3};
  const std::vector<int32_t> starts = {0, 5, 6, 10};
  const size_t wide = reference::at(10, kHeads.width()), n = reference::at(10, 12);
  for (const int window : {0, 2}) {
    Rng rng(74);
    Array qkv = random_floats(rng, wide), dout = random_floats(rng, n), out = zero_floats(n);
    Array stats = zero_floats(2 * 4 * 10), dqkv = zero_floats(wide);
    const AttentionForward forward{kHeads, qkv.data(), out.data(), stats.floats(),
                                   starts, window,     0.6f};
    const auto loss = [&] {
      ops->attention_forward(forward);
      return weighted(out, dout);
    };
    loss();
    ops->attention_backward({forward, dout.data(), dqkv.data()});
    check_gradient("dqkv", qkv, dqkv, loss);
  }
}

TEST_CASE("the reference's classifier gradient is its differences") {
  const auto ops = reference_ops();
  constexpr int kRows = 4, kVocab = 7, kIn = 5, kLd = 64;
  Rng rng(75);
  Array x = random_floats(rng, kRows * kIn), masters = random_floats(rng, kVocab * kIn);
  const auto head = ops->make_matrix(kVocab, kIn);
  const std::vector<int32_t> targets = {3, -1, 0, 6};
  Array dlogits = zero_floats(kRows * kLd);
  constexpr float kScale = 0.5f;
  const auto loss = [&] {
    ops->pack(*head, 0, kVocab, masters.floats());
    std::vector<double> losses(kRows);
    ops->classifier_loss(
        {head.get(), x.data(), kRows, targets, losses.data(), dlogits.data(), kLd, kScale});
    return static_cast<double>(kScale) * (losses[0] + losses[1] + losses[2] + losses[3]);
  };
  loss();
  Array dx = zero_floats(kRows * kIn), dweight = zero_floats(kVocab * kIn);
  ops->matmul_backward_input({head.get(), dlogits.data(), kRows, kLd,
                              InputGradEpilogue::kStoreFloat, dx.data(), kIn, nullptr, 1});
  ops->matmul_backward_weight(
      {dlogits.data(), x.data(), kRows, kVocab, kIn, kLd, kIn, dweight.floats(), nullptr, false});
  check_gradient("dx", x, dx, loss);
  check_gradient("dhead", masters, dweight, loss);
}

TEST_CASE("the reference's embedding gradient is its differences") {
  const auto ops = reference_ops();
  Rng rng(76);
  const std::vector<int32_t> tokens = {1, 3, 1, 0}, positions = {0, 1, 2, 0};
  Array table = random_floats(rng, 4 * 3), position_table = random_floats(rng, 3 * 3);
  Array out = zero_floats(4 * 3), dx = random_floats(rng, 4 * 3);
  Array dtable = zero_floats(4 * 3), dpositions = zero_floats(3 * 3);
  const auto loss = [&] {
    ops->embed_forward(
        {tokens, positions, table.floats(), position_table.floats(), out.floats(), 3});
    return weighted(out, dx);
  };
  ops->embed_backward({tokens, positions, dx.floats(), dtable.floats(), dpositions.floats(), 3});
  check_gradient("dtoken_table", table, dtable, loss);
  check_gradient("dposition_table", position_table, dpositions, loss);
}

}  // namespace fastserve::harness
