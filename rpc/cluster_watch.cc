#include "rpc/cluster_watch.h"

#include <capnp/message.h>

#include <algorithm>
#include <set>
#include <vector>

#include "base/hash.h"

namespace fastserve {
namespace {

/// Watches that are due this soon are asked for together.
constexpr kj::Duration kTogether = 20 * kj::MILLISECONDS;
/// How long to wait when too much is under way.
constexpr kj::Duration kBusy = 500 * kj::MILLISECONDS;

bool has_ended(const ClusterJob& job) {
  return job.state == "finished" || job.state == "failed" || job.state == "cancelled";
}

uint64_t hash_of(capnp::MallocMessageBuilder& message) {
  uint64_t hash = 0;
  for (const auto segment : message.getSegmentsForOutput())
    hash =
        hash64(std::as_bytes(std::span(segment.asBytes().begin(), segment.asBytes().size())), hash);
  return hash;
}

UpdateContent ended_by(const Error& error) {
  UpdateContent update;
  update.last = true;
  update.error = error;
  return update;
}

}  // namespace

/// What one round asks, and what was answered.
struct ClusterWatches::Answers {
  std::set<uint64_t> for_watches;
  std::map<std::string, std::optional<Result<ClusterJob>>> job;
  bool wants_all = false, wants_nodes = false;
  std::optional<Result<std::vector<ClusterJob>>> all;
  std::optional<Result<std::vector<NodeStatus>>> nodes;
  std::map<std::shared_ptr<ClusterSession>, Status> sessions;

  /// Where blocking is allowed.
  void ask(ClusterControl& control, const ClusterServer::CheckToken& check, Nanoseconds recheck) {
    for (auto& [session, good] : sessions) good = session->still_good(check, recheck);
    for (auto& [id, answer] : job) answer.emplace(control.job(id));
    if (wants_all) all.emplace(control.jobs());
    if (wants_nodes) nodes.emplace(control.nodes());
  }

  UpdateContent for_watch(const Watch& watch) const {
    if (const Status& good = sessions.at(watch.session); !good.ok()) return ended_by(good.error());
    UpdateContent update;
    if (watch.wanted.job.empty()) {
      if (!all->ok()) return ended_by(all->error());
      for (const ClusterJob& one : **all)
        if (!has_ended(one)) update.jobs.push_back(one);
    } else {
      const auto& one = *job.at(watch.wanted.job);
      if (!one.ok()) return ended_by(one.error());
      update.jobs.push_back(*one);
      update.last = has_ended(*one);
    }
    if (watch.wanted.with_nodes) {
      if (!nodes->ok()) return ended_by(nodes->error());
      update.nodes = **nodes;
    }
    return update;
  }
};

uint64_t ClusterWatches::add(uint64_t connection, std::shared_ptr<ClusterSession> session,
                             const Wanted& wanted, wire::UpdateSink::Client sink) {
  const double most = options_.most_updates_per_second;
  // NaN and what is not positive mean the default's slowest: one every ten seconds.
  const double rate =
      wanted.updates_per_second > 0.1 ? std::min(wanted.updates_per_second, most) : 0.1;
  const auto interval = static_cast<int64_t>(1e9 / rate) * kj::NANOSECONDS;
  const uint64_t key = next_key_++;
  watches_.emplace(key, Watch{connection, std::move(session), wanted, interval, kj::mv(sink),
                              timer_.now(), false, std::nullopt, timer_.now()});
  arm();
  return key;
}

void ClusterWatches::drop(uint64_t key) { watches_.erase(key); }

void ClusterWatches::drop_connection(uint64_t connection) {
  std::erase_if(watches_, [&](const auto& entry) { return entry.second.connection == connection; });
}

size_t ClusterWatches::count(uint64_t connection) const {
  return static_cast<size_t>(
      std::count_if(watches_.begin(), watches_.end(),
                    [&](const auto& entry) { return entry.second.connection == connection; }));
}

bool ClusterWatches::unanswered(uint64_t connection) const {
  return std::any_of(watches_.begin(), watches_.end(), [&](const auto& entry) {
    return entry.second.connection == connection && entry.second.unanswered;
  });
}

/// Sees to it that a timer runs for the watch that is due first.
void ClusterWatches::arm() {
  if (asking_) return;  // tell() comes back here
  kj::Maybe<kj::TimePoint> soonest;
  for (const auto& [key, watch] : watches_) {
    if (watch.unanswered) continue;
    KJ_IF_MAYBE (so_far, soonest) {
      if (*so_far <= watch.due) continue;
    }
    soonest = watch.due;
  }
  KJ_IF_MAYBE (due, soonest) {
    KJ_IF_MAYBE (armed, armed_) {
      if (*armed <= *due) return;
    }
    armed_ = *due;
    tasks_.add(timer_.atTime(*due).then([this, at = *due]() {
      KJ_IF_MAYBE (armed, armed_) {
        if (*armed == at) armed_ = nullptr;
      }
      wake();
    }));
  }
}

void ClusterWatches::wake() {
  if (asking_) return;
  const kj::TimePoint now = timer_.now();
  const auto answers = std::make_shared<Answers>();
  for (const auto& [key, watch] : watches_) {
    if (watch.unanswered || watch.due > now + kTogether) continue;
    answers->for_watches.insert(key);
    answers->sessions.emplace(watch.session, Status());
    if (watch.wanted.job.empty())
      answers->wants_all = true;
    else
      answers->job.emplace(watch.wanted.job, std::nullopt);
    answers->wants_nodes = answers->wants_nodes || watch.wanted.with_nodes;
  }
  if (!answers->for_watches.empty()) {
    // What runs elsewhere may outlive this: it holds only what outlives it, too.
    asking_ = ask_([answers, &control = control_, &check = check_token_,
                    recheck = options_.recheck] { answers->ask(control, check, recheck); },
                   [this, answers] { tell(*answers); });
    if (!asking_)
      for (const uint64_t key : answers->for_watches) watches_.at(key).due = now + kBusy;
  }
  arm();
}

void ClusterWatches::tell(const Answers& answers) {
  asking_ = false;
  const kj::TimePoint now = timer_.now();
  const kj::Duration repeat = options_.repeat.count() * kj::NANOSECONDS;
  for (const uint64_t key : answers.for_watches) {
    const auto found = watches_.find(key);
    if (found == watches_.end()) continue;  // its client is gone
    Watch& watch = found->second;
    const UpdateContent update = answers.for_watch(watch);
    capnp::MallocMessageBuilder message;
    auto written = message.initRoot<wire::Update>();
    write_update(written, update);
    const uint64_t hash = hash_of(message);
    watch.due = now + watch.interval;
    if (watch.said == hash && now - watch.said_at < repeat) continue;
    watch.said = hash;
    watch.said_at = now;
    push(key, watch, written.asReader());
  }
  arm();
}

void ClusterWatches::push(uint64_t key, Watch& watch, wire::Update::Reader update) {
  watch.unanswered = true;
  auto call = watch.sink.pushRequest(capnp::MessageSize{update.totalSize().wordCount + 32, 1});
  call.setUpdate(update);
  const bool last = update.getLast();
  tasks_.add(call.send().then(
      [this, key, last](auto&&) {
        const auto found = watches_.find(key);
        if (found == watches_.end()) return;
        found->second.unanswered = false;
        if (last) watches_.erase(found);
        arm();
      },
      [this, key](kj::Exception&&) { watches_.erase(key); }));
}

}  // namespace fastserve
