// Compression: a stored model, its text, a contract; a published variant or the reason why not.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "actors/compression_system.h"
#include "api/local_node.h"
#include "compress/compressor.h"
#include "compress/measure.h"
#include "cpu/cpu_device.h"
#include "model/huggingface.h"

namespace fastserve {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

constexpr size_t kHeldOutTokens = 65536;  // enough for a perplexity to three digits
constexpr size_t kCalibrationTokens = 32768;

/// Up to `limit` tokens in whole sequences of `length`, spread evenly over `tokens`.
Sequences cut(const TokenArray& tokens, size_t length, size_t limit) {
  const size_t there = tokens.size() / length,
               wanted = std::min(there, std::max<size_t>(1, limit / length));
  Sequences sequences;
  for (size_t i = 0; i < wanted; i++) {
    const size_t from = i * there / wanted * length;
    std::vector<int32_t> sequence(length);
    for (size_t t = 0; t < length; t++) sequence[t] = tokens[from + t];
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

struct Text {
  Sequences held_out, calibration;
};

/// The request's text, or what the model was trained on, split as training split it.
Result<Text> text_of(const CompressRequest& request, const StoredModel& model,
                     const ModelConfig& config) {
  Path data = request.data;
  double fraction = 0.1;
  if (const Json* spec = model.lineage.details.find("spec")) {
    FS_ASSIGN(fraction, spec->double_or("validation_fraction", fraction));
  }
  if (data.empty()) {
    FS_ASSIGN(const std::string recorded, model.lineage.details.string_or("data", ""));
    data = recorded;
  }
  if (data.empty() || !std::filesystem::exists(data))
    return Error{ErrorCode::kInvalidArgument,
                 data.empty() ? "has no record of the text it was trained on"
                              : "was trained on " + data.string() + ", which is not there",
                 model.ref.text(), "name held-out text with --data"};
  const auto tokenizer_json = model.bundle.documents.find("tokenizer.json");
  if (tokenizer_json == model.bundle.documents.end())
    return Error{ErrorCode::kInvalidArgument, "has no tokenizer.json", model.ref.text(),
                 "import it with its tokenizer"};
  FS_ASSIGN(const auto tokenizer,
            Tokenizer::from_json(tokenizer_json->second, model.ref.text() + "/tokenizer.json"));
  const int length = std::min(config.max_positions, 1024);
  FS_ASSIGN(const Dataset dataset,
            tokenise_corpus(data, *tokenizer, fraction > 0 ? fraction : 0.1, length));
  const auto n = static_cast<size_t>(length);
  Text text{cut(dataset.validation, n, kHeldOutTokens), cut(dataset.train, n, kCalibrationTokens)};
  if (text.held_out.empty())
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("leaves {} held-out tokens, fewer than a sequence of {}",
                             dataset.validation.size(), length),
                 data.string(), "give more text"};
  return text;
}

/// Rows over the lanes, handed out dynamically; the result does not depend on it.
ParallelFor over_threads(int lanes) {
  return [lanes](int64_t items, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i; (i = next.fetch_add(1)) < items;) body(i);
    };
    std::vector<std::thread> threads;
    for (int64_t t = 1; t < std::min<int64_t>(lanes, items); t++) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  };
}

}  // namespace

Result<CompressResult> LocalNode::compress(
    const CompressRequest& request,
    const std::function<void(std::string_view stage, double)>& progress, const CancelFlag& cancel) {
  FS_TRY(request.spec.validate());
  FS_ASSIGN(const Opened opened, open_model(request.model));
  const StoredModel& model = opened.model;
  FS_ASSIGN(const ModelConfig config, bundle_config(model.bundle));
  FS_ASSIGN(const Text text, text_of(request, model, config));
  FS_ASSIGN(const auto device, make_cpu_device({options_.lanes, isa_}));
  options_.log.info(fmt::format("compressing {} to {} on {}", model.ref.text(), request.spec.text(),
                                device->description()));
  CompressorHooks hooks;
  hooks.measure = [&](const ModelBundle& bundle) {
    return measure_model(*device, clock_, bundle, text.held_out, {}, &cancel);
  };
  hooks.calibrate = [&](const ModelBundle& bundle) {
    return calibrate(*device, bundle, text.calibration, &cancel);
  };
  hooks.progress = progress;
  hooks.cancel = &cancel;
  hooks.parallel = over_threads(options_.lanes);
  FS_ASSIGN(const CompressedModel made, run_compression(model.bundle, hooks, request.spec));
  Json details = made.card;
  // What the text was, so that the variant can be measured again.
  for (const char* key : {"data", "spec"})
    if (const Json* value = model.lineage.details.find(key)) details.set(key, *value);
  Store::PublishOptions options;
  options.cancel = &cancel;
  const std::string name = request.to.empty() ? model.ref.name : request.to;
  FS_ASSIGN(
      const ModelRef ref,
      opened.store->publish(name, made.bundle, {"compress", model.ref.text(), details}, options));
  return CompressResult{ref, made.before, made.after, details};
}

}  // namespace fastserve
