// Tokens drawn on the GPU, beside the server's sampler.
#include <doctest/doctest.h>

#include <cmath>

#include "base/rng.h"
#include "gpu/sampling.h"
#include "gpu/simt/emulated_runtime.h"
#include "serve/sampler.h"

namespace fastserve::gpu {
namespace {

/// One row of logits with ties in it.
std::vector<float> some_logits(int vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& v : logits) v = static_cast<float>(std::round(rng.normal() * 6) / 2);
  return logits;
}

std::vector<int32_t> draw(std::span<const float> logits, SampleRow how,
                          std::span<const double> uniforms, const simt::Options& options = {}) {
  const auto runtime = simt::make_emulated_runtime(options);
  Workspace workspace(*runtime);
  std::vector<SampleRow> rows;
  std::vector<float> all;
  for (const double u : uniforms) {
    how.uniform = u;
    rows.push_back(how);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  std::vector<int32_t> tokens(uniforms.size());
  const int vocab = static_cast<int>(logits.size());
  sample_tokens(*runtime, workspace, all.data(), vocab, vocab, rows, tokens);
  CHECK(runtime->sync().ok());
  return tokens;
}

/// The place in [0, 1] that `token` has when kept tokens lie side by side by id.
std::pair<double, double> place(std::span<const double> probabilities, int32_t token) {
  double before = 0;
  for (int32_t i = 0; i < token; ++i) before += probabilities[static_cast<size_t>(i)];
  return {before, before + probabilities[static_cast<size_t>(token)]};
}

}  // namespace

TEST_CASE("tokens that the host has not seen are put where the next step reads them") {
  const auto runtime = simt::make_emulated_runtime({});
  std::vector<int32_t> tokens = {5, ~0, ~2, ~1, 0, ~2}, drawn = {9, -1, 4};
  std::vector<int32_t> expected = {5, 9, 4, 0, 0, 4};
  for (int i = 0; i < 300; ++i) {
    tokens.push_back(i % 3 == 0 ? ~2 : i);
    expected.push_back(i % 3 == 0 ? 4 : i);
  }
  feed_tokens(*runtime, tokens.data(), drawn.data(), static_cast<int>(tokens.size()));
  CHECK(runtime->sync().ok());
  CHECK(tokens == expected);
}

TEST_CASE("the GPU draws each token where the server's distribution has it") {
  struct Setting {
    double temperature;
    int top_k;
    double top_p, min_p;
  };
  std::vector<double> uniforms = {0, 0.999999};
  for (int i = 0; i < 14; ++i) uniforms.push_back((i + 0.37) / 14);
  for (const int vocab : {5, 300, 1111})
    for (const Setting& s : {Setting{1, 0, 1, 0},
                             {0.7, 5, 1, 0},
                             {1.3, 0, 0.8, 0},
                             {1, 40, 0.5, 0},
                             {1, 0, 1, 0.2},
                             {2, 20, 0.9, 0.05},
                             {1, 1, 1, 0},
                             {1, 0, 0.01, 0}}) {
      CAPTURE(vocab);
      CAPTURE(s.top_k);
      CAPTURE(s.top_p);
      CAPTURE(s.min_p);
      const std::vector<float> logits = some_logits(vocab, static_cast<uint64_t>(vocab));
      SamplingParameters parameters;
      parameters.temperature = s.temperature;
      parameters.top_k = s.top_k;
      parameters.top_p = s.top_p;
      parameters.min_p = s.min_p;
      const auto probabilities = filtered_probabilities(logits, parameters, {}).value();
      const SampleRow how{static_cast<float>(s.temperature), s.top_k, static_cast<float>(s.top_p),
                          static_cast<float>(s.min_p), 0};
      const std::vector<int32_t> tokens = draw(logits, how, uniforms);
      for (size_t i = 0; i < tokens.size(); ++i) {
        REQUIRE(tokens[i] >= 0);
        REQUIRE(probabilities[static_cast<size_t>(tokens[i])] > 0);
        // Weights are floats' exponentials: their sums are off by a few 2^-24.
        const auto [begin, end] = place(probabilities, tokens[i]);
        CHECK(begin <= uniforms[i] + 1e-6);
        CHECK(end >= uniforms[i] - 1e-6);
      }
      const simt::Options shuffled{.order = simt::Order::kShuffled, .seed = 9};
      CHECK(draw(logits, how, uniforms, shuffled) == tokens);
    }
}

TEST_CASE("a cold GPU takes the likeliest token, of equal ones the lowest id") {
  std::vector<float> logits(700, -1.0f);
  logits[333] = logits[500] = 4;
  CHECK(draw(logits, {0, 0, 1, 0, 0}, std::vector<double>{0.9}) == std::vector<int32_t>{333});
}

TEST_CASE("logits that are not finite give no token") {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> logits(40, 0.0f);
    logits[17] = bad;
    CHECK(draw(logits, {1, 0, 1, 0, 0}, std::vector<double>{0.5}) == std::vector<int32_t>{-1});
  }
}

}  // namespace fastserve::gpu
