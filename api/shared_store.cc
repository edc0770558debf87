#include "api/shared_store.h"

#include <thread>

#include "store/transfer.h"

namespace fastserve {
namespace {

/// One user's part of a store.
class PartOfStore final : public Store {
 public:
  explicit PartOfStore(std::shared_ptr<Store> store) : store_(std::move(store)) {}

  Result<ModelRef> publish(const std::string& name, const ModelBundle& bundle,
                           const Lineage& lineage, const PublishOptions& options) override {
    return store_->publish(name, bundle, lineage, options);
  }
  Result<StoredModel> open_model(const ModelRef& ref) override { return store_->open_model(ref); }
  Result<ModelInfo> show(const ModelRef& ref) const override { return store_->show(ref); }
  Result<std::vector<ModelInfo>> list() const override { return store_->list(); }
  Status point(const ModelRef& ref) override { return store_->point(ref); }
  Status rename(const std::string& from, const std::string& to) override {
    return store_->rename(from, to);
  }
  Status tag(const ModelRef& ref, const std::string& tag) override { return store_->tag(ref, tag); }
  Status untag(const std::string& name, const std::string& tag) override {
    return store_->untag(name, tag);
  }
  Result<uint64_t> remove(const ModelRef& ref) override { return store_->remove(ref); }
  Status verify(const ModelRef& ref, const std::function<void(double)>& progress,
                const CancelFlag* cancel) override {
    return store_->verify(ref, progress, cancel);
  }
  Result<std::unique_ptr<OutgoingModel>> send(const ModelRef& ref) override {
    return store_->send(ref);
  }
  Result<std::unique_ptr<IncomingModel>> receive(ModelListing listing,
                                                 const ReceiveAs& as) override {
    return store_->receive(std::move(listing), as);
  }
  const Path& root() const override { return store_->root(); }

 private:
  const std::shared_ptr<Store> store_;
};

}  // namespace

Result<std::unique_ptr<Store>> SharedStore::open(Nanoseconds patience) {
  const Nanoseconds deadline = clock_.now() + patience;
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      std::shared_ptr<Store> store = store_.lock();
      if (store == nullptr) {
        auto opened = Store::open(root_, {&clock_});
        if (opened.ok()) {
          store = std::move(*opened);
          store_ = store;
        } else if (opened.error().code != ErrorCode::kUnavailable || clock_.now() >= deadline) {
          return opened;
        }
      }
      if (store != nullptr) return std::unique_ptr<Store>(new PartOfStore(std::move(store)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

Result<std::unique_ptr<Store>> SharedStore::glance() {
  auto store = open(Nanoseconds(0));
  if (store.ok() || store.error().code != ErrorCode::kUnavailable) return store;
  Store::Options options;
  options.clock = &clock_;
  options.glance = true;
  return Store::open(root_, options);
}

}  // namespace fastserve
