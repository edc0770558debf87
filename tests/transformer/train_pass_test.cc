// The training pass as a user of it sees it.
#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>

#include "cpu/cpu_device.h"
#include "tests/transformer/tiny_models.h"

namespace fastserve {
namespace {

std::unique_ptr<Device> fast_device(int lanes = 1) {
  return make_cpu_device({.lanes = lanes, .isa = best_isa()}).value();
}

double norm(std::span<const float> x) {
  double sum = 0;
  for (float v : x) sum += double(v) * v;
  return std::sqrt(sum);
}

double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE(
    "a step along the gradient changes the loss as the gradient says, in every architecture") {
  const auto device = make_reference_device();
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    TinyTrainer trainer(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const Microbatch batch = tiny_batch(trainer.config, {17, 1, 9}, 5);
    const std::vector<float> grad = trainer.gradient(batch),
                             start = tiny_weights(trainer.layout, 7);
    // One direction per parameter tensor, so that a wrong one cannot hide behind the others.
    for (const Parameter& p : trainer.layout.parameters()) {
      CAPTURE(p.name);
      const double length = norm({grad.data() + p.offset, p.size()});
      const double step = 2e-3;
      double loss[2];
      for (int side : {0, 1}) {
        std::vector<float> moved = start;
        for (size_t i = p.offset; i < p.offset + p.size() && length > 1e-4; ++i)
          moved[i] += static_cast<float>((side ? step : -step) * grad[i] / length);
        trainer.load(moved);
        loss[side] = trainer.pass->run(*trainer.weights, batch, 1, nullptr);
      }
      const double slope = (loss[1] - loss[0]) / (2 * step);
      // Losses of some 27 tokens are exact to about 1e-5; the rest is the loss's curvature.
      if (length > 1e-4) CHECK(std::abs(slope - length) <= 2e-2 * length + 1e-2);
    }
  }
}

TEST_CASE("run overwrites the whole gradient, and the gaps between blocks stay zero") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    TinyTrainer trainer(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const std::vector<float> grad = trainer.gradient(tiny_batch(trainer.config, {12, 20}, 6));
    size_t end = 0;
    const auto gap_is_zero = [&](size_t to) {
      for (; end < to; ++end) CHECK(grad[end] == 0.0f);
    };
    for (const Parameter& p : trainer.layout.parameters()) {
      gap_is_zero(p.offset);
      for (size_t i = 0; i < p.size(); ++i) CHECK(std::abs(grad[p.offset + i]) < 1000.0f);
      end = p.offset + p.size();
    }
    gap_is_zero(grad.size());
  }
}

TEST_CASE("gradients of sequences packed together are the sum of each one's") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    TinyTrainer trainer(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const Microbatch both = tiny_batch(trainer.config, {14, 23}, 8);
    std::vector<float> sum(trainer.layout.elements());
    double loss = 0;
    for (size_t s : {0, 1}) {
      Microbatch one;
      for (int r = both.starts[s]; r < both.starts[s + 1]; ++r) {
        one.tokens.push_back(both.tokens[static_cast<size_t>(r)]);
        one.targets.push_back(both.targets[static_cast<size_t>(r)]);
      }
      one.starts = {0, static_cast<int32_t>(one.tokens.size())};
      const std::vector<float> grad = trainer.gradient(one);
      loss += trainer.loss;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += grad[i];
    }
    const std::vector<float> together = trainer.gradient(both);
    CHECK(trainer.loss == doctest::Approx(loss).epsilon(1e-6));
    CHECK(distance(together, sum) <= 1e-5 * norm(sum));
  }
}

TEST_CASE("the scale multiplies the gradient and leaves the loss alone") {
  const auto device = fast_device();
  TinyTrainer trainer(*device, tiny_config(Architecture::kLlama), Precision::kFloat32, 64);
  const Microbatch batch = tiny_batch(trainer.config, {30}, 9);
  std::vector<float> plain = trainer.gradient(batch);
  const double loss = trainer.loss;
  const std::vector<float> scaled = trainer.gradient(batch, 1024);
  CHECK(trainer.loss == loss);
  for (float& g : plain) g *= 1024;
  CHECK(distance(scaled, plain) <= 1e-6 * norm(plain));
}

