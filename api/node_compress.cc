// Compression: a stored model, its text, a contract; a published variant or the reason why not.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "actors/compression_system.h"
#include "api/compression_text.h"
#include "api/local_node.h"
#include "compress/compressor.h"
#include "compress/measure.h"
#include "model/huggingface.h"
#include "store/names.h"

namespace fastserve {
namespace {

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
  std::shared_ptr<const CompressionText> text = request.text;
  if (text == nullptr) {
    FS_ASSIGN(CompressionText read, compression_text(request.data, model));
    text = std::make_shared<const CompressionText>(std::move(read));
  }
  FS_ASSIGN(const ChosenDevice chosen, this->device());
  FS_TRY(chosen.one_for("compressing"));
  FS_ASSIGN(const auto device, chosen.make(options_.lanes));
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
    return measure_model(*device, clock_, bundle, text->held_out, how, &cancel);
  };
  hooks.calibrate = [&](const ModelBundle& bundle) {
    return calibrate(*device, bundle, text->calibration, &cancel);
  };
  hooks.cancel = &cancel;
  hooks.parallel = over_threads(options_.lanes);
  FS_ASSIGN(const CompressedModel made, run_compression(model.bundle, hooks, request.spec));
  Json details = made.card;
  if (!request.job.empty()) details.set("job", request.job);
  details.set("measured_on", text->to_json());
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
