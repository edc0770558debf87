// What each form of gradients and weights saves, and costs in time and in loss.
//   gradient_formats speed
//   gradient_formats loss [--preset tiny] [--steps N] [--trainers 4] [--seeds 1,2,3] [--threads 2]
//                    [--data data/tinyshakespeare] GRADIENTS/WEIGHTS[/H[/RATE/MOMENTUM]] ...
// `loss` trains the preset once for each line and seed; the first line is what the others are held
// against: fp32/exact.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <sstream>
#include <thread>

#include "base/rng.h"
#include "model/parameters.h"
#include "simulated_trainers.h"
#include "train/gradient_codec.h"

using namespace fastserve;

namespace {

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// The preset `small`'s 12M parameters, one core.
int speed() {
  ModelConfig model = find_preset("small").value().spec.model;
  model.vocab_size = 4096;
  const ParameterLayout layout(model);
  const auto tiles = TrainWeights::tiles_of(model, layout);
  Rng rng(1);
  std::vector<float> values(layout.elements());
  for (float& value : values) value = static_cast<float>(rng.normal() * std::exp(rng.normal()));
  fmt::print("{:14} {:>12} {:>12} {:>12} {:>14}\n", "", "bytes/value", "encode GB/s", "decode GB/s",
             "feedback MB");
  for (const char* name : {"fp32", "bf16", "fp16", "int8", "topk:0.1", "topk:0.01", "topk:0.001",
                           "sign", "lowrank:1", "lowrank:4", "lowrank:16"}) {
    const GradientCodec codec(GradientFormat::parse(name).value(), tiles);
    const auto slice = std::span(values).subspan(codec.begin(), codec.elements());
    std::vector<float> read(codec.elements());
    std::vector<std::byte> frame(codec.encoded_bytes());
    ErrorFeedback feedback;
    std::vector<double> encode, decode;
    for (int turn = 0; turn < 9; turn++) {
      encode.push_back(seconds_of([&] { FS_CHECK(codec.encode(slice, feedback, frame).ok()); }));
      decode.push_back(seconds_of([&] { FS_CHECK(codec.decode(frame, read).ok()); }));
    }
    const double gigabytes = static_cast<double>(slice.size_bytes()) * 1e-9;
    fmt::print("{:14} {:12.4f} {:12.2f} {:12.2f} {:14.1f}\n", name,
               static_cast<double>(frame.size()) / static_cast<double>(layout.trainable()),
               gigabytes / median(encode), gigabytes / median(decode),
               static_cast<double>(feedback.bytes()) * 1e-6);
  }
  return 0;
}

struct Options {
  std::string preset = "tiny", data = "data/tinyshakespeare";
  int64_t steps = 0;
  int trainers = 4, threads = 2;
  std::vector<uint64_t> seeds = {1};
  std::vector<Wire> wires;
};

Result<Options> parse(const std::vector<std::string>& arguments) {
  Options options;
  for (size_t i = 0; i < arguments.size(); i++) {
    const std::string& name = arguments[i];
    if (!name.starts_with("--")) {
      FS_ASSIGN(options.wires.emplace_back(), Wire::parse(name));
      continue;
    }
    if (++i == arguments.size())
      return Error{ErrorCode::kInvalidArgument, "needs a value", name, ""};
    const std::string& value = arguments[i];
    if (name == "--preset")
      options.preset = value;
    else if (name == "--data")
      options.data = value;
    else if (name == "--steps")
      options.steps = std::atoll(value.c_str());
    else if (name == "--trainers")
      options.trainers = std::atoi(value.c_str());
    else if (name == "--threads")
      options.threads = std::atoi(value.c_str());
    else if (name == "--seeds") {
      options.seeds.clear();
      std::istringstream list(value);
      for (std::string seed; std::getline(list, seed, ',');)
        options.seeds.push_back(std::strtoull(seed.c_str(), nullptr, 10));
    } else {
      return Error{ErrorCode::kInvalidArgument, "is no option", name, ""};
    }
  }
  if (options.wires.empty()) {
    FS_ASSIGN(options.wires.emplace_back(), Wire::parse("fp32/exact"));
  }
  return options;
}

void print_row(const Wire& wire, std::span<const Trained> runs, std::span<const Trained> first) {
  double change = 0, loss = 0;
  std::string losses;
  for (size_t s = 0; s < runs.size(); s++) {
    losses += fmt::format(" {:.4f}", runs[s].validation_loss);
    loss += runs[s].validation_loss / static_cast<double>(runs.size());
    change += (runs[s].validation_loss / first[s].validation_loss - 1) * 100 /
              static_cast<double>(runs.size());
  }
  const Trained& run = runs[0];
  fmt::print(
      "| {} | {:.4f} | {:.4f} | {:.1f} | {:.4f} | {:+.2f} % |{} | {:.0f} |\n", wire.text,
      run.sent_bytes, run.received_bytes,
      (first[0].sent_bytes + first[0].received_bytes) / (run.sent_bytes + run.received_bytes), loss,
      change, losses, run.seconds);
}

Status loss(const Options& options) {
  FS_ASSIGN(const SimulatedJob job,
            SimulatedJob::prepare(options.preset, options.data, options.steps));
  fmt::print("{}: {} parameters, {} steps of {} tokens, {} trainers\n", options.preset,
             count_parameters(job.spec.model), job.spec.steps, job.plan.tokens_per_step,
             options.trainers);
  fmt::print("| wire | sent B | received B | x fewer | loss | change | by seed | seconds |\n");
  const size_t seeds = options.seeds.size(), runs = options.wires.size() * seeds;
  std::vector<Trained> trained(runs);
  std::vector<size_t> left(options.wires.size(), seeds);
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  Status status;
  size_t printed = 0;
  const auto work = [&] {
    for (size_t i = next++; i < runs; i = next++) {
      auto result = train_simulated(job, options.wires[i / seeds], options.trainers,
                                    options.seeds[i % seeds]);
      const std::lock_guard lock(mutex);
      if (!result.ok()) {
        status = std::move(result).error();
        return;
      }
      trained[i] = *result;
      left[i / seeds]--;
      for (; printed < left.size() && left[printed] == 0; printed++) {
        print_row(options.wires[printed], std::span(trained).subspan(printed * seeds, seeds),
                  std::span(trained).first(seeds));
        std::fflush(stdout);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < options.threads; i++) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments == std::vector<std::string>{"speed"}) return speed();
  if (arguments.empty() || arguments[0] != "loss") {
    fmt::print(stderr, "gradient_formats speed | loss [options] [GRADIENTS/WEIGHTS[/H] ...]\n");
    return 2;
  }
  const auto options = parse({arguments.begin() + 1, arguments.end()});
  const Status status = options.ok() ? loss(*options) : Status(options.error());
  if (!status.ok()) fmt::print(stderr, "gradient_formats: {}\n", status.error().message());
  return status.ok() ? 0 : 1;
}
