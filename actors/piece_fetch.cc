#include "actors/piece_fetch.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace fastserve {

using namespace wire_messages;

namespace {

constexpr auto kAnswer = std::chrono::seconds(5);
constexpr auto kReading = std::chrono::minutes(5);  // of all pieces before it on the node's disk
constexpr auto kLook = std::chrono::milliseconds(100);

}  // namespace

void ask_for_pieces(caf::actor_system& actors, const NodesByName& nodes, const std::string& job,
                    PieceHoldings& holdings) {
  caf::scoped_actor self(actors);
  const auto ask = [&](const NodeActor& node) {
    return self->request(node, kAnswer, AskPieces{job});
  };
  std::vector<decltype(ask(nodes.front().second))> asked;
  for (const auto& [name, node] : nodes) asked.push_back(ask(node));
  holdings.ask_again();
  for (size_t i = 0; i < nodes.size(); i++)
    asked[i].receive(
        [&](const PiecesHere& here) {
          std::vector<PieceName> names;
          for (const PieceItem& item : here.pieces) names.push_back(to_name(job, item));
          holdings.connected(nodes[i].first, names);
        },
        [](const caf::error&) {});
}

/// Takes in pieces. Threads: the lanes'.
class PieceFetch::Sink final : public BulkSink {
 public:
  Sink(const PieceSet& set, std::shared_ptr<Floats> floats, std::map<size_t, std::string> asked)
      : set_(set), floats_(std::move(floats)), asked_(std::move(asked)) {}

  Result<BulkPlace> place(const std::string& peer, const BulkTag& tag, uint64_t bytes) override {
    const Error refused{ErrorCode::kInvalidArgument, "sent a piece that nobody waits for",
                        "node " + peer, ""};
    std::lock_guard lock(mutex_);
    const auto at = asked_.find(tag.key);
    if (tag.kind != static_cast<uint64_t>(BulkKind::kPiece) || at == asked_.end() ||
        at->second != peer)
      return refused;
    const PieceSet::Piece& piece = set_.pieces[tag.key];
    const uint64_t n = piece.end - piece.begin;
    if (bytes != n * sizeof(float) * (set_.best ? 4 : 3)) return refused;
    BulkPlace place;
    for (auto* run : {&floats_->weights, &floats_->m, &floats_->v, &floats_->best})
      if (!run->empty())
        place.parts.push_back(std::as_writable_bytes(std::span(*run).subspan(piece.begin, n)));
    place.owner = floats_;
    return place;
  }

  void arrived(const std::string&, const BulkTag& tag, BulkPlace) override {
    std::lock_guard lock(mutex_);
    asked_.erase(tag.key);
    arrived_.insert(tag.key);
    changed_.notify_all();
  }

  void lost(const std::string& peer, const Error&) override {
    std::lock_guard lock(mutex_);
    std::erase_if(asked_, [&](const auto& entry) { return entry.second == peer; });
    changed_.notify_all();
  }

  void give_up(size_t piece) {
    std::lock_guard lock(mutex_);
    asked_.erase(piece);
  }

  /// Until all that is asked for is here or will not come.
  std::set<size_t> wait(const std::function<bool()>& cancelled) {
    std::unique_lock lock(mutex_);
    while (!asked_.empty() && !cancelled()) {
      const size_t before = arrived_.size();
      const auto moved = [&] { return asked_.empty() || arrived_.size() > before; };
      const auto until = std::chrono::steady_clock::now() + kReading;
      while (!moved() && !cancelled() && std::chrono::steady_clock::now() < until)
        changed_.wait_for(lock, kLook);
      if (!moved()) break;
    }
    return arrived_;
  }

 private:
  const PieceSet& set_;
  const std::shared_ptr<Floats> floats_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<size_t, std::string> asked_;  // pieces on their way, and from whom
  std::set<size_t> arrived_;
};

PieceFetch::PieceFetch(Around around, std::string job, PieceSet set)
    : around_(std::move(around)),
      job_(std::move(job)),
      set_(std::move(set)),
      floats_(std::make_shared<Floats>()),
      here_(set_.pieces.size()) {
  for (auto* run : {&floats_->weights, &floats_->m, &floats_->v}) run->resize(set_.elements());
  if (set_.best) floats_->best.resize(set_.elements());
}

bool PieceFetch::fetch(const NodesByName& nodes, PieceHoldings& holdings) {
  std::map<size_t, std::string> from;
  for (size_t i = 0; i < here_.size(); i++) {
    if (here_[i]) continue;
    const auto holders = holdings.holders(set_.name(job_, i), set_.pieces[i].holders);
    if (!holders.empty()) from[i] = holders.front();
  }
  const uint64_t tag = around_.next_tag();
  const auto sink = std::make_shared<Sink>(set_, floats_, from);
  around_.hub->open(tag, sink);
  caf::scoped_actor self(*around_.actors);
  const auto ask = [&](const NodeActor& node, size_t i) {
    return self->request(node, kReading,
                         SendPiece{job_, to_item(set_.name(job_, i)), set_.pieces[i].hash, tag, i});
  };
  std::vector<std::pair<size_t, decltype(ask(nodes.front().second, 0))>> asked;
  for (const auto& [i, name] : from) {
    const auto node = std::ranges::find(nodes, name, [](const auto& entry) { return entry.first; });
    if (node != nodes.end())
      asked.emplace_back(i, ask(node->second, i));
    else
      sink->give_up(i);
  }
  for (auto& [i, answer] : asked)
    answer.receive(
        [&, i = i](const PieceSent& sent) {
          if (sent.fault.ok()) return;
          sink->give_up(i);
          if (to_error(sent.fault).code != ErrorCode::kUnavailable)
            holdings.damaged(from[i], set_.name(job_, i));
          around_.log.warning(fmt::format("job {}: node {} cannot bring its piece of step {}: {}",
                                          job_, from[i], set_.step,
                                          to_error(sent.fault).message()));
        },
        [&, i = i](const caf::error&) { sink->give_up(i); });
  for (const size_t i : sink->wait(around_.cancelled)) here_[i] = true;
  around_.hub->close(tag, *sink);
  return std::ranges::all_of(here_, [](bool here) { return here; });
}

void PieceFetch::move_into(Checkpoint& checkpoint) {
  checkpoint.weights = std::move(floats_->weights);
  checkpoint.m = std::move(floats_->m);
  checkpoint.v = std::move(floats_->v);
  checkpoint.best = std::move(floats_->best);
}

}  // namespace fastserve