TEST_CASE("bf16 and fp16 gradients point where fp32's do") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    TinyTrainer exact(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const Microbatch batch = tiny_batch(exact.config, {40, 11}, 10);
    const std::vector<float> truth = exact.gradient(batch);
    // A few roundings of relative 2^-9 and 2^-12 on the way through two layers and back.
    for (const auto& [precision, tolerance] :
         {std::pair{Precision::kBFloat16, 5e-2}, {Precision::kFloat16, 8e-3}}) {
      CAPTURE(precision_name(precision));
      TinyTrainer trainer(*device, exact.config, precision, 64);
      CHECK(distance(trainer.gradient(batch), truth) <= tolerance * norm(truth));
      CHECK(trainer.loss == doctest::Approx(exact.loss).epsilon(tolerance));
    }
  }
}

TEST_CASE("a pass gives the same bits again, for any number of lanes and any room to spare") {
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    const auto one = fast_device(1), two = fast_device(2);
    const ModelConfig config = tiny_config(Architecture::kQwen3);
    const Microbatch batch = tiny_batch(config, {40, 25, 3}, 11);
    TinyTrainer trainer(*one, config, precision, 68), shared(*two, config, precision, 200);
    const std::vector<float> first = trainer.gradient(batch);
    trainer.gradient(tiny_batch(config, {9}, 12));
    CHECK(trainer.gradient(batch) == first);
    CHECK(shared.gradient(batch) == first);
    CHECK(shared.loss == trainer.loss);
  }
}

namespace {

/// Brings each weight when it is asked for and not before, and looks at each gradient when it is
/// told of.
class StrictFlow final : public PassFlow {
 public:
  StrictFlow(TinyTrainer& trainer, std::span<const float> weights, std::span<const float> grad,
             int refused_at = -1)
      : trainer_(trainer), weights_(weights), grad_(grad), refused_at_(refused_at) {}
  bool await_weights(size_t end) override {
    CHECK(end >= here_);
    if (asked_++ == refused_at_) return false;
    std::copy(weights_.begin() + static_cast<ptrdiff_t>(here_),
              weights_.begin() + static_cast<ptrdiff_t>(end),
              trainer_.weights->masters().begin() + static_cast<ptrdiff_t>(here_));
    for (const TrainWeights::Tile& tile : trainer_.weights->tiles())
      if (tile.offset >= here_ && tile.offset < end) {
        CHECK(tile.offset + tile.size <= end);
        trainer_.weights->refresh(tile, *trainer_.ops);
      }
    here_ = end;
    return true;
  }
  void gradient_final(size_t from) override {
    CHECK(from < finals_.back());
    told_.insert(told_.begin(), grad_.begin() + static_cast<ptrdiff_t>(from),
                 grad_.begin() + static_cast<ptrdiff_t>(finals_.back()));
    finals_.push_back(from);
  }
  const std::vector<float>& told() const { return told_; }
  int asked() const { return asked_; }
  size_t steps() const { return finals_.size() - 1; }

 private:
  TinyTrainer& trainer_;
  const std::span<const float> weights_, grad_;
  const int refused_at_;
  size_t here_ = 0;
  int asked_ = 0;
  std::vector<size_t> finals_{grad_.size()};
  std::vector<float> told_;
};

}  // namespace

