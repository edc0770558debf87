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
#include "store/names.h"

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
  Path path;
  Sequences held_out, calibration;

  /// For the variant's record: what its figures were measured on.
  Json to_json() const {
    size_t tokens = 0;
    for (const auto& sequence : held_out) tokens += sequence.size();
    return Json::object({{"path", path.string()}, {"held_out_tokens", tokens}});
  }
};

/// Where the text comes from, and how it is split.
struct TextSource {
  Path path;
  double fraction = 0.1;    ///< held out; 0: only files named as validation data are
  std::string fingerprint;  ///< of both splits as training saw them; empty: unknown
};

/// The request's text, or what the model was trained on, split as training split it: so that
/// nothing is measured on text that was learned from.
Result<TextSource> text_source(const CompressRequest& request, const StoredModel& model) {
  const Json& details = model.lineage.details;
  TextSource source;
  FS_ASSIGN(const std::string recorded, details.string_or("data", ""));
  if (const Json* spec = details.find_set("spec")) {
    FS_ASSIGN(source.fraction, spec->double_or("validation_fraction", source.fraction));
  }
  source.path = request.data.empty() ? Path(recorded) : request.data;
  std::error_code error;
  if (source.path.empty() || !std::filesystem::exists(source.path, error)) {
    if (!request.data.empty())
      return Error{ErrorCode::kNotFound, "is not there", source.path.string(),
                   "give a file or folder of text"};
    return Error{ErrorCode::kInvalidArgument,
                 recorded.empty() ? "has no record of the text it was trained on"
                                  : "was trained on " + recorded + ", which is not there",
                 model.ref.text(), "name text it has not seen with --data"};
  }
  if (std::filesystem::equivalent(source.path, recorded, error) && !error) {
    FS_ASSIGN(source.fingerprint, details.string_or("data_fingerprint", ""));
  } else if (source.fraction <= 0) {
    source.fraction = 0.1;  // other text: training's choice does not bind it
  }
  return source;
}

Status check_not_quantised(const StoredModel& model) {
  FS_ASSIGN(const auto formats, bundle_weight_formats(model.bundle));
  if (formats.empty()) return {};
  const std::string& parent = model.lineage.parent;
  return Error{ErrorCode::kUnsupported,
               fmt::format("its weights are quantised already ({})",
                           weight_format_name(formats.begin()->second)),
               model.ref.text(),
               "compress the model it was made from" + (parent.empty() ? "" : ": " + parent)};
}

Result<std::shared_ptr<const Tokenizer>> tokenizer_of(const StoredModel& model) {
  const auto json = model.bundle.documents.find("tokenizer.json");
  if (json == model.bundle.documents.end())
    return Error{ErrorCode::kInvalidArgument, "has no tokenizer.json", model.ref.text(),
                 "import it with its tokenizer"};
  return Tokenizer::from_json(json->second, model.ref.text() + "/tokenizer.json");
}

Status check_same_text(const Dataset& dataset, const TextSource& source, const StoredModel& model) {
  if (source.fingerprint.empty() || source.fingerprint == fingerprint_text(dataset)) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("was trained on {}, which has changed since: the part held out now may "
                           "hold text that was learned from",
                           source.path.string()),
               model.ref.text(), "name text it has not seen with --data, in another folder"};
}

Result<Text> text_of(const CompressRequest& request, const StoredModel& model,
                     const ModelConfig& config) {
  constexpr int kLongest = 1024, kShortest = 256;
  FS_ASSIGN(const TextSource source, text_source(request, model));
  FS_ASSIGN(const auto tokenizer, tokenizer_of(model));
  FS_ASSIGN(const Dataset dataset, tokenise_corpus(source.path, *tokenizer, source.fraction, 1));
  FS_TRY(check_same_text(dataset, source, model));
  const size_t there = dataset.validation.size();
  if (there == 0)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("was trained on all of {}: nothing was held out to measure on",
                             source.path.string()),
                 model.ref.text(), "name text it has not seen with --data"};
  const auto longest = static_cast<size_t>(std::min(config.max_positions, kLongest));
  const auto shortest = std::min<size_t>(longest, kShortest);
  if (there < shortest || dataset.train.size() < shortest)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("leaves {} held-out tokens and {} to calibrate on; each needs {}",
                             there, dataset.train.size(), shortest),
                 source.path.string(), "give more text with --data"};
  return Text{source.path, cut(dataset.validation, std::min(longest, there), kHeldOutTokens),
              cut(dataset.train, std::min(longest, dataset.train.size()), kCalibrationTokens)};
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
  if (!request.to.empty()) FS_TRY(check_name(request.to));
  FS_ASSIGN(const Opened opened, open_model(request.model));
  const StoredModel& model = opened.model;
  FS_TRY(check_not_quantised(model));
  FS_ASSIGN(const ModelConfig config, bundle_config(model.bundle));
  FS_ASSIGN(const Text text, text_of(request, model, config));
  FS_ASSIGN(const auto device, make_cpu_device({options_.lanes, isa_}));
  options_.log.info(fmt::format("compressing {} to {} on {}", model.ref.text(), request.spec.text(),
                                device->description()));
  CompressorHooks hooks;
  std::string stage;
  hooks.progress = [&](std::string_view now, double fraction) {
    stage = now;
    if (progress) progress(now, fraction);
  };
  hooks.measure = [&](const ModelBundle& bundle) {
    MeasureOptions how;
    if (progress) how.progress = [&](double fraction) { progress(stage, fraction); };
    return measure_model(*device, clock_, bundle, text.held_out, how, &cancel);
  };
  hooks.calibrate = [&](const ModelBundle& bundle) {
    return calibrate(*device, bundle, text.calibration, &cancel);
  };
  hooks.cancel = &cancel;
  hooks.parallel = over_threads(options_.lanes);
  FS_ASSIGN(const CompressedModel made, run_compression(model.bundle, hooks, request.spec));
  Json details = made.card;
  details.set("measured_on", text.to_json());
  // What the text was, so that the variant can be measured again.
  for (const char* key : {"data", "data_fingerprint", "spec"})
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
