// The node's wiring: who gets which clock, log, device and store. Training, compression and serving
// are wired in files of their own beside this one.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "api/local_node.h"
#include "cpu/cpu_device.h"
#include "model/huggingface.h"
#include "model/tokenizer.h"

namespace fastserve {
namespace {

/// Tensors on their way out: no more are given once the flag is raised, and `progress` hears how
/// many were (each is read twice: to plan the files, and to write them).
class WatchedTensors final : public TensorSource {
 public:
  WatchedTensors(std::shared_ptr<const TensorSource> source,
                 const std::function<void(double)>& progress, const CancelFlag& cancel)
      : source_(std::move(source)),
        progress_(progress),
        cancel_(cancel),
        reads_(2.0 * static_cast<double>(source_->names().size())) {}
  std::vector<std::string> names() const override { return source_->names(); }
  bool contains(std::string_view name) const override { return source_->contains(name); }
  std::string where() const override { return source_->where(); }
  Result<TensorView> tensor(std::string_view name) const override {
    if (cancel_.raised())
      return Error{ErrorCode::kCancelled, "the export was stopped; nothing was written", where(),
                   ""};
    if (progress_) progress_(std::min(1.0, ++done_ / reads_));
    return source_->tensor(name);
  }

 private:
  const std::shared_ptr<const TensorSource> source_;
  const std::function<void(double)>& progress_;
  const CancelFlag& cancel_;
  const double reads_;
  mutable double done_ = 0;
};

}  // namespace

Path default_root() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != 0 ? Path(value) : Path();
  };
  if (Path home = variable("FASTSERVE_HOME"); !home.empty()) return home;
  if (Path data = variable("XDG_DATA_HOME"); !data.empty()) return data / "fastserve";
  if (Path home = variable("HOME"); !home.empty()) return home / ".local/share/fastserve";
  return "fastserve-data";
}

Result<std::unique_ptr<Node>> Node::create(NodeOptions options) {
  if (options.root.empty()) options.root = default_root();
  if (options.lanes < 0 || options.lanes > 1024)
    return Error{ErrorCode::kInvalidArgument, fmt::format("cannot be {}", options.lanes), "lanes",
                 "1 to 1024, or 0"};
  if (options.lanes == 0) options.lanes = usable_cores();
  FS_TRY(check_device_name(options.device));
  FS_ASSIGN(const Isa isa, choose_isa());
  return std::unique_ptr<Node>(new LocalNode(std::move(options), isa));
}

Result<std::unique_ptr<Store>> LocalNode::open_store() const {
  // Another process holds the store only for one piece of work: wait a little for it.
  constexpr auto kPatience = std::chrono::seconds(3);
  return store_->open(kPatience);
}

Result<std::unique_ptr<Store>> LocalNode::glance_at_store() const { return store_->glance(); }

Result<ChosenDevice> LocalNode::device(const std::string& before) const {
  const Path plans = options_.root / "gpu-plans";
  auto chosen =
      choose_device(options_.device == "auto" && !before.empty() ? before : options_.device, isa_,
                    options_.lanes, plans);
  if (!chosen.ok() && options_.device == "auto" && !before.empty()) {
    options_.log.warning(
        fmt::format("{} is not here any more: {}", before, chosen.error().message()));
    chosen = choose_device(options_.device, isa_, options_.lanes, plans);
  }
  if (!chosen.ok()) return chosen;
  options_.log.info(chosen->line());
  const GraphUse graphs{.log = options_.log};
  chosen->make = with_graph_use(std::move(chosen->make), graphs);
  for (DeviceFactory& make : chosen->more) make = with_graph_use(std::move(make), graphs);
  return chosen;
}

Result<LocalNode::Opened> LocalNode::open_model(const std::string& text) const {
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(text));
  Opened opened;
  FS_ASSIGN(opened.store, open_store());
  FS_ASSIGN(opened.model, opened.store->open_model(ref));
  return opened;
}

Result<ModelRef> LocalNode::import_directory(const Path& directory, const std::string& name,
                                             const std::function<void(double)>& progress,
                                             const CancelFlag& cancel) {
  FS_ASSIGN(const ModelBundle bundle, read_model_directory(directory));
  if (const auto it = bundle.documents.find("tokenizer.json"); it != bundle.documents.end()) {
    auto tokenizer = Tokenizer::from_json(it->second, (directory / "tokenizer.json").string());
    if (!tokenizer.ok()) return std::move(tokenizer).error();
  }
  FS_ASSIGN(const auto store, open_store());
  Store::PublishOptions options;
  options.progress = progress;
  options.cancel = &cancel;
  return store->publish(
      name, bundle, {"import", "", Json::object({{"directory", directory.filename().string()}})},
      options);
}

Status LocalNode::export_directory(const ModelRef& ref, const Path& directory, bool keep_quantised,
                                   const std::function<void(double)>& progress,
                                   const CancelFlag& cancel) {
  FS_ASSIGN(const auto store, open_store());
  FS_ASSIGN(const StoredModel model, store->open_model(ref));
  FS_ASSIGN(const ModelConfig config, bundle_config(model.bundle));
  if (!config.intermediate_sizes.empty() && !keep_quantised)
    return Error{ErrorCode::kUnsupported,
                 "has layers of unlike widths, which transformers cannot load", model.ref.text(),
                 "--keep-quantised writes it for FastServe"};
  const auto watched = std::make_shared<WatchedTensors>(model.bundle.tensors, progress, cancel);
  return write_model_directory(directory, {model.bundle.documents, watched}, keep_quantised);
}

Result<std::vector<JobInfo>> LocalNode::jobs() const { return list_jobs(options_.root); }

Result<JobInfo> LocalNode::job(const std::string& id) const {
  FS_ASSIGN(const auto all, list_jobs(options_.root));
  for (const JobInfo& job : all)
    if (job.id == id) return job;
  return Error{ErrorCode::kNotFound, "no such job", id, "fsctl jobs list shows those there are"};
}

Status LocalNode::remove_job(const std::string& id) { return remove_job_folder(options_.root, id); }

}  // namespace fastserve
