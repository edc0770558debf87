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
  CHECK(tried == std::vector<std::string>{"int4-g128, neurons 25 %", "int4-g128",
                                          "int4-g32, neurons 50 %", "int4-g32"});
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

TEST_CASE("when nothing passes, or bounds contradict each other, the refusal says so") {
  CompressSpec spec;
  spec.max_perplexity = 4;
  const auto never = [](const CompressSpec&) -> Result<Measurement> {
    return Measurement{500, 8, 100};
  };
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}, never).error().hint, "loosen the bound"));
  spec.max_bytes = 10;
  CHECK(says(judge(spec, kBefore, {500, 8.4, 150}, never).error().hint, "pull apart"));
  const auto stopped = [](const CompressSpec&) -> Result<Measurement> {
    return Error{ErrorCode::kCancelled, "stopped", "", ""};
  };
  spec.max_bytes = 0;
  CHECK(judge(spec, kBefore, {500, 8.4, 150}, stopped).error().code == ErrorCode::kCancelled);
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
