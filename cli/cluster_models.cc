#include "cli/cluster_models.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "api/model_transfer.h"
#include "cli/progress.h"
#include "store/model_row.h"
#include "store/names.h"

namespace fastserve {
namespace {

/// "name", "name@3" or "name@tag": as it was written.
std::string written(const ModelRef& ref) {
  return ref.tag.empty() ? ref.text() : ref.name + "@" + ref.tag;
}

/// A folder for a store of this command's own, beside `near`; gone with it.
class ScratchFolder {
 public:
  static Result<ScratchFolder> make(const Path& near) {
    std::string pattern = (near / ".fastserve-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) return errno_error("cannot make a folder in", near);
    return ScratchFolder(pattern);
  }
  ScratchFolder(ScratchFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchFolder& operator=(ScratchFolder&&) = delete;
  ~ScratchFolder() {
    std::error_code none;
    if (!path_.empty()) std::filesystem::remove_all(path_, none);
  }
  const Path& path() const { return path_; }

 private:
  explicit ScratchFolder(Path path) : path_(std::move(path)) {}
  Path path_;
};

Result<std::unique_ptr<Node>> scratch_node(const CommandLine& line, const ScratchFolder& folder) {
  NodeOptions options;
  options.root = folder.path();
  options.log = line.log();
  return Node::create(std::move(options));
}

}  // namespace

Result<ModelInfo> ClusterShelf::show(const ModelRef& ref) const {
  FS_ASSIGN(const Json rows, client_->models(written(ref)));
  if (rows.as_array().size() != 1)
    return Error{ErrorCode::kCorrupt, "is not one model", "the coordinator's answer", ""};
  return read_model_row(rows.as_array().front());
}

Result<std::vector<ModelInfo>> ClusterShelf::list() const {
  FS_ASSIGN(const Json rows, client_->models(""));
  std::vector<ModelInfo> models;
  for (const Json& row : rows.as_array()) {
    FS_ASSIGN(ModelInfo info, read_model_row(row));
    models.push_back(std::move(info));
  }
  return models;
}

Status ClusterShelf::point(const ModelRef& ref) {
  const auto done = client_->change_model(ModelChange::kPoint, written(ref), "");
  return done.ok() ? Status() : done.error();
}

Status ClusterShelf::rename(const std::string& from, const std::string& to) {
  const auto done = client_->change_model(ModelChange::kRename, from, to);
  return done.ok() ? Status() : done.error();
}

Status ClusterShelf::tag(const ModelRef& ref, const std::string& tag) {
  const auto done = client_->change_model(ModelChange::kTag, written(ref), tag);
  return done.ok() ? Status() : done.error();
}

Status ClusterShelf::untag(const std::string& name, const std::string& tag) {
  const auto done = client_->change_model(ModelChange::kUntag, name, tag);
  return done.ok() ? Status() : done.error();
}

Result<uint64_t> ClusterShelf::remove(const ModelRef& ref) {
  return client_->change_model(ModelChange::kRemove, written(ref), "");
}

Status ClusterShelf::verify(const ModelRef& ref, const std::function<void(double)>& progress,
                            const CancelFlag*) {
  return client_->verify_model(written(ref), progress);
}

Result<OpenedTransfer> open_cluster_transfer(const CommandLine& line, TransferAsk ask) {
  FS_ASSIGN(const ClusterPlace place, find_cluster(line));
  ask.token = place.token;
  return open_transfer(place.host, place.port, ask, std::chrono::seconds(10));
}

int import_into_cluster(const CommandLine& line, const std::string& directory,
                        const std::string& name) {
  ProgressBar bar(line.progress_wanted(), "import");
  const auto import = [&]() -> Result<ModelRef> {
    FS_TRY(check_name(name));
    // Cut into pieces and checked here first, beside nothing that is stored.
    FS_ASSIGN(const ScratchFolder scratch,
              ScratchFolder::make(std::filesystem::temp_directory_path()));
    FS_ASSIGN(const auto node, scratch_node(line, scratch));
    FS_ASSIGN(const ModelRef ref,
              node->import_directory(
                  directory, name, [&](double f) { bar.update(f / 2, "reading"); }, line.cancel));
    FS_ASSIGN(const auto store, node->open_store());
    FS_ASSIGN(const auto model, store->send(ref));
    TransferAsk ask;
    ask.want = TransferAsk::Want::kPush;
    ask.name = name;
    FS_ASSIGN(const OpenedTransfer opened, open_cluster_transfer(line, ask));
    TransferHooks hooks;
    hooks.cancel = &line.cancel;
    hooks.progress = [&](double f) { bar.update(0.5 + f / 2, "sending"); };
    return send_model(*opened.stream, *model, hooks);
  };
  auto ref = import();
  bar.clear();
  if (!ref.ok()) return fail(line, ref.error());
  return finish(line, Json::object({{"model", ref->text()}}),
                [&] { fmt::print("{}\n", ref->text()); });
}

int export_from_cluster(const CommandLine& line, const std::string& model,
                        const std::string& directory, bool keep_quantised) {
  ProgressBar bar(line.progress_wanted(), "export");
  const auto export_it = [&]() -> Status {
    std::error_code none;
    const Path parent = std::filesystem::absolute(directory, none).lexically_normal().parent_path();
    FS_TRY(make_directories(parent));
    FS_ASSIGN(const ScratchFolder scratch, ScratchFolder::make(parent));
    FS_ASSIGN(const auto node, scratch_node(line, scratch));
    TransferAsk ask;
    ask.model = model;
    FS_ASSIGN(const OpenedTransfer opened, open_cluster_transfer(line, ask));
    TransferHooks hooks;
    hooks.cancel = &line.cancel;
    hooks.progress = [&](double f) { bar.update(f / 2, "receiving"); };
    ModelRef came;
    {
      FS_ASSIGN(const auto store, node->open_store());
      const auto as = [](ModelListing& listing) -> Result<ReceiveAs> {
        return ReceiveAs{listing.ref.name, listing.ref.version};
      };
      FS_ASSIGN(came, receive_model(*opened.stream, *store, as, hooks));
    }
    return node->export_directory(
        came, directory, keep_quantised, [&](double f) { bar.update(0.5 + f / 2, "writing"); },
        line.cancel);
  };
  const Status done = export_it();
  bar.clear();
  if (!done.ok()) return fail(line, done.error());
  return finish(line, Json::object({{"ok", true}}),
                [&] { fmt::print("{} written to {}\n", model, directory); });
}

}  // namespace fastserve
