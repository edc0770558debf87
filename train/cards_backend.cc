#include "train/cards_backend.h"

#include <mutex>

namespace fastserve {
namespace {

/// Asks another for everything.
class Forwarding : public TrainBackend {
 public:
  explicit Forwarding(TrainBackend* to = nullptr) : to_(to) {}
  bool host_memory() const override { return to_->host_memory(); }
  std::span<float> masters() override { return to_->masters(); }
  void copy_in(float* to, std::span<const float> host) override { to_->copy_in(to, host); }
  void copy_out(std::span<float> host, const float* from) const override {
    to_->copy_out(host, from);
  }
  int members() const override { return to_->members(); }
  TrainBackend& member(int i) override { return to_->member(i); }
  int index() const override { return to_->index(); }
  void copy_from(int member, float* to, const float* from, size_t n) override {
    to_->copy_from(member, to, from, n);
  }
  bool reduces() const override { return to_->reduces(); }
  void reduce_from(std::span<const float* const> parts, float* into, size_t n) override {
    to_->reduce_from(parts, into, n);
  }
  Status sync() override { return to_->sync(); }
  const std::vector<ParameterTile>& tiles() const override { return to_->tiles(); }
  void refresh(const ParameterTile& tile) override { to_->refresh(tile); }
  void refresh_run(std::span<const ParameterTile> tiles) override { to_->refresh_run(tiles); }
  const TrainOps& ops() const override { return to_->ops(); }
  Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) override {
    return to_->make_source(lanes, max_rows);
  }
  Result<std::unique_ptr<DeviceBuffer>> allocate(size_t bytes) override {
    return to_->allocate(bytes);
  }
  size_t bytes() const override { return to_->bytes(); }
  std::string description() const override { return to_->description(); }
  std::string numerics_id() const override { return to_->numerics_id(); }

 protected:
  void forward_to(TrainBackend* to) { to_ = to; }

 private:
  TrainBackend* to_;
};

/// What all cards of a job know of each other.
///
/// Threads: any, once it is filled.
struct Group {
  std::vector<std::unique_ptr<TrainBackend>> residents;  // each owns its device
  std::unique_ptr<DeviceLink> link;
  bool reduces = false;  // the link has collectives, and they are wanted
  std::vector<std::unique_ptr<TrainBackend>> cards;

  /// Keeps the first failure. A lost card is told before what comes of it.
  void note(const Error& error) {
    const std::lock_guard lock(mutex);
    if (!failure || (error.code == ErrorCode::kUnavailable && failure->code != error.code))
      failure = error;
  }
  /// Waits for all of them.
  Status sync() {
    link->settle();
    for (const auto& resident : residents)
      if (const Status status = resident->sync(); !status.ok()) note(status.error());
    const std::lock_guard lock(mutex);
    if (failure) return *failure;
    return {};
  }

 private:
  std::mutex mutex;
  std::optional<Error> failure;  // guarded by mutex
};

/// A failure of its card concerns all of them.
class CardSource final : public GradientSource {
 public:
  CardSource(std::unique_ptr<GradientSource> source, Group& group)
      : source_(std::move(source)), group_(group) {}
  Result<double> run(const Microbatch& batch, float scale, float* grad) override {
    group_.link->settle();
    return noted(source_->run(batch, scale, grad));
  }
  Result<double> run_along(const Microbatch& batch, float scale, float* grad,
                           PassFlow& flow) override {
    group_.link->settle();
    return noted(source_->run_along(batch, scale, grad, flow));
  }
  void add(float* into, const float* other) override { source_->add(into, other); }
  void add_part(float* into, const float* other, size_t begin, size_t end) override {
    source_->add_part(into, other, begin, end);
  }
  size_t bytes() const override { return source_->bytes(); }
  Recompute recompute() const override { return source_->recompute(); }

 private:
  Result<double> noted(Result<double> loss) {
    if (!loss.ok()) group_.note(loss.error());
    return loss;
  }

  const std::unique_ptr<GradientSource> source_;
  Group& group_;
};

/// One of the members.
class Card final : public Forwarding {
 public:
  Card(Group& group, int index)
      : Forwarding(group.residents[static_cast<size_t>(index)].get()),
        group_(group),
        index_(index) {}

