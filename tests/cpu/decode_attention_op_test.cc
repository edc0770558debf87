// Attention over the paged KV cache.
#include "tests/cpu/decode_attention_cases.h"

namespace fastserve::harness {

using namespace decode_attention_cases;

TEST_CASE("every path attends over a paged cache as the reference does") {
  check_decode_op("decode attention", shapes(), run_attention);
}

TEST_CASE(
    "a prompt's attention has the same bits whole, in chunks, token by token, and in company") {
  for (const KvType type : {KvType::kFloat16, KvType::kInt8, KvType::kFloat32})
    for (const int window : {0, 13})
      for (const Isa isa : paths()) {
        const auto ops = device_of(isa, 1).make_decode_ops();
        AttentionShape s{{4, 2, 64}, 16, type, window, true, false, {{{0, 0, 45}}}};
        const Outputs whole = run_attention(*ops, s);
        std::vector<std::vector<std::vector<Chunk>>> cuts = {
            {{{0, 0, 5}}, {{0, 5, 16}}, {{0, 21, 24}}}, {{{0, 0, 17}}, {{0, 17, 28}}}};
        auto& single = cuts.emplace_back();
        for (int t = 0; t < 45; ++t) single.push_back({{0, t, 1}});
        for (const auto& cut : cuts) {
          s.batches = cut;
          require_same_bits(std::string("chunked attention, ") + isa_name(isa), whole,
                            run_attention(*ops, s));
        }
        s.batches = {{{1, 0, 9}, {0, 0, 30}, {2, 0, 1}}, {{2, 1, 3}, {0, 30, 15}}};
        Outputs company = run_attention(*ops, s);
        const size_t row = 4 * 64;
        for (size_t layer : {0, 1}) {  // leave only sequence 0
          const auto from = company[0].values.begin() +
                            static_cast<ptrdiff_t>((layer * kSequences + 1) * kContext * row);
          std::fill_n(from, (kSequences - 1) * kContext * row, 0.0);
        }
        require_same_bits(std::string("attention in company, ") + isa_name(isa), whole, company);
      }
}

}  // namespace fastserve::harness
