// Norms, look-up tables and the optimiser's passes on every path, against the reference.
#include "twins.h"

using namespace fastserve;
using namespace fastserve::twins;

namespace {

void check_norm(const Twins& t, NormKind kind, int rows, int channels, bool accumulate) {
  CAPTURE(rows);
  CAPTURE(channels);
  Rng rng(14);
  const size_t n = static_cast<size_t>(channels);
  std::vector<float> x = random_floats(area(rows, channels), rng);
  for (float& v : x) v += 3;  // a mean that matters
  const std::vector<float> weight = random_floats(n, rng), bias = random_floats(n, rng);
  const std::vector<float> dy = random_floats(x.size(), rng), dx = random_floats(x.size(), rng);
  const std::vector<float> before = random_floats(n, rng);
  const bool with_bias = kind == NormKind::kLayerNorm;
  struct Result {
    TwinStorage out, dx_compute;
    std::vector<float> stats, dx, dweight, dbias;
  };
  const auto run = [&](TrainOps& ops) {
    Result r{t.empty(x.size()),
             t.empty(x.size()),
             std::vector<float>(area(rows, 2)),
             dx,
             before,
             before};
    ops.norm_forward({.kind = kind,
                      .x = x.data(),
                      .weight = weight.data(),
                      .bias = with_bias ? bias.data() : nullptr,
                      .epsilon = 1e-5f,
                      .rows = rows,
                      .channels = channels,
                      .out = r.out.data(),
                      .stats = r.stats.data()});
    ops.norm_backward({.kind = kind,
                       .dy = dy.data(),
                       .x = x.data(),
                       .weight = weight.data(),
                       .stats = r.stats.data(),
                       .rows = rows,
                       .channels = channels,
                       .dx = r.dx.data(),
                       .accumulate = accumulate,
                       .dx_compute = accumulate ? r.dx_compute.data() : nullptr,
                       .dweight = r.dweight.data(),
                       .dbias = with_bias ? r.dbias.data() : nullptr});
    return r;
  };
  const Result a = run(*t.fast), b = run(*t.plain);
  CHECK(distance(a.out, b.out) < tolerance(t.precision));
  CHECK(distance(a.dx_compute, b.dx_compute) < tolerance(t.precision));
  CHECK(distance(a.stats, b.stats) < tolerance(Precision::kFloat32));
  CHECK(distance(a.dx, b.dx) < tolerance(Precision::kFloat32));
  CHECK(distance(a.dweight, b.dweight) < tolerance(Precision::kFloat32));
  CHECK(distance(a.dbias, b.dbias) < tolerance(Precision::kFloat32));
}

}  // namespace

TEST_CASE("norms agree with the reference for rows of any width") {
  for_each_path([](const Twins& t) {
    for (NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
      for (bool accumulate : {false, true})
        for (int channels : {3, 16, 100, 384}) check_norm(t, kind, 150, channels, accumulate);
  });
}

TEST_CASE("looking up and its gradient agree with the reference, rows that meet in order") {
  for_each_path([](const Twins& t) {
    for (int channels : {5, 48, 100}) {
      Rng rng(15);
      const int rows = 40, vocab = 7;
      std::vector<int32_t> tokens(rows), positions(rows);
      for (int32_t& token : tokens) token = static_cast<int32_t>(rng.below(vocab));
      for (int r = 0; r < rows; r++) positions[static_cast<size_t>(r)] = r % 9;
      const std::vector<float> table = random_floats(area(vocab, channels), rng);
      const std::vector<float> places = random_floats(area(9, channels), rng);
      std::vector<float> a(area(rows, channels)), b = a;
      for (const float* place : {static_cast<const float*>(nullptr), places.data()}) {
        t.fast->embed_forward({tokens, positions, table.data(), place, a.data(), channels});
        t.plain->embed_forward({tokens, positions, table.data(), place, b.data(), channels});
        CHECK(a == b);
      }
      std::vector<float> dtable_a = table, dtable_b = table, dplaces_a = places, dplaces_b = places;
      t.fast->embed_backward(
          {tokens, positions, a.data(), dtable_a.data(), dplaces_a.data(), channels});
      t.plain->embed_backward(
          {tokens, positions, a.data(), dtable_b.data(), dplaces_b.data(), channels});
      CHECK(dtable_a == dtable_b);
      CHECK(dplaces_a == dplaces_b);
    }
  });
}

TEST_CASE("AdamW agrees with the reference over a few steps") {
  for_each_path([](const Twins& t) {
    Rng rng(16);
    const size_t n = 1000 + 13;
    std::vector<float> param_a = random_floats(n, rng), m_a(n), v_a(n);
    std::vector<float> param_b = param_a, m_b = m_a, v_b = v_a;
    for (int64_t step = 1; step <= 3; step++) {
      const std::vector<float> grad = random_floats(n, rng, 0.01);
      const auto op = [&](std::vector<float>& p, std::vector<float>& m, std::vector<float>& v) {
        return AdamW{.param = p.data(),
                     .m = m.data(),
                     .v = v.data(),
                     .grad = grad.data(),
                     .n = n,
                     .learning_rate = 1e-2f,
                     .beta1 = 0.9f,
                     .beta2 = 0.95f,
                     .epsilon = 1e-8f,
                     .weight_decay = 0.1f,
                     .step = step,
                     .grad_scale = 0.5f};
      };
      t.fast->adamw(op(param_a, m_a, v_a));
      t.plain->adamw(op(param_b, m_b, v_b));
    }
    CHECK(distance(param_a, param_b) < 2e-7);
    CHECK(distance(m_a, m_b) < 2e-7);
    CHECK(distance(v_a, v_b) < 2e-7);
  });
}

TEST_CASE("the sum of squares is exact in double, and not finite when an element is not") {
  for_each_path([](const Twins& t) {
    for (size_t n : {0, 1, 31, 32, 1000}) {
      Rng rng(17);
      std::vector<float> x = random_floats(n, rng, 1e20), sum(n);
      double exact = 0;
      for (float v : x) exact += static_cast<double>(v) * static_cast<double>(v);
      CHECK(t.fast->sum_squares(x.data(), n) == doctest::Approx(exact).epsilon(1e-14));
      t.fast->add(x.data(), x.data(), sum.data(), n);
      for (size_t i = 0; i < n; i++) REQUIRE(sum[i] == 2 * x[i]);
      if (n == 0) continue;
      x[n - 1] = NAN;
      CHECK(!std::isfinite(t.fast->sum_squares(x.data(), n)));
    }
  });
}