  int members() const override { return static_cast<int>(group_.cards.size()); }
  TrainBackend& member(int i) override { return *group_.cards[static_cast<size_t>(i)]; }
  int index() const override { return index_; }
  void copy_from(int member, float* to, const float* from, size_t n) override {
    FS_CHECK(member != index_);
    group_.link->copy(static_cast<size_t>(index_), to, static_cast<size_t>(member), from,
                      n * sizeof(float));
  }
  bool reduces() const override { return group_.reduces; }
  void reduce_from(std::span<const float* const> parts, float* into, size_t n) override {
    group_.link->reduce(static_cast<size_t>(index_), into, parts, n);
    group_.link->settle();
  }
  void copy_out(std::span<float> host, const float* from) const override {
    group_.link->settle();
    Forwarding::copy_out(host, from);
  }
  Status sync() override { return group_.sync(); }
  void refresh(const ParameterTile& tile) override { refresh_run({&tile, 1}); }
  /// The others take the masters over, and all pack them anew.
  void refresh_run(std::span<const ParameterTile> tiles) override {
    if (tiles.empty()) return;
    const size_t begin = tiles.front().offset, end = tiles.back().offset + tiles.back().size;
    const auto from = static_cast<size_t>(index_);
    std::vector<float*> ranges;
    for (const auto& resident : group_.residents)
      ranges.push_back(resident->masters().data() + begin);
    if (group_.reduces) group_.link->broadcast(from, ranges, end - begin);
    for (size_t i = 0; i < ranges.size(); i++) {
      if (!group_.reduces && i != from)
        group_.link->copy(i, ranges[i], from, ranges[from], (end - begin) * sizeof(float));
      group_.residents[i]->refresh_run(tiles);
    }
  }
  Result<std::unique_ptr<GradientSource>> make_source(int lanes, int max_rows) override {
    FS_ASSIGN(auto source, Forwarding::make_source(lanes, max_rows));
    return std::unique_ptr<GradientSource>(std::make_unique<CardSource>(std::move(source), group_));
  }

 private:
  Group& group_;
  const int index_;
};

/// The whole, which the first member stands for.
class CardsBackend final : public Forwarding {
 public:
  Status open(const ModelConfig& config, Precision precision,
              std::vector<std::unique_ptr<Device>> devices, const LinkFactory& link, TrainPlan plan,
              std::optional<Recompute> recompute, const Log& log) {
    std::vector<Device*> linked;
    for (const auto& device : devices) linked.push_back(device.get());
    FS_ASSIGN(group_.link, link(linked));
    // Before the rest of their memory is shared out: a library takes its own for them.
    if (plan.reduce == GradientReduce::kRing) plan.reduce = open_ring(log);
    for (auto& device : devices) {
      FS_ASSIGN(auto resident,
                make_resident_backend(config, precision, std::move(device), plan, recompute));
      group_.residents.push_back(std::move(resident));
    }
    for (size_t i = 0; i < linked.size(); i++)
      group_.cards.push_back(std::make_unique<Card>(group_, static_cast<int>(i)));
    forward_to(group_.cards.front().get());
    return {};
  }
  std::string description() const override {
    return std::to_string(members()) + " x " + Forwarding::description() + " each, by " +
           group_.link->description();
  }
  std::string numerics_id() const override {
    std::string id = Forwarding::numerics_id();
    if (reduces()) id.append("+").append(group_.link->reduce_id());
    return id;
  }

 private:
  GradientReduce open_ring(const Log& log) {
    const Status opened = group_.link->open_collectives();
    group_.reduces = opened.ok();
    if (opened.ok()) return GradientReduce::kRing;
    log.warning("reduce is ring, and gradients are summed along the step's tree all the same, by " +
                group_.link->description() + ": " + opened.error().message());
    return GradientReduce::kTree;
  }

  Group group_;
};

}  // namespace

Status check_alike(std::span<const std::unique_ptr<Device>> devices) {
  for (const auto& device : devices)
    if (device->numerics_id() != devices.front()->numerics_id())
      return Error{ErrorCode::kInvalidArgument,
                   "computes other bits (" + device->numerics_id() + ") than " +
                       devices.front()->description() + " (" + devices.front()->numerics_id() + ")",
                   device->description(),
                   "name cards of one kind: fsctl devices lists them; or train on one of them"};
  return {};
}

Result<std::unique_ptr<TrainBackend>> make_cards_backend(
    const ModelConfig& config, Precision precision, std::vector<std::unique_ptr<Device>> devices,
    const LinkFactory& link, const TrainPlan& plan, std::optional<Recompute> recompute,
    const Log& log) {
  FS_CHECK(devices.size() > 1 && plan.cards == static_cast<int>(devices.size()));
  FS_TRY(check_alike(devices));
  auto backend = std::make_unique<CardsBackend>();
  FS_TRY(backend->open(config, precision, std::move(devices), link, plan, recompute, log));
  return std::unique_ptr<TrainBackend>(std::move(backend));
}

Result<std::vector<std::unique_ptr<Device>>> open_cards(const std::vector<DeviceFactory>& all) {
  std::vector<std::unique_ptr<Device>> devices;
  for (const DeviceFactory& make : all) {
    FS_ASSIGN(auto device, make(1));
    devices.push_back(std::move(device));
  }
  FS_TRY(check_alike(devices));
  return devices;
}

}  // namespace fastserve
