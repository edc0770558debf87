#include "serve/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <numeric>

#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "serve/parity.h"

using namespace fastserve;

namespace {

std::vector<float> random_logits(int vocab, uint64_t seed, double spread = 3.0) {
  Rng rng(seed);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& x : logits) x = static_cast<float>(spread * rng.normal());
  return logits;
}

/// The processors in the plainest form: sort everything, double arithmetic.
std::vector<double> by_sorting(std::vector<float> logits, const SamplingParameters& p,
                               const std::vector<int32_t>& history) {
  std::vector<double> x(logits.begin(), logits.end());
  std::vector<int32_t> once = history;
  std::sort(once.begin(), once.end());
  once.erase(std::unique(once.begin(), once.end()), once.end());
  for (int32_t id : once) {
    double& v = x[static_cast<size_t>(id)];
    v = v < 0 ? v * p.repetition_penalty : v / p.repetition_penalty;
  }
  for (double& v : x) v /= p.temperature;
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  size_t kept = order.size();
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < kept) {
    kept = static_cast<size_t>(p.top_k);
    while (kept < order.size() && x[order[kept]] == x[order[kept - 1]]) ++kept;
  }
  const auto weight = [&](size_t rank) { return std::exp(x[order[rank]] - x[order[0]]); };
  const auto mass = [&](size_t n) {
    double sum = 0;
    for (size_t r = 0; r < n; ++r) sum += weight(r);
    return sum;
  };
  if (p.top_p < 1) {
    const double target = p.top_p * mass(kept);
    size_t n = 1;
    while (n < kept && mass(n) < target) ++n;
    kept = n;
  }
  while (kept > 1 && weight(kept - 1) < p.min_p) --kept;
  std::vector<double> out(x.size());
  for (size_t r = 0; r < kept; ++r) out[order[r]] = weight(r) / mass(kept);
  return out;
}

/// Float weights may end here.
constexpr double kSmallest = 1e-35;

void check_same(const std::vector<double>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() == expected.size());
  double error = 0;
  int misplaced = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error = std::max(error, std::abs(found[i] - expected[i]));
    misplaced += found[i] > 0 ? expected[i] == 0 : expected[i] > kSmallest;
  }
  CHECK(error <= 1e-5);
  CHECK(misplaced == 0);
}

std::vector<double> doubles(const Json& array) {
  std::vector<double> out;
  for (const Json& x : array.as_array()) out.push_back(x.as_double());
  return out;
}

}  // namespace

TEST_CASE("every processor gives Hugging Face's probabilities, alone and combined") {
  const Path folder = Path(FASTSERVE_SOURCE_DIR) / "tests/data/reference/sampling";
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    ++files;
    const Json json = Json::parse(read_file(entry.path()).value(), entry.path().string()).value();
    std::vector<float> logits;
    for (double x : doubles(*json.find("logits"))) logits.push_back(static_cast<float>(x));
    std::vector<int32_t> context;
    for (double x : doubles(*json.find("context_ids"))) context.push_back(static_cast<int32_t>(x));
    const Json& config = *json.find("config");
    const auto number = [&](const char* key) { return config.find(key)->as_double(); };
    for (const auto& [name, expected] : json.find("probs")->as_object()) {
      CAPTURE(entry.path().string());
      CAPTURE(name);
      SamplingParameters p;
      const bool all = name == "combined";
      if (all || name == "repetition_penalty") p.repetition_penalty = number("repetition_penalty");
      if (all || name == "temperature") p.temperature = number("temperature");
      if (all || name == "top_k") p.top_k = static_cast<int>(number("top_k"));
      if (all || name == "top_p") p.top_p = number("top_p");
      if (all || name == "min_p") p.min_p = number("min_p");
      check_same(filtered_probabilities(logits, p, context).value(), doubles(expected));
    }
  }
  CHECK(files == 3);
}