TEST_CASE(
    "a pass goes forward on weights that are still coming, and its gradient out before it ends") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures)
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      CAPTURE(architecture_name(architecture));
      TinyTrainer trainer(*device, tiny_config(architecture), precision, 64);
      const Microbatch batch = tiny_batch(trainer.config, {17, 1, 9}, 5);
      const std::vector<float> expected = trainer.gradient(batch),
                               weights = tiny_weights(trainer.layout, 7);
      const double loss = trainer.loss;
      trainer.load(std::vector<float>(weights.size(), std::nanf("")));
      std::vector<float> grad(weights.size(), 12345.0f);
      StrictFlow flow(trainer, weights, grad);
      CHECK(trainer.pass->run(*trainer.weights, batch, 1, grad.data(), {}, &flow) == loss);
      CHECK(flow.told() == expected);
      CHECK(flow.asked() == 2 + trainer.config.layers);
      CHECK(flow.steps() >= size_t(2 * trainer.config.layers) + 1);
    }
}

TEST_CASE("a pass whose weights do not come stops where it would read them") {
  const auto device = fast_device();
  TinyTrainer trainer(*device, tiny_config(Architecture::kLlama), Precision::kFloat32, 64);
  const Microbatch batch = tiny_batch(trainer.config, {17}, 5);
  const std::vector<float> weights = tiny_weights(trainer.layout, 7);
  for (int at = 0; at < 2 + trainer.config.layers; at++) {
    std::vector<float> grad(weights.size());
    StrictFlow flow(trainer, weights, grad, at);
    trainer.pass->run(*trainer.weights, batch, 1, grad.data(), {}, &flow);
    CHECK(flow.asked() == at + 1);
    CHECK(flow.steps() == 0);
  }
}

TEST_CASE("each row's loss is reported, zero where its target is not counted") {
  const auto device = fast_device();
  TinyTrainer trainer(*device, tiny_config(Architecture::kGpt2), Precision::kFloat32, 64);
  const Microbatch batch = tiny_batch(trainer.config, {13, 8}, 13);
  std::vector<double> losses(batch.tokens.size(), -1);
  const double sum = trainer.pass->run(*trainer.weights, batch, 1, nullptr, losses);
  double total = 0;
  int64_t counted = 0;
  for (size_t r = 0; r < losses.size(); ++r) {
    CHECK((losses[r] == 0) == (batch.targets[r] < 0));
    total += losses[r];
    counted += batch.targets[r] >= 0;
  }
  CHECK(total == doctest::Approx(sum));
  CHECK(counted == batch.counted());
}

TEST_CASE("the tap shows every matrix its input, under its Hugging Face name") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(architecture_name(architecture));
    TinyTrainer trainer(*device, tiny_config(architecture), Precision::kFloat32, 64);
    const Microbatch batch = tiny_batch(trainer.config, {21}, 14);
    std::map<std::string, std::vector<float>, std::less<>> seen;
    trainer.pass->set_tap([&](std::string_view name, const float* x, int rows, int channels) {
      CHECK(rows == 21);
      CHECK(seen.emplace(name, std::vector<float>(x, x + rows * channels)).second);
    });
    trainer.pass->run(*trainer.weights, batch, 1, nullptr);
    trainer.pass->set_tap({});
    std::set<std::string> expected;
    for (const Parameter& p : trainer.layout.parameters()) {
      const bool look_up =
          p.name == "transformer.wpe.weight" ||
          (p.offset == trainer.layout.token_embedding().offset && !trainer.config.tied_embeddings);
      if (!p.decay || look_up) continue;
      expected.insert(p.name);
      REQUIRE(seen.contains(p.name));
      CHECK(seen.find(p.name)->second.size() == 21 * static_cast<size_t>(p.cols));
    }
    CHECK(seen.size() == expected.size());
    const Parameter& head = trainer.layout.parameters().back();
    if (head.name == "lm_head.weight") CHECK(seen["lm_head.weight"] == trainer.pass->hidden(2));
  }
}

