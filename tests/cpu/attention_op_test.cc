// Attention of packed sequences, forward and backward.
#include "tests/cpu/attention_cases.h"

namespace fastserve::harness {

using namespace attention_cases;

TEST_CASE("every path attends as the reference does, forward and backward") {
  check_train_op("attention", kShapes, run_attention);
}

TEST_CASE("a sequence's attention does not depend on its neighbours in the microbatch") {
  const HeadShape heads{2, 1, 32};
  for (const Precision precision : kPrecisions)
    for (const Isa isa : paths()) {
      const auto ops = device_of(isa, 1).make_train_ops(precision);
      Rng rng(32);
      constexpr int kRows = 37;
      const size_t wide = reference::at(kRows, heads.width()), n = reference::at(kRows, 64);
      Array qkv = random_compute(rng, precision, 2 * wide);
      Array dout = random_compute(rng, precision, 2 * n);
      const auto run = [&](int sequences) {
        std::vector<int32_t> starts;
        for (int s = 0; s <= sequences; ++s) starts.push_back(s * kRows);
        Array out = unwritten_compute(precision, 2 * n),
              dqkv = unwritten_compute(precision, 2 * wide);
        Array stats = unwritten_floats(4 * 2 * kRows);
        const AttentionForward forward{heads,  qkv.data(), out.data(), stats.floats(),
                                       starts, 0,          0.2f};
        ops->attention_forward(forward);
        ops->attention_backward({forward, dout.data(), dqkv.data()});
        Outputs outputs = {compute_output("out", precision, out, 1),
                           compute_output("dqkv", precision, dqkv, 1)};
        outputs[0].values.resize(n);
        outputs[1].values.resize(wide);
        return outputs;
      };
      require_same_bits(std::string("attention, ") + isa_name(isa), run(1), run(2));
    }
}

}  // namespace fastserve::harness