TEST_CASE("the whole reference set's sampling passes when it is there") {
  const char* set = std::getenv("FASTSERVE_REFERENCE");
  const Path root = set ? Path(set) : Path(FASTSERVE_SOURCE_DIR) / "../shared/reference";
  if (!std::filesystem::exists(root / "models")) return;
  for (const auto& entry : std::filesystem::directory_iterator(root / "models")) {
    if (!std::filesystem::exists(entry.path() / "reference.safetensors")) continue;
    const auto checks = check_sampling(entry.path());
    REQUIRE_MESSAGE(checks.ok(), checks.error().message());
    CHECK(checks->size() == 7);
    for (const SamplingCheck& check : *checks) {
      CAPTURE(entry.path().string());
      CAPTURE(check.quantity);
      CAPTURE(check.error);
      CHECK(check.passed);
    }
  }
}

TEST_CASE("the quick searches keep what sorting the whole vocabulary would keep") {
  for (const int vocab : {1, 2, 63, 64, 65, 1000, 5000})
    for (const double spread : {0.0, 0.05, 3.0, 30.0})
      for (const int k : {0, 1, 7, 50, 2000})
        for (const double p : {0.0, 0.3, 0.95, 1.0})
          for (const double min_p : {0.0, 0.07}) {
            CAPTURE(vocab);
            CAPTURE(spread);
            CAPTURE(k);
            CAPTURE(p);
            CAPTURE(min_p);
            const auto logits = random_logits(vocab, 7 + static_cast<uint64_t>(vocab), spread);
            SamplingParameters s;
            s.temperature = 0.8;
            s.top_k = k;
            s.top_p = p;
            s.min_p = min_p;
            s.repetition_penalty = 1.3;
            if (spread == 0.0 && p > 0 && p < 1) continue;  // sums that only rounding decides
            check_same(filtered_probabilities(logits, s, {{0, 0}}).value(),
                       by_sorting(logits, s, {0, 0}));
          }
}

TEST_CASE("tokens tied with the k-th stay, and of tokens tied at p the lower ids stay") {
  const std::vector<float> logits = {1, 2, 2, 2, 0, 2, 1, 1};
  SamplingParameters s;
  s.top_k = 2;
  CHECK(filtered_probabilities(logits, s, {}).value() ==
        std::vector<double>{0, 0.25, 0.25, 0.25, 0, 0.25, 0, 0});
  s.top_p = 0.6;
  const auto kept = filtered_probabilities(logits, s, {}).value();
  CHECK(kept[1] == doctest::Approx(1.0 / 3));
  CHECK(kept[3] == doctest::Approx(1.0 / 3));
  CHECK(kept[5] == 0);
}

TEST_CASE("temperature 0 takes the first of the likeliest tokens, whatever the seed") {
  std::vector<float> logits = random_logits(300, 1);
  logits[70] = logits[200] = 50;
  TokenSampler sampler(300);
  SamplingParameters s;
  s.temperature = 0;
  for (s.seed = 0; s.seed < 5; ++s.seed) CHECK(sampler.sample(logits, s, {}, 3)->token == 70);
}

TEST_CASE("a token depends on its seed and index, not on what was drawn before") {
  const std::vector<float> logits = random_logits(500, 2);
  SamplingParameters s;
  s.seed = 42;
  TokenSampler once(500), busy(500);
  std::vector<int32_t> first, again;
  for (int i = 0; i < 50; ++i) first.push_back(once.sample(logits, s, {}, i)->token);
  for (int i = 49; i >= 0; --i) {
    SamplingParameters other = s;
    other.top_k = 1 + i;
    other.seed = 9;
    REQUIRE(busy.sample(random_logits(500, 3), other, {{1, 2}}, i).ok());
    again.push_back(busy.sample(logits, s, {}, i)->token);
  }
  std::reverse(again.begin(), again.end());
  CHECK(first == again);
  s.seed = 43;
  std::vector<int32_t> other;
  for (int i = 0; i < 50; ++i) other.push_back(once.sample(logits, s, {}, i)->token);
  CHECK(first != other);
}

