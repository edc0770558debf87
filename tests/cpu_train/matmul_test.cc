// The products of a linear layer and the classifier, on every path, against the reference.
#include <algorithm>
#include <memory>
#include <span>

#include "twins.h"

using namespace fastserve;
using namespace fastserve::twins;

namespace {

struct Shape {
  int rows, in, out;
};
const std::vector<Shape> kShapes = {{1, 1, 2},     {7, 5, 66},    {16, 100, 34}, {33, 64, 64},
                                    {64, 65, 130}, {50, 36, 192}, {13, 160, 96}};

MatmulForward forward_op(const TrainMatrix& weight, const TwinStorage& x, const Shape& s,
                         const std::vector<float>& bias, MatmulEpilogue epilogue) {
  return {.weight = &weight,
          .x = x.data(),
          .rows = s.rows,
          .x_ld = s.in,
          .bias = bias.empty() ? nullptr : bias.data(),
          .epilogue = epilogue,
          .out = nullptr,
          .out_ld = epilogue == MatmulEpilogue::kSwiGlu ? s.out / 2 : s.out,
          .residual = nullptr,
          .slope = nullptr};
}

void check_forward(const Twins& t, const Shape& s, bool with_bias) {
  const int terms = std::max(500, s.in);
  CAPTURE(s.rows);
  CAPTURE(s.in);
  CAPTURE(s.out);
  Rng rng(7);
  const double scale = 1 / std::sqrt(static_cast<double>(s.in));
  const TwinMatrix w(t, s.out, s.in, random_floats(area(s.out, s.in), rng, scale));
  const TwinStorage x = t.random(area(s.rows, s.in), rng);
  const std::vector<float> bias =
      with_bias ? random_floats(static_cast<size_t>(s.out), rng) : std::vector<float>();
  for (MatmulEpilogue e :
       {MatmulEpilogue::kStore, MatmulEpilogue::kGelu, MatmulEpilogue::kSwiGlu}) {
    MatmulForward fast = forward_op(*w.fast, x, s, bias, e);
    MatmulForward plain = forward_op(*w.plain, x, s, bias, e);
    TwinStorage a = t.empty(area(s.rows, fast.out_ld)), b = a;
    TwinStorage slope_a = t.empty(area(s.rows, s.out)), slope_b = slope_a;
    fast.out = a.data();
    plain.out = b.data();
    if (e != MatmulEpilogue::kStore) {
      fast.slope = slope_a.data();
      plain.slope = slope_b.data();
    }
    t.fast->matmul_forward(fast);
    t.plain->matmul_forward(plain);
    CAPTURE(static_cast<int>(e));
    CHECK(distance(a, b) < tolerance(t.precision, terms));
    CHECK(distance(slope_a, slope_b) < tolerance(t.precision, terms));
  }
  for (MatmulEpilogue e : {MatmulEpilogue::kStoreFloat, MatmulEpilogue::kAddResidual}) {
    MatmulForward fast = forward_op(*w.fast, x, s, bias, e);
    MatmulForward plain = forward_op(*w.plain, x, s, bias, e);
    std::vector<float> a = random_floats(area(s.rows, s.out), rng), b = a;
    fast.out = a.data();
    fast.residual = a.data();
    plain.out = b.data();
    plain.residual = b.data();
    t.fast->matmul_forward(fast);
    t.plain->matmul_forward(plain);
    CAPTURE(static_cast<int>(e));
    CHECK(distance(a, b) < tolerance(Precision::kFloat32, terms));
  }
}

void check_input_gradient(const Twins& t, const Shape& s) {
  const int terms = std::max(500, s.out);
  CAPTURE(s.rows);
  CAPTURE(s.in);
  CAPTURE(s.out);
  Rng rng(8);
  const TwinMatrix w(t, s.out, s.in, random_floats(area(s.out, s.in), rng, 0.1));
  const int dy_ld = s.out + 3;  // what lies between rows must not matter
  TwinStorage dy = t.random(area(s.rows, dy_ld), rng);
  for (int r = 0; r + 1 < s.rows; r++) dy.put(area(r, dy_ld) + static_cast<size_t>(s.out), NAN);
  for (int parts : {0, 1, 2}) {
    const int ld = std::max(parts, 1) * s.in;
    const TwinStorage slope = t.random(area(s.rows, ld), rng);
    TwinStorage a = t.empty(area(s.rows, ld)), b = a;
    const auto op = [&](const TrainMatrix& weight, TwinStorage& dx) {
      return MatmulBackwardInput{
          .weight = &weight,
          .dy = dy.data(),
          .rows = s.rows,
          .dy_ld = dy_ld,
          .epilogue = parts == 0 ? InputGradEpilogue::kStore : InputGradEpilogue::kTimesSlope,
          .dx = dx.data(),
          .dx_ld = ld,
          .slope = parts == 0 ? nullptr : slope.data(),
          .slope_parts = std::max(parts, 1)};
    };
    t.fast->matmul_backward_input(op(*w.fast, a));
    t.plain->matmul_backward_input(op(*w.plain, b));
    CAPTURE(parts);
    CHECK(distance(a, b) < tolerance(t.precision, terms));
  }
}

/// The first n elements that begin on a cache line, as a gradient must to be streamed.
std::span<float> on_cache_lines(std::vector<float>& memory, size_t n) {
  void* begin = memory.data();
  size_t room = memory.size() * sizeof(float);
  REQUIRE(std::align(64, n * sizeof(float), begin, room) != nullptr);
  return {static_cast<float*>(begin), n};
}

void check_weight_gradient(const Twins& t, const Shape& s, bool accumulate) {
  const int terms = std::max(500, s.rows);
  CAPTURE(s.rows);
  CAPTURE(s.in);
  CAPTURE(s.out);
  Rng rng(9);
  const TwinStorage dy = t.random(area(s.rows, s.out), rng), x = t.random(area(s.rows, s.in), rng);
  const size_t n = area(s.out, s.in);
  std::vector<float> a_memory = random_floats(n + 15, rng), b_memory = a_memory;
  const std::span<float> a = on_cache_lines(a_memory, n), b = on_cache_lines(b_memory, n);
  std::copy(a.begin(), a.end(), b.begin());
  std::vector<float> bias_a = random_floats(static_cast<size_t>(s.out), rng), bias_b = bias_a;
  const auto op = [&](std::span<float> dweight, std::vector<float>& dbias) {
    return MatmulBackwardWeight{.dy = dy.data(),
                                .x = x.data(),
                                .rows = s.rows,
                                .out = s.out,
                                .in = s.in,
                                .dy_ld = s.out,
                                .x_ld = s.in,
                                .dweight = dweight.data(),
                                .dbias = dbias.data(),
                                .accumulate = accumulate};
  };
  t.fast->matmul_backward_weight(op(a, bias_a));
  t.plain->matmul_backward_weight(op(b, bias_b));
  CHECK(distance(a, b) < tolerance(Precision::kFloat32, terms));
  CHECK(distance(bias_a, bias_b) < tolerance(Precision::kFloat32, terms));
}

}  // namespace

