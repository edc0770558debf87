#include "actors/part_room.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "actors/state_tensors.h"
#include "model/parameters.h"
#include "train/token_file.h"

namespace fastserve {

using namespace messages;
using wire_messages::BulkKind;
using wire_messages::PartOrder;

namespace {

struct HostBuffer final : DeviceBuffer {
  explicit HostBuffer(size_t n) : floats(new float[n / sizeof(float)]), size(n) {}
  void* data() override { return floats.get(); }
  size_t bytes() const override { return size; }
  std::unique_ptr<float[]> floats;  // not cleared: it is written whole before it is read
  size_t size;
};

BulkPlace place_in(std::span<std::byte> bytes, std::shared_ptr<void> owner) {
  return {{bytes}, std::move(owner)};
}

uint64_t kind_of(BulkKind tensor, uint32_t shard = 0) {
  return static_cast<uint64_t>(tensor) | uint64_t{shard} << 32;
}

}  // namespace

void PeerList::add(std::string node) {
  std::lock_guard lock(mutex_);
  if (std::find(nodes_.begin(), nodes_.end(), node) == nodes_.end())
    nodes_.push_back(std::move(node));
}

void PeerList::drop(const std::string& node) {
  std::lock_guard lock(mutex_);
  std::erase(nodes_, node);
}

std::vector<std::string> PeerList::all() const {
  std::lock_guard lock(mutex_);
  return nodes_;
}

Result<std::shared_ptr<PartRoom>> PartRoom::create(std::shared_ptr<const NodeParts> node,
                                                   PartOrder order) {
  constexpr size_t kMostShards = 1 << 16;
  auto room = std::make_shared<PartRoom>(node->name);
  FS_ASSIGN(const Json spec, Json::parse(order.spec, "the job's settings"));
  FS_ASSIGN(room->spec, TrainSpec::from_json(spec, "the job's settings"));
  FS_TRY(room->spec.validate());
  if (order.owners.empty() || order.owners.size() > kMostShards)
    return Error{ErrorCode::kCorrupt, "names no shards", "the job's order", ""};
  FS_TRY(room->hold(order));
  room->node = std::move(node);
  room->order = std::move(order);
  FS_ASSIGN(room->devices, that_open(room->node->devices, room->node->log));
  int trainers = 0;  // as many as there are lanes; with memory of their own one for a device
  if (room->node->make_host) trainers = static_cast<int>(room->devices.size());
  room->plan = plan_training(room->spec, {trainers, room->node->lanes, 1}, room->node->lanes);
  const ParameterLayout layout(room->spec.model);
  const auto tiles = TrainWeights::tiles_of(room->spec.model, layout);
  room->ranges =
      ParameterShard::ranges(tiles, layout.elements(), static_cast<int>(room->order.owners.size()));
  if (room->ranges.size() != room->order.owners.size())
    return Error{ErrorCode::kCorrupt,
                 fmt::format("has {} shards where the model has {} parts",
                             room->order.owners.size(), room->ranges.size()),
                 "the job's order", ""};
  room->make_codecs(tiles, layout);
  return room;
}

Status PartRoom::hold(const PartOrder& order) {
  ShardHolders holders = order.holders;
  if (holders.empty())
    for (const std::string& owner : order.owners) holders.push_back({owner});
  if (holders.size() != order.owners.size())
    return Error{ErrorCode::kCorrupt, "names holders of other shards", "the job's order", ""};
  held.set(std::move(holders));
  return {};
}

void PartRoom::make_codecs(const std::vector<ParameterTile>& tiles, const ParameterLayout& layout) {
  const auto pool = [](size_t bytes, size_t first) {
    const size_t whole = (bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float);
    return std::make_unique<GradientPool>(
        [whole]() -> Result<std::unique_ptr<DeviceBuffer>> {
          return std::unique_ptr<DeviceBuffer>(std::make_unique<HostBuffer>(whole));
        },
        first);
  };
  WeightsBack back = spec.weights_back;
  // Rounding what is rounded anyway costs no bit, unless it is trained further first.
  if (!spec.consistency.local() && back.kind == WeightsBack::Kind::kExact &&
      spec.precision == Precision::kBFloat16)
    back.kind = WeightsBack::Kind::kBFloat16;
  for (const auto& range : ranges) {
    const auto own = std::span(tiles).subspan(range.first_tile, range.tiles);
    gradient_codecs.emplace_back(spec.gradients, own);
    weight_codecs.emplace_back(back, own, only_multiplied(layout, own));
    slices.push_back(pool((range.end - range.begin) * sizeof(float), range.begin));
    const GradientCodec& gradients = gradient_codecs.back();
    const WeightCodec& weights = weight_codecs.back();
    frames.push_back(pool(std::max({gradients.encoded_bytes(), gradients.exact_bytes(),
                                    weights.encoded_bytes(), weights.whole_bytes()}),
                          0));
  }
  shadows.resize(ranges.size());
}

void PartRoom::make_shadows() {
  for (uint32_t i = 0; i < ranges.size(); i++)
    if (owns(i))
      shadows[i] = weight_codecs[i].shadow_of(
          backend->masters().subspan(weight_codecs[i].begin(), weight_codecs[i].elements()));
}

Path PartRoom::data_file(bool validation) const {
  return node->data_folder /
         fmt::format("{:016x}.{}.fstok", order.data, validation ? "validation" : "train");
}

bool PartRoom::find_data() {
  auto train = read_token_file(data_file(false));
  if (!train.ok()) return false;
  dataset.train = std::move(train->tokens);
  if (order.validation_bytes > 0) {
    auto validation = read_token_file(data_file(true));
    if (!validation.ok()) {
      dataset.train = {};
      return false;
    }
    dataset.validation = std::move(validation->tokens);
  }
  return true;
}

Status PartRoom::keep_data(bool validation, const std::vector<std::byte>& bytes) {
  FS_TRY(make_directories(node->data_folder));
  FS_TRY(write_file_atomically(data_file(validation),
                               {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  FS_ASSIGN(TokenFile file, read_token_file(data_file(validation)));
  (validation ? dataset.validation : dataset.train) = std::move(file.tokens);
  return {};
}

Status PartRoom::build() {
  if (dataset.train.size() <= static_cast<size_t>(spec.block))
    return Error{ErrorCode::kCorrupt, "is shorter than one sequence", "the training data", ""};
  sampler = std::make_unique<Sampler>(
      dataset.train, Sampler::Shape{spec.block, plan.sequences, plan.microbatches}, spec.seed);
  if (dataset.validation.size() > 1)
    evaluation = std::make_unique<EvaluationPlan>(dataset.validation, spec.block,
                                                  spec.evaluate_sequences, plan.max_rows);
  FS_ASSIGN(backend,
            make_device_backend(spec.model, spec.precision, in_turn(devices), node->make_host));
  gate.divide(ranges.size());
  turns.emplace(node->lanes);
  replica = std::make_unique<WeightReplica>(*backend, gate, ranges);
  const StepLayout layout(static_cast<uint32_t>(plan.microbatches));
  for (uint32_t i = 0; i < ranges.size() && spec.consistency.local(); i++)
    local.push_back(std::make_shared<LocalRange>(*backend, gate, *replica, i, spec, owns(i)));
  for (uint32_t i = 0; i < ranges.size() && spec.consistency.loose(); i++)
    loose.push_back(std::make_shared<LooseRange>(*backend, gate, *replica, i, spec,
                                                 layout.microbatches(), owns(i)));
  for (uint32_t i = 0; i < ranges.size() && spec.consistency.exact(); i++)
    shards.push_back(owns(i) && !order.joining
                         ? std::make_shared<ParameterShard>(*backend, ranges[i], spec, layout,
                                                            StepId{order.step})
                         : nullptr);
  if (!order.trains) return {};
  pool = std::make_unique<GradientPool>(
      [this] { return backend->allocate(backend->elements() * sizeof(float)); });
  for (int i = 0; i < plan.trainers; i++) {
    FS_ASSIGN(auto source, backend->make_source(plan.lanes_of(i), plan.max_rows));
    workers.push_back(std::make_shared<GradientWorker>(
        std::move(source), *sampler, evaluation.get(), *pool, [this] { return closing.load(); },
        &gate));
    // Who is apart begins a step with all weights of one kind.
    if (spec.consistency.exact()) workers.back()->wait_by_range(ParameterShard::begins(ranges));
  }
  node->log.info(fmt::format("job {}: {} trainer{}, each on {}, {}", order.name, plan.trainers,
                             plan.trainers == 1 ? "" : "s", backend->description(),
                             precision_name(spec.precision)));
  return {};
}

bool PartRoom::can_compute(const WorkItem& unit) const {
  if (workers.empty()) return false;
  const auto [first, count] = unit.subtree;
  if (unit.kind == WorkItem::Kind::kEvaluation)
    return evaluation != nullptr && count == 1 && first < evaluation->chunks();
  const StepLayout layout(static_cast<uint32_t>(plan.microbatches));
  if (spec.consistency.exact()) return layout.is_node(unit.subtree);
  return count >= 1 && count <= layout.microbatches() && first <= layout.microbatches() - count &&
         unit.steps >= 1 && unit.steps <= static_cast<uint32_t>(Consistency::kMostLocal);
}

void PartRoom::publish(uint32_t index, StepId at, std::span<const float> weights,
                       const std::string* only) {
  const WeightCodec& codec = weight_codecs[index];
  const bool delta = codec.format().kind == WeightsBack::Kind::kDelta;
  if (only == nullptr && !held.leads(index)) return;
  std::vector<std::string> to = only != nullptr ? std::vector{*only} : peers.all();
  std::erase_if(to, [&](const std::string& peer) { return held.holds(index, peer); });
  if (to.empty() && !delta) return;
  auto buffer = frames[index]->take();
  if (!buffer.ok()) return;  // host memory is out: the part will not live long
  const bool whole = delta && only != nullptr;
  const std::span<std::byte> frame =
      frame_in(*buffer, whole ? codec.whole_bytes() : codec.encoded_bytes());
  if (whole) {
    codec.encode_whole(shadows[index], frame);
  } else if (const Status status =
                 codec.encode(weights.first(codec.elements()), shadows[index], frame);
             !status.ok()) {
    return node->log.warning(status.error().message());  // the step's loss says so, too
  }
  for (const std::string& peer : to)
    node->hub->send(peer, {kind_of(BulkKind::kWeightFrame), order.job, at.value, index},
                    {{frame, *buffer}}, index);
}

void PartRoom::send_copy(uint32_t index, const std::shared_ptr<const ShardState>& state,
                         const std::string& to) {
  node->hub->send(to, {kind_of(BulkKind::kCopy), order.job, state->step.value, index},
                  sources_of(state), index);
}

Result<uint32_t> PartSink::shard_of(const BulkTag& tag, uint64_t bytes, uint64_t copies) const {
  const uint64_t shard = tag.kind >> 32 != 0 ? tag.kind >> 32 : tag.key;
  if (shard >= room_->ranges.size())
    return Error{ErrorCode::kCorrupt, fmt::format("names shard {}", shard), "a tensor", ""};
  const auto& range = room_->ranges[shard];
  const uint64_t wanted = (range.end - range.begin) * sizeof(float) * copies;
  if (bytes != wanted)
    return Error{ErrorCode::kCorrupt, fmt::format("has {} bytes instead of {}", bytes, wanted),
                 "a tensor", ""};
  return static_cast<uint32_t>(shard);
}

Result<BulkPlace> PartSink::place_gradient(const std::string& peer, const BulkTag& tag,
                                           uint64_t bytes) {
  const auto refuse = [&](const char* what) {
    return Error{ErrorCode::kInvalidArgument, what, "node " + peer, ""};
  };
  const uint64_t shard = (tag.kind >> 32) - 1;
  // Who sends may have heard before this node that it holds the shard.
  if (tag.kind >> 32 == 0 || shard >= room_->ranges.size() ||
      room_->servers.get(static_cast<uint32_t>(shard)) == nullptr)
    return refuse("sent a gradient for a shard that is not here");
  const Subtree subtree{static_cast<uint32_t>(tag.key >> 32), static_cast<uint32_t>(tag.key)};
  const auto microbatches = static_cast<uint32_t>(room_->plan.microbatches);
  const bool known = !room_->spec.consistency.exact()
                         ? subtree.count >= 1 && subtree.count <= microbatches
                         : StepLayout(microbatches).is_node(subtree);
  if (!known) return refuse("sent a gradient that is no part of the step");
  const bool framed = static_cast<BulkKind>(tag.kind & 0xffffffff) == BulkKind::kGradientFrame;
  const GradientCodec& codec = room_->gradient_codecs[shard];
  FS_ASSIGN(GradientHandle buffer, (framed ? room_->frames : room_->slices)[shard]->take());
  const bool fits = framed ? bytes == codec.encoded_bytes() || bytes == codec.exact_bytes()
                           : bytes == buffer->elements() * sizeof(float);
  if (!fits) return refuse("sent a gradient of the wrong size");
  return place_in(PartRoom::frame_in(buffer, bytes), buffer);
}

Result<BulkPlace> PartSink::place_weights(const std::string& peer, const BulkTag& tag,
                                          uint64_t bytes) {
  const auto refuse = [&](const char* what) {
    return Error{ErrorCode::kInvalidArgument, what, "node " + peer, ""};
  };
  if (static_cast<BulkKind>(tag.kind) == BulkKind::kWeights) {
    FS_ASSIGN(const uint32_t shard, shard_of(tag, bytes, 1));
    if (peer != kCoordinatorPeer) return refuse("sent weights that are not its own");
    FS_ASSIGN(GradientHandle slice, room_->slices[shard]->take());
    return place_in(PartRoom::frame_in(slice, bytes), slice);
  }
  // Of a shard that several nodes hold the leader may have changed.
  const bool known =
      tag.key < room_->ranges.size() &&
      (room_->spec.replicas > 0 ? peer != kCoordinatorPeer : room_->order.owners[tag.key] == peer);
  if (!known) return refuse("sent weights that are not its own");
  const WeightCodec& codec = room_->weight_codecs[tag.key];
  if (bytes != codec.encoded_bytes() && bytes != codec.whole_bytes())
    return refuse("sent weights of the wrong size");
  FS_ASSIGN(GradientHandle frame, room_->frames[tag.key]->take());
  return place_in(PartRoom::frame_in(frame, bytes), frame);
}

Result<BulkPlace> PartSink::place(const std::string& peer, const BulkTag& tag, uint64_t bytes) {
  const bool from_coordinator = peer == kCoordinatorPeer;
  const auto refuse = [&](const char* what) {
    return Error{ErrorCode::kInvalidArgument, what, "node " + peer, ""};
  };
  switch (static_cast<BulkKind>(tag.kind & 0xffffffff)) {
    case BulkKind::kGradient:
    case BulkKind::kGradientFrame:
      return place_gradient(peer, tag, bytes);
    case BulkKind::kWeights:
    case BulkKind::kWeightFrame:
      return place_weights(peer, tag, bytes);
    case BulkKind::kMoments: {
      FS_ASSIGN(const uint32_t shard, shard_of(tag, bytes, 2));
      if (!from_coordinator || !(room_->owns(shard) || room_->spec.consistency.local()))
        return refuse("sent moments");
      auto both = std::make_shared<std::vector<float>>(bytes / sizeof(float));
      return place_in(std::as_writable_bytes(std::span(*both)), both);
    }
    case BulkKind::kCopy: {
      FS_ASSIGN(const uint32_t shard, shard_of(tag, bytes, 3));
      if (from_coordinator || room_->spec.replicas == 0) return refuse("sent a shard's state");
      return place_state(room_->ranges[shard], {tag.step});
    }
    case BulkKind::kTrainData:
    case BulkKind::kValidationData: {
      const bool train = static_cast<BulkKind>(tag.kind) == BulkKind::kTrainData;
      const PartOrder& order = room_->order;
      if (!from_coordinator || bytes != (train ? order.train_bytes : order.validation_bytes))
        return refuse("sent data that nobody waits for");
      auto file = std::make_shared<std::vector<std::byte>>(bytes);
      return place_in(std::span(*file), file);
    }
    case BulkKind::kBest:
    case BulkKind::kPieceCopy:
      return place_piece(peer, tag, bytes);
    default:
      return refuse("sent a tensor of an unknown kind");
  }
}

void PartSink::arrived(const std::string& peer, const BulkTag& tag, BulkPlace place) {
  const auto kind = static_cast<BulkKind>(tag.kind & 0xffffffff);
  const auto buffer = [&] { return std::static_pointer_cast<GradientBuffer>(place.owner); };
  const size_t bytes = place.parts.front().size();
  const Subtree subtree{static_cast<uint32_t>(tag.key >> 32), static_cast<uint32_t>(tag.key)};
  const auto shard = static_cast<uint32_t>(tag.key);
  switch (kind) {
    case BulkKind::kGradient:
      if (const auto server = room_->servers.get(static_cast<uint32_t>(tag.kind >> 32) - 1))
        caf::anon_send(server, PushGradient{{tag.step}, subtree, subtree, buffer(), peer});
      return;
    case BulkKind::kGradientFrame:
      caf::anon_send(deputy_, GradientHere{static_cast<uint32_t>((tag.kind >> 32) - 1),
                                           {tag.step},
                                           subtree,
                                           buffer(),
                                           bytes,
                                           peer});
      return;
    case BulkKind::kWeights:
    case BulkKind::kWeightFrame:
      caf::anon_send(
          deputy_,
          WeightsHere{shard, {tag.step}, buffer(), kind == BulkKind::kWeightFrame ? bytes : 0});
      return;
    case BulkKind::kMoments:
      caf::anon_send(deputy_,
                     MomentsHere{shard, std::static_pointer_cast<std::vector<float>>(place.owner)});
      return;
    case BulkKind::kBest:
    case BulkKind::kPieceCopy:
      return piece_here(tag, place);
    case BulkKind::kCopy:
      caf::anon_send(deputy_,
                     CopyHere{shard, std::static_pointer_cast<const ShardState>(place.owner)});
      return;
    default:
      caf::anon_send(deputy_,
                     DataHere{kind == BulkKind::kValidationData,
                              std::static_pointer_cast<std::vector<std::byte>>(place.owner)});
  }
}

void PartSink::lost(const std::string& peer, const Error& why) {
  caf::anon_send(deputy_, PeerGone{peer, why});
}

}  // namespace fastserve