TEST_CASE("draws follow the probabilities") {
  const std::vector<float> logits = random_logits(200, 4, 1.5);
  for (const int k : {0, 20}) {
    SamplingParameters s;
    s.top_k = k;
    s.temperature = 0.9;
    const auto expected = filtered_probabilities(logits, s, {}).value();
    std::vector<int> count(200);
    TokenSampler sampler(200);
    const int draws = 40000;
    for (int i = 0; i < draws; ++i)
      ++count[static_cast<size_t>(sampler.sample(logits, s, {}, i)->token)];
    for (size_t i = 0; i < count.size(); ++i) {
      const double mean = draws * expected[i];
      CAPTURE(i);
      CHECK(std::abs(count[i] - mean) <= 5 * std::sqrt(mean) + 3);
    }
  }
}

TEST_CASE("logprobs are of the raw logits, and the most likely come first") {
  const std::vector<float> logits = random_logits(1000, 5);
  double total = 0;
  for (float x : logits) total += std::exp(double{x});
  SamplingParameters s;
  s.temperature = 0.3;
  s.repetition_penalty = 2;
  s.top_logprobs = 5;
  TokenSampler sampler(1000);
  const GeneratedToken token = sampler.sample(logits, s, {{1, 2, 3}}, 0).value();
  CHECK(token.logprob ==
        doctest::Approx(logits[static_cast<size_t>(token.token)] - std::log(total)).epsilon(1e-6));
  REQUIRE(token.top.size() == 5);
  auto sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (size_t i = 0; i < 5; ++i)
    CHECK(token.top[i].logprob == doctest::Approx(sorted[i] - std::log(total)).epsilon(1e-6));
  s.top_logprobs = -1;
  CHECK(sampler.sample(logits, s, {}, 0)->top.empty());
}

TEST_CASE("logits that are not finite are an error, not a token") {
  TokenSampler sampler(100);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), infinity}) {
    auto logits = random_logits(100, 6);
    logits[77] = bad;
    CHECK_FALSE(sampler.sample(logits, {}, {}, 0).ok());
  }
  CHECK_FALSE(sampler.sample(std::vector<float>(100, -infinity), {}, {}, 0).ok());
  auto masked = random_logits(100, 6);
  masked[3] = -infinity;
  CHECK(sampler.sample(masked, {}, {}, 0).ok());
}

TEST_CASE("absurd sampling values are refused by name") {
  const auto field = [](auto change) {
    SamplingParameters s;
    change(s);
    const Status status = s.validate();
    return status.ok() ? std::string("ok") : status.error().where;
  };
  CHECK(field([](auto&) {}) == "ok");
  CHECK(field([](auto& s) { s.temperature = std::nan(""); }) == "temperature");
  CHECK(field([](auto& s) { s.temperature = -1; }) == "temperature");
  CHECK(field([](auto& s) { s.top_k = -3; }) == "top_k");
  CHECK(field([](auto& s) { s.top_k = 1'000'000'000; }) == "top_k");
  CHECK(field([](auto& s) { s.top_p = 1.5; }) == "top_p");
  CHECK(field([](auto& s) { s.min_p = -0.1; }) == "min_p");
  CHECK(field([](auto& s) { s.repetition_penalty = 0; }) == "repetition_penalty");
  CHECK(field([](auto& s) { s.repetition_penalty = INFINITY; }) == "repetition_penalty");
  CHECK(field([](auto& s) { s.top_logprobs = 21; }) == "top_logprobs");
  SamplingParameters cold;
  cold.temperature = -1;
  CHECK(cold.validate().error().what == "-1 is not a number from 0 to 100");
}

TEST_CASE("a time limit in seconds is a number of them, and none when it is zero or endless") {
  for (const double bad : {-1.0, -0.001, std::nan(""), double{-INFINITY}})
    CHECK(timeout_from_seconds(bad).error().where == "timeout");
  CHECK(timeout_from_seconds(-1, "grace").error().where == "grace");
  for (const double none : {0.0, 1e300, double{INFINITY}})
    CHECK_FALSE(timeout_from_seconds(none).value().has_value());
  CHECK(timeout_from_seconds(1.5).value() == std::chrono::milliseconds(1500));
  CHECK(timeout_from_seconds(1e-300).value() == Nanoseconds{1});
}