TEST_CASE("x W^T with every epilogue agrees with the reference for sizes of every remainder") {
  for_each_path([](const Twins& t) {
    for (const Shape& s : kShapes) check_forward(t, s, s.rows % 2 == 1);
  });
}

TEST_CASE("dy W agrees with the reference and reads nothing between rows") {
  for_each_path([](const Twins& t) {
    for (const Shape& s : kShapes) check_input_gradient(t, s);
  });
}

TEST_CASE("dy^T x agrees with the reference, overwriting or adding") {
  for_each_path([](const Twins& t) {
    for (const Shape& s : kShapes)
      for (bool accumulate : {false, true}) check_weight_gradient(t, s, accumulate);
  });
}

TEST_CASE("reductions longer than a block stay within float error") {
  const Shape deep{9, 6200, 66}, tall{6200, 20, 34}, wide{10, 18, 6200};
  for (Precision p : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
    const Twins t = make_twins(best_isa(), p);
    CAPTURE(t.name);
    check_forward(t, deep, true);
    check_weight_gradient(t, tall, false);
    check_input_gradient(t, wide);
  }
}

TEST_CASE("a large gradient streamed past the caches is the same gradient") {
  const Shape s{32, 512, 320};
  for_each_path([&](const Twins& t) { check_weight_gradient(t, s, false); });
}

TEST_CASE("the classifier's loss and gradient agree with the reference, uncounted rows with zero") {
  for_each_path([](const Twins& t) {
    for (const auto& [rows, vocab, in] :
         {Shape{1, 2, 3}, Shape{70, 65, 32}, Shape{5, 1027, 20}, Shape{130, 4100, 16}}) {
      CAPTURE(vocab);
      Rng rng(10);
      const TwinMatrix w(t, vocab, in, random_floats(area(vocab, in), rng));
      const TwinStorage x = t.random(area(rows, in), rng);
      std::vector<int32_t> targets(static_cast<size_t>(rows));
      for (int32_t& target : targets)
        target = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab) + 1)) - 1;
      const int ld = (vocab + 63) / 64 * 64;
      TwinStorage a = t.random(area(rows, ld), rng), b = t.random(area(rows, ld), rng);
      std::vector<double> loss_a(targets.size()), loss_b(targets.size());
      const auto op = [&](const TrainMatrix& head, std::vector<double>& losses,
                          TwinStorage& dlogits) {
        return ClassifierLoss{.head = &head,
                              .x = x.data(),
                              .rows = rows,
                              .targets = targets,
                              .losses = losses.data(),
                              .dlogits = dlogits.data(),
                              .dlogits_ld = ld,
                              .scale = 8.0f};
      };
      t.fast->classifier_loss(op(*w.fast, loss_a, a));
      t.plain->classifier_loss(op(*w.plain, loss_b, b));
      CHECK(distance(loss_a, loss_b) < 1e-6);
      CHECK(distance(a, b) < tolerance(t.precision));
      for (size_t r = 0; r < targets.size(); r++) {
        if (targets[r] < 0) CHECK(loss_a[r] == 0);
        for (size_t c = static_cast<size_t>(vocab); c < static_cast<size_t>(ld); c++)
          REQUIRE(a[r * static_cast<size_t>(ld) + c] == 0);
      }
    }
  });
}
