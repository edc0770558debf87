// Processes that crash and stand still, connections that break, and clocks that are wrong: all in
// one thread, in simulated time, by one seed.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/rng.h"

namespace fastserve::simulated {

using namespace std::chrono_literals;
using Call = std::function<void()>;

class World;

/// Runs at a rate of its own, and jumps.
class WrongClock final : public Clock {
 public:
  explicit WrongClock(const World& world) : world_(world) {}
  Nanoseconds now() const override;
  int64_t unix_seconds() const override { return 0; }
  void jump(Nanoseconds by) { offset_ += by; }
  double rate = 1;

 private:
  const World& world_;
  Nanoseconds offset_{0};
};

/// What a crash ends, and SIGSTOP holds up.
struct Process {
  explicit Process(const World& world) : clock(world) {}
  bool alive = true;
  Nanoseconds stopped_until{0};
  WrongClock clock;
};
using ProcessHandle = std::shared_ptr<Process>;

/// Keeps messages in order on their way from one to one other.
struct Channel {
  Nanoseconds last{0};
};

class World {
 public:
  explicit World(uint64_t seed) : rng(seed) {}

  Nanoseconds now() const { return now_; }
  /// Between `least` and `most`, small ones more often.
  Nanoseconds delay(Nanoseconds least, Nanoseconds most) {
    const double u = rng.uniform();
    return least +
           Nanoseconds(static_cast<int64_t>(u * u * static_cast<double>((most - least).count())));
  }
  bool chance(double probability) { return rng.uniform() < probability; }

  /// Unless the process is dead by then; when it stands still, later.
  void post(const ProcessHandle& process, Nanoseconds after, Call call) {
    events_.push({now_ + after, order_++, process, std::move(call)});
  }
  /// The same, behind what was sent through the channel before.
  void send(Channel& channel, const ProcessHandle& process, Nanoseconds after, Call call) {
    channel.last = std::max(channel.last + 1ns, now_ + after);
    events_.push({channel.last, order_++, process, std::move(call)});
  }
  /// To an actor of the same process.
  void tell(Channel& channel, const ProcessHandle& process, Call call) {
    send(channel, process, delay(1us, chance(0.1) ? 5ms : 50us), std::move(call));
  }

  /// One event; false when there is none.
  bool step() {
    if (events_.empty()) return false;
    Event event = events_.top();
    events_.pop();
    now_ = std::max(now_, event.at);
    if (!event.process->alive) return true;
    if (event.process->stopped_until > now_) {
      event.at = event.process->stopped_until;
      events_.push(std::move(event));
    } else {
      event.call();
    }
    return true;
  }

  Rng rng;
  /// Microbatches of the segment that a shard of an incarnation has applied.
  std::map<std::pair<uint64_t, uint32_t>, uint64_t> applied;
  /// What each round of an incarnation has counted.
  std::map<std::pair<uint64_t, StepId>, std::string> counted;
  std::string trouble;  ///< a promise that was found broken; empty: none

 private:
  struct Event {
    Nanoseconds at;
    uint64_t order;
    ProcessHandle process;
    Call call;
    bool operator<(const Event& other) const {
      return std::pair(at, order) > std::pair(other.at, other.order);
    }
  };
  Nanoseconds now_{0};
  uint64_t order_ = 0;
  std::priority_queue<Event> events_;
};

inline Nanoseconds WrongClock::now() const {
  return offset_ +
         Nanoseconds(static_cast<int64_t>(rate * static_cast<double>(world_.now().count())));
}

/// A connection of two processes. What is under way when it breaks is lost, but for a first part;
/// each end hears of the break in its own time, and until then sends into the void.
class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(World& world, ProcessHandle one, ProcessHandle other)
      : world_(world), ends_{End{std::move(one)}, End{std::move(other)}} {}

  /// What end `e` does when it hears of the break.
  void on_lost(int e, Call call) { ends_[e].lost = std::move(call); }
  bool broken() const { return broken_; }

  /// From end `from`, in order with what has the same urgency. `repeatable`: a retry may bring it
  /// again, and late.
  void send(int from, Call call, bool repeatable = false, uint32_t urgency = 0) {
    End& to = ends_[1 - from];
    if (broken_ || ends_[from].closed) return;
    const auto arrive = [self = shared_from_this(), e = 1 - from, call] { self->deliver(e, call); };
    Channel& channel = to.inbound[urgency];
    channel.last = std::max(channel.last, to.open_at);
    world_.send(channel, to.process, world_.delay(50us, world_.chance(0.05) ? 200ms : 3ms), arrive);
    if (repeatable && world_.chance(0.05))
      world_.post(to.process,
                  channel.last - world_.now() + world_.delay(1ms, world_.chance(0.3) ? 2s : 50ms),
                  arrive);
  }
  /// The same, before anything else.
  void open(int from, Call call) {
    send(from, std::move(call));
    ends_[1 - from].open_at = ends_[1 - from].inbound[0].last;
  }

  void break_off() {
    if (broken_) return;
    broken_ = true;
    for (int e : {0, 1}) {
      const Nanoseconds heard = world_.delay(100us, world_.chance(0.2) ? 4s : 20ms);
      ends_[e].until = world_.now() + world_.delay(0ns, heard);
      world_.post(ends_[e].process, heard, [self = shared_from_this(), e] {
        self->ends_[e].closed = true;
        const Call lost = std::exchange(self->ends_[e].lost, {});
        if (lost) lost();
      });
    }
  }
  /// The simulation ends. What an end would do when it hears of the break often holds the link.
  void abandon() {
    for (End& end : ends_) end.lost = {};
  }
  /// End `e` wants to hear no more of it.
  void forget(int e) {
    ends_[e].lost = {};
    ends_[e].closed = true;
    break_off();
  }

 private:
  struct End {
    explicit End(ProcessHandle at) : process(std::move(at)) {}
    ProcessHandle process;
    std::map<uint32_t, Channel> inbound;  // by urgency
    Nanoseconds open_at{0};
    Call lost;
    bool closed = false;
    Nanoseconds until = Nanoseconds::max();
  };
  void deliver(int e, const Call& call) {
    if (!ends_[e].closed && world_.now() <= ends_[e].until) call();
  }

  World& world_;
  End ends_[2];
  bool broken_ = false;
};
using LinkHandle = std::shared_ptr<Link>;

/// One end of a connection.
struct LinkEnd {
  LinkHandle link;
  int end = 0;
  void send(Call call, bool repeatable = false, uint32_t urgency = 0) const {
    if (link) link->send(end, std::move(call), repeatable, urgency);
  }
  bool operator==(const LinkEnd& other) const { return link == other.link; }
};

}  // namespace fastserve::simulated
