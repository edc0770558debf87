// One training pass's worth of ops with different numbers of lanes.
#include "twins.h"

using namespace fastserve;
using namespace fastserve::twins;

namespace {

constexpr int kRows = 200, kIn = 100, kOut = 300;
const HeadShape kHeads{4, 2, 20};  // width 160

/// Everything an op wrote, one after another.
struct Results {
  std::vector<TwinStorage> compute;
  std::vector<std::vector<float>> floats;
  std::vector<double> losses;
  bool operator==(const Results&) const = default;
};

class Pass {
 public:
  Pass(Isa isa, Precision precision, int lanes) : t_(make_twins(isa, precision, lanes)) {}

  Results run() {
    const std::vector<float> masters = floats(area(kOut, kIn));
    weight_ = t_.fast->make_matrix(kOut, kIn);
    t_.fast->pack(*weight_, 0, kOut, masters.data());
    multiply();
    attend();
    normalise();
    classify();
    return std::move(results_);
  }

 private:
  std::vector<float> floats(size_t n) { return random_floats(n, rng_); }
  TwinStorage& out(size_t n) { return results_.compute.emplace_back(t_.precision, n); }
  std::vector<float>& float_out(std::vector<float> before) {
    return results_.floats.emplace_back(std::move(before));
  }

  void multiply() {
    const TwinStorage x = t_.random(area(kRows, kIn), rng_), dy = t_.random(area(kRows, kOut), rng_);
    const std::vector<float> bias = floats(kOut);
    for (MatmulEpilogue e : {MatmulEpilogue::kGelu, MatmulEpilogue::kSwiGlu}) {
      const int width = e == MatmulEpilogue::kGelu ? kOut : kOut / 2;
      results_.compute.reserve(32);
      TwinStorage &y = out(area(kRows, width)), &slope = out(area(kRows, kOut));
      t_.fast->matmul_forward({weight_.get(), x.data(), kRows, kIn, bias.data(), e, y.data(), width,
                               nullptr, slope.data()});
    }
    t_.fast->matmul_backward_input({weight_.get(), dy.data(), kRows, kOut,
                                    InputGradEpilogue::kStore, out(area(kRows, kIn)).data(), kIn});
    results_.floats.reserve(32);
    float* dweight = float_out(floats(area(kOut, kIn))).data();
    float* dbias = float_out(floats(kOut)).data();
    t_.fast->matmul_backward_weight(
        {dy.data(), x.data(), kRows, kOut, kIn, kOut, kIn, dweight, dbias, /*accumulate=*/true});
  }

  void attend() {
    const std::vector<int32_t> starts = {0, 70, 73, kRows};
    std::vector<int32_t> positions(kRows);
    for (int r = 0; r < kRows; r++) positions[static_cast<size_t>(r)] = r % 50;
    const TwinStorage qkv = t_.random(area(kRows, kHeads.width()), rng_);
    const TwinStorage dout = t_.random(area(kRows, 80), rng_);
    const std::vector<float> table = floats(area(50, 20)), norm = floats(20);
    std::vector<float> stats(area(kRows, 6));
    const RotaryForward rotary{kHeads,      qkv.data(),  out(qkv.size()).data(),
                               kRows,       positions,   table.data(),
                               norm.data(), norm.data(), 1e-5f,
                               stats.data()};
    t_.fast->rotary_forward(rotary);
    float* softmax = float_out(std::vector<float>(2 * area(kRows, 4))).data();
    const AttentionForward forward{kHeads, rotary.out, out(area(kRows, 80)).data(), softmax, starts,
                                   30,     0.2f};
    t_.fast->attention_forward(forward);
    void* dqkv = out(qkv.size()).data();
    t_.fast->attention_backward({forward, dout.data(), dqkv});
    float *dq_norm = float_out(floats(20)).data(), *dk_norm = float_out(floats(20)).data();
    t_.fast->rotary_backward({rotary, dqkv, dq_norm, dk_norm});
  }

  void normalise() {
    const std::vector<float> x = floats(area(kRows, kIn)), dy = floats(x.size());
    const std::vector<float> weight = floats(kIn);
    float* stats = float_out(std::vector<float>(2 * kRows)).data();
    t_.fast->norm_forward({NormKind::kLayerNorm, x.data(), weight.data(), weight.data(), 1e-5f,
                           kRows, kIn, out(x.size()).data(), stats});
    float* dx = float_out(floats(x.size())).data();
    float *dweight = float_out(floats(kIn)).data(), *dbias = float_out(floats(kIn)).data();
    t_.fast->norm_backward({NormKind::kLayerNorm, dy.data(), x.data(), weight.data(), stats, kRows,
                            kIn, dx, true, out(x.size()).data(), dweight, dbias});
    std::vector<int32_t> tokens(kRows);
    for (int32_t& token : tokens) token = static_cast<int32_t>(rng_.below(6));
    float* dtable = float_out(floats(area(6, kIn))).data();
    t_.fast->embed_backward({tokens, tokens, dx, dtable, nullptr, kIn});
  }

  void classify() {
    const TwinStorage x = t_.random(area(kRows, kIn), rng_);
    std::vector<int32_t> targets(kRows);
    for (int32_t& target : targets) target = static_cast<int32_t>(rng_.below(kOut + 1)) - 1;
    results_.losses.resize(kRows);
    t_.fast->classifier_loss({weight_.get(), x.data(), kRows, targets, results_.losses.data(),
                              out(area(kRows, 320)).data(), 320, 3.0f});
  }

  Twins t_;
  Rng rng_{18};
  std::unique_ptr<TrainMatrix> weight_;
  Results results_;
};

}  // namespace

TEST_CASE("every op's bits are the same for 1, 2, 3 and 5 lanes") {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16})
    for (Precision precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
      if (isa > best_isa()) continue;
      CAPTURE(isa_name(isa));
      CAPTURE(precision_name(precision));
      const Results one = Pass(isa, precision, 1).run();
      for (int lanes : {2, 3, 5}) CHECK(Pass(isa, precision, lanes).run() == one);
    }
}
