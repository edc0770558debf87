#include "compress/contract.h"

#include <doctest/doctest.h>

#include <limits>

using namespace fastserve;

namespace {

const Measurement kBefore{1000, 8.0, 100};

bool says(const std::string& message, const char* words) {
  INFO(message);
  return message.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("a result inside every bound is published, and no bound means no refusal") {
  CompressSpec spec;
  CHECK(judge(spec, kBefore, {2000, 80.0, 1}).ok());
  spec.max_perplexity_increase = 0.01;
  spec.max_perplexity = 8.1;
  spec.max_bytes = 500;
  spec.min_tokens_per_second = 150;
  CHECK(judge(spec, kBefore, {500, 8.08, 150}).ok());
}

TEST_CASE("each broken bound is named with its figures") {
  CompressSpec spec;
  spec.max_perplexity_increase = 0.01;
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}).error().what,
             "rises by 5 % (8 to 8.4) and may rise by 1 %"));
  spec = {};
  spec.max_perplexity = 8.1;
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}).error().what, "8.4 (it was 8) and may be 8.1"));
  spec = {};
  spec.max_bytes = 400;
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}).error().what, "500 bytes"));
  spec = {};
  spec.min_tokens_per_second = 200;
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}).error().what,
             "150 tokens/s (it was 100) and should decode 200"));
  CHECK(judge(spec, kBefore, {500, 8.4, 150}).error().code == ErrorCode::kContractBroken);
}

TEST_CASE("a perplexity that is not a number breaks even a contract without bounds") {
  CHECK(!judge({}, kBefore, {500, std::numeric_limits<double>::quiet_NaN(), 150}).ok());
  CHECK(!judge({}, kBefore, {500, std::numeric_limits<double>::infinity(), 150}).ok());
}

TEST_CASE("the refusal says which gentler setting passes, having measured it") {
  CompressSpec spec;
  spec.weights = WeightFormat::kInt4Group128;
  spec.pruning = PruningKind::kNeurons;
  spec.sparsity = 0.5;
  spec.max_perplexity_increase = 0.02;
  std::vector<std::string> tried;
  const Status verdict =
      judge(spec, kBefore, {100, 12, 300}, [&](const CompressSpec& other) -> Result<Measurement> {
        tried.push_back(other.text());
        const bool gentle =
            other.pruning == PruningKind::kNone && other.weights == WeightFormat::kInt4Group32;
        return Measurement{200, gentle ? 8.1 : 9.0, 250};
      });
  CHECK(tried == std::vector<std::string>{"int4-g128, neurons 25 %", "int4-g128, neurons 12.5 %",
                                          "int4-g128", "int4-g32, neurons 50 %", "int4-g32"});
  CHECK(says(verdict.error().hint, "int4-g32 would pass: 200 B, perplexity 8.1, 250 tokens/s"));
  CHECK(verdict.error().where == "int4-g128, neurons 50 %");
}

TEST_CASE("when only the size is broken the refusal looks for something smaller") {
  CompressSpec spec;
  spec.max_bytes = 300;
  const Status verdict =
      judge(spec, kBefore, {500, 8.05, 150}, [&](const CompressSpec& other) -> Result<Measurement> {
        return Measurement{format_bits(other.weights) == 4 ? uint64_t{260} : uint64_t{500}, 8.3,
                           200};
      });
  CHECK(says(verdict.error().hint, "int4-g32 would pass"));
}

TEST_CASE("when size and quality are both broken the refusal looks for another way to be small") {
  CompressSpec spec;  // zeros cost quality and save nothing
  spec.weights = WeightFormat::kBFloat16;
  spec.pruning = PruningKind::kMagnitude;
  spec.sparsity = 0.9;
  spec.max_bytes = 600;
  spec.max_perplexity_increase = 0.01;
  const Status verdict =
      judge(spec, kBefore, {1000, 900, 100}, [&](const CompressSpec& other) -> Result<Measurement> {
        return Measurement{other.weights == WeightFormat::kBFloat16 ? uint64_t{1000} : 530, 8.01,
                           150};
      });
  CHECK(says(verdict.error().hint, "int8-g32 would pass: 530 B"));
}

TEST_CASE("a size between two formats of the same bits is found") {
  CompressSpec spec;
  spec.weights = WeightFormat::kInt8Group32;
  spec.max_bytes = 505;
  const Status verdict =
      judge(spec, kBefore, {531, 8, 100}, [&](const CompressSpec& other) -> Result<Measurement> {
        return Measurement{other.weights == WeightFormat::kInt8Row ? uint64_t{500} : 508, 8.01,
                           150};
      });
  CHECK(says(verdict.error().hint, "int8 would pass"));
  spec.weights = WeightFormat::kFloat32;
  const auto others = alternatives(spec, kBefore, {1000, 8, 100});
  REQUIRE_FALSE(others.empty());
  CHECK(others.front().text() == "bf16");
}

TEST_CASE("when nothing passes the refusal says what came nearest, with its figures") {
  CompressSpec spec;
  spec.weights = WeightFormat::kInt4Group32;
  spec.max_perplexity_increase = 0.01;
  const auto never = [](const CompressSpec& other) -> Result<Measurement> {
    return Measurement{500, other.weights == WeightFormat::kInt8Group32 ? 8.2 : 8.3, 100};
  };
  const Status verdict = judge(spec, kBefore, {500, 8.4, 150}, never);
  CHECK(says(verdict.error().hint, "the nearest being int8-g32 (500 B, perplexity 8.2"));
  CHECK(says(verdict.error().hint, "loosen the bound"));
  const auto stopped = [](const CompressSpec&) -> Result<Measurement> {
    return Error{ErrorCode::kCancelled, "stopped", "", ""};
  };
  CHECK(judge(spec, kBefore, {500, 8.4, 150}, stopped).error().code == ErrorCode::kCancelled);
}

TEST_CASE("a bound that the original breaks is said to be so, and nothing is tried") {
  CompressSpec spec;
  spec.max_perplexity = 4;
  int trials = 0;
  const Status verdict =
      judge(spec, kBefore, {500, 8.4, 150}, [&](const CompressSpec&) -> Result<Measurement> {
        trials++;
        return Measurement{500, 8, 100};
      });
  CHECK(says(verdict.error().hint, "the original itself has 8"));
  CHECK(trials == 0);
}

TEST_CASE("a spec that makes no sense is refused before any work") {
  CompressSpec spec;
  CHECK(spec.validate().ok());
  spec.pruning = PruningKind::kWanda;
  CHECK(says(spec.validate().error().message(), "wanda pruning needs a fraction"));
  spec.sparsity = 1.0;
  CHECK(!spec.validate().ok());
  spec.sparsity = std::numeric_limits<double>::quiet_NaN();
  CHECK(!spec.validate().ok());
  spec.sparsity = 0.5;
  CHECK(spec.validate().ok());
  spec.pruning = PruningKind::k2of4;
  CHECK(!spec.validate().ok());
  spec.sparsity = 0;
  spec.max_perplexity = -1;
  CHECK(!spec.validate().ok());
}

TEST_CASE("kinds of pruning and default heads have the names users type") {
  for (const char* name : {"none", "magnitude", "wanda", "2:4", "wanda-2:4", "neurons"})
    CHECK(std::string(pruning_kind_name(*parse_pruning_kind(name))) == name);
  CHECK(says(parse_pruning_kind("random").error().message(), "wanda-2:4"));
  CompressSpec spec;
  CHECK(spec.head_format() == WeightFormat::kInt8Row);
  spec.weights = WeightFormat::kInt4Group32;
  CHECK(spec.head_format() == WeightFormat::kInt8Group128);
}