TEST_CASE("tiles cover every parameter once, in order, and repacking them follows the masters") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures) {
    ModelConfig config = tiny_config(architecture);
    config.vocab_size = 200;  // more than one tile
    TinyTrainer trainer(*device, config, Precision::kFloat32, 64);
    size_t end = 0, covered = 0;
    for (const TrainWeights::Tile& tile : trainer.weights->tiles()) {
      CHECK(tile.offset >= end);
      CHECK(tile.rows <= TrainWeights::kRows);
      end = tile.offset + tile.size;
      covered += tile.size;
    }
    CHECK(covered == trainer.layout.trainable());

    const Microbatch batch = tiny_batch(config, {22}, 15);
    const std::vector<float> other = tiny_weights(trainer.layout, 99);
    trainer.load(other);
    const double expected = trainer.pass->run(*trainer.weights, batch, 1, nullptr);
    TinyTrainer tiled(*device, config, Precision::kFloat32, 64);
    std::copy(other.begin(), other.end(), tiled.weights->masters().begin());
    for (const TrainWeights::Tile& tile : tiled.weights->tiles())
      tiled.weights->refresh(tile, *tiled.ops);
    CHECK(tiled.pass->run(*tiled.weights, batch, 1, nullptr) == expected);
  }
}

TEST_CASE("a pass that computes its layers again gives the same bits in less memory") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures)
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
      CAPTURE(architecture_name(architecture));
      ModelConfig config = tiny_config(architecture);
      config.layers = 4;
      config.intermediate_sizes = {20, 13, 9, 20};
      const Microbatch batch = tiny_batch(config, {17, 1, 9}, 5);
      TinyTrainer kept(*device, config, precision, 30), again(*device, config, precision, 30);
      again.pass =
          TrainPass::create(*device, *again.ops, config, again.layout, 30, Recompute::kLayer)
              .value();
      CHECK(again.gradient(batch) == kept.gradient(batch));
      CHECK(again.loss == kept.loss);
      for (int l = 0; l <= config.layers; ++l) CHECK(again.pass->hidden(l) == kept.pass->hidden(l));
      CHECK(again.pass->logits(*again.weights) == kept.pass->logits(*kept.weights));
      CHECK(again.pass->bytes() * 3 < kept.pass->bytes() * 2);
    }
}

TEST_CASE("a layer that is computed again is shown to the tap once") {
  const auto device = fast_device();
  const ModelConfig config = tiny_config(Architecture::kLlama);
  TinyTrainer trainer(*device, config, Precision::kFloat32, 30);
  std::map<std::string, int> seen[2];
  for (const bool again : {false, true}) {
    trainer.pass = TrainPass::create(*device, *trainer.ops, config, trainer.layout, 30,
                                     again ? Recompute::kLayer : Recompute::kNone)
                       .value();
    trainer.pass->set_tap(
        [&](std::string_view name, const float*, int, int) { seen[again][std::string(name)]++; });
    trainer.gradient(tiny_batch(config, {5}, 5));
  }
  CHECK(seen[0] == seen[1]);
  CHECK(seen[0].size() > 4);
}

TEST_CASE("the memory estimate is what a pass then holds") {
  const auto device = fast_device();
  for (const Architecture architecture : kArchitectures)
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16})
      for (const int rows : {1, 64, 1000}) {
        TinyTrainer trainer(*device, tiny_config(architecture), precision, rows);
        const TrainMemory memory =
            TrainPass::estimate(trainer.config, trainer.layout, precision, rows);
        CHECK(memory.activations == trainer.pass->bytes());
        trainer.pass = TrainPass::create(*device, *trainer.ops, trainer.config, trainer.layout,
                                         rows, Recompute::kLayer)
                           .value();
        CHECK(
            TrainPass::estimate(trainer.config, trainer.layout, precision, rows, Recompute::kLayer)
                .activations == trainer.pass->bytes());
        CHECK(memory.masters == trainer.layout.elements() * 4);
        CHECK(memory.packed > 0);
      }
}

TEST_CASE("a pass without room for a token is refused") {
  const auto device = make_reference_device();
  const auto ops = device->make_train_ops(Precision::kFloat32);
  const ModelConfig config = tiny_config(Architecture::kLlama);
  const auto pass = TrainPass::create(*device, *ops, config, ParameterLayout(config), 0);
  REQUIRE_FALSE(pass.ok());
  CHECK(pass.error().code == ErrorCode::kInvalidArgument);
}

}  // namespace fastserve
