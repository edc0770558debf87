// Attention and rotary embedding on every path, against the reference.
#include "twins.h"

using namespace fastserve;
using namespace fastserve::twins;

namespace {

struct Shape {
  HeadShape heads;
  std::vector<int32_t> starts;
  int window;
};

const std::vector<Shape> kShapes = {
    {{1, 1, 16}, {0, 1}, 0},     {{2, 2, 32}, {0, 64}, 0},    {{4, 2, 20}, {0, 3, 20, 20, 97}, 0},
    {{3, 1, 5}, {0, 17, 50}, 0}, {{2, 1, 64}, {0, 150}, 40},  {{4, 4, 12}, {0, 33, 130}, 16},
    {{2, 2, 100}, {0, 81}, 1},   {{1, 1, 256}, {0, 40}, 100},
};

/// Probabilities are rounded before they meet the values, and gradients pass two such roundings.
double attention_tolerance(Precision precision) {
  return precision == Precision::kFloat32 ? 5e-6 : 2 * tolerance(precision);
}

void check(const Twins& t, const Shape& s) {
  const int rows = s.starts.back(), width = s.heads.heads * s.heads.head_dim;
  CAPTURE(rows);
  CAPTURE(s.heads.head_dim);
  CAPTURE(s.window);
  Rng rng(11);
  const TwinStorage qkv = t.random(area(rows, s.heads.width()), rng);
  const TwinStorage dout = t.random(area(rows, width), rng);
  TwinStorage out_a = t.empty(area(rows, width)), out_b = out_a;
  std::vector<float> stats_a(2 * area(rows, s.heads.heads)), stats_b = stats_a;
  TwinStorage dqkv_a = t.random(area(rows, s.heads.width()), rng), dqkv_b = dqkv_a;
  const auto run = [&](TrainOps& ops, TwinStorage& out, std::vector<float>& stats, TwinStorage& dqkv) {
    const AttentionForward forward{
        .shape = s.heads,
        .qkv = qkv.data(),
        .out = out.data(),
        .stats = stats.data(),
        .starts = s.starts,
        .window = s.window,
        .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.heads.head_dim)))};
    ops.attention_forward(forward);
    ops.attention_backward({.forward = forward, .dout = dout.data(), .dqkv = dqkv.data()});
  };
  run(*t.fast, out_a, stats_a, dqkv_a);
  run(*t.plain, out_b, stats_b, dqkv_b);
  CHECK(distance(out_a, out_b) < attention_tolerance(t.precision));
  CHECK(distance(dqkv_a, dqkv_b) < attention_tolerance(t.precision));
}

void check_rotary(const Twins& t, const HeadShape& heads, bool norm, bool table) {
  const int rows = 70, dim = heads.head_dim;
  CAPTURE(dim);
  CAPTURE(norm);
  CAPTURE(table);
  Rng rng(12);
  std::vector<float> angles(area(rows, dim));
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < dim / 2; i++) {
      const double angle = 2 * 3.14159265 * rng.uniform();
      angles[area(r, dim) + static_cast<size_t>(i)] = static_cast<float>(std::cos(angle));
      angles[area(r, dim) + static_cast<size_t>(dim / 2 + i)] = static_cast<float>(std::sin(angle));
    }
  std::vector<int32_t> positions(rows);
  for (int32_t& p : positions) p = static_cast<int32_t>(rng.below(rows));
  const std::vector<float> q_norm = random_floats(static_cast<size_t>(dim), rng);
  const std::vector<float> k_norm = random_floats(static_cast<size_t>(dim), rng);
  const TwinStorage in = t.random(area(rows, heads.width()), rng);
  const TwinStorage dout = t.random(area(rows, heads.width()), rng);
  const std::vector<float> before = random_floats(static_cast<size_t>(2 * dim), rng);
  struct Result {
    TwinStorage out, dqkv;
    std::vector<float> stats, dnorm;
  };
  const auto run = [&](TrainOps& ops) {
    Result r{t.empty(in.size()), dout, std::vector<float>(area(rows, heads.heads + heads.kv_heads)),
             before};
    const RotaryForward forward{.shape = heads,
                                .in = in.data(),
                                .out = r.out.data(),
                                .rows = rows,
                                .positions = positions,
                                .table = table ? angles.data() : nullptr,
                                .q_norm = norm ? q_norm.data() : nullptr,
                                .k_norm = norm ? k_norm.data() : nullptr,
                                .epsilon = 1e-5f,
                                .stats = norm ? r.stats.data() : nullptr};
    ops.rotary_forward(forward);
    ops.rotary_backward({.forward = forward,
                         .dqkv = r.dqkv.data(),
                         .dq_norm = norm ? r.dnorm.data() : nullptr,
                         .dk_norm = norm ? r.dnorm.data() + dim : nullptr});
    return r;
  };
  const Result a = run(*t.fast), b = run(*t.plain);
  CHECK(distance(a.out, b.out) < tolerance(t.precision));
  CHECK(distance(a.dqkv, b.dqkv) < tolerance(t.precision));
  CHECK(distance(a.stats, b.stats) < tolerance(Precision::kFloat32));
  CHECK(distance(a.dnorm, b.dnorm) < tolerance(Precision::kFloat32));
}

}  // namespace

TEST_CASE("attention agrees with the reference: ragged, grouped, windowed, any head size") {
  for_each_path([](const Twins& t) {
    for (const Shape& s : kShapes) check(t, s);
  });
}

TEST_CASE("attention over a sequence longer than a block of any kind agrees with the reference") {
  for (Precision p : {Precision::kFloat32, Precision::kBFloat16}) {
    const Twins t = make_twins(best_isa(), p);
    check(t, {{1, 1, 16}, {0, 700}, 0});
    check(t, {{1, 1, 16}, {0, 700}, 200});
  }
}

TEST_CASE("a NaN among the queries reaches the output and the gradients") {
  for_each_path([](const Twins& t) {
    Rng rng(13);
    const HeadShape heads{1, 1, 16};
    TwinStorage qkv = t.random(area(20, heads.width()), rng), out = t.empty(area(20, 16));
    qkv.put(area(19, heads.width()), NAN);
    const std::vector<int32_t> starts = {0, 20};
    t.fast->attention_forward({.shape = heads,
                               .qkv = qkv.data(),
                               .out = out.data(),
                               .stats = nullptr,
                               .starts = starts,
                               .window = 0,
                               .scale = 0.25f});
    CHECK(std::isnan(out[area(19, 16)]));
    CHECK(!std::isnan(out[area(18, 16)]));
  });
}

TEST_CASE("head norms and rotation agree with the reference, forward and backward") {
  for_each_path([](const Twins& t) {
    for (const HeadShape& heads : {HeadShape{2, 1, 32}, HeadShape{3, 3, 20}, HeadShape{2, 2, 6}})
      for (bool norm : {false, true})
        for (bool table : {false, true}) check_rotary(t, heads, norm, table);
  });
}
