// Actor systems that meet over socket pairs, in one process and in two.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <caf/io/all.hpp>
#include <condition_variable>
#include <filesystem>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "actors/bits.h"
#include "actors/remoting.h"
#include "tests/net/lane_fixture.h"

namespace fastserve {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kUnderSanitizer = true;
#else
inline constexpr bool kUnderSanitizer = false;
#endif

struct Question {
  Bits<double> x;
  Bits<float> y;
  std::string text;
};
struct Reply {
  Bits<double> x;
  Bits<float> y;
  std::string text;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Question& q) {
  return f(q.x, q.y, q.text);
}
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Reply& r) {
  return f(r.x, r.y, r.text);
}

struct Introduction;
using EchoActor =
    caf::typed_actor<caf::replies_to<Question>::with<Reply>,
                     caf::replies_to<caf::atom_value>::with<std::string>,  // never answered
                     caf::reacts_to<Introduction>>;
using OtherActor = caf::typed_actor<caf::replies_to<Question>::with<std::string>>;

struct Introduction {
  EchoActor who;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Introduction& i) {
  return f(i.who);
}

/// Remembers how connections ended.
class Ends {
 public:
  void add(const Error& why) {
    const std::lock_guard lock(mutex_);
    ends_.push_back(why);
    changed_.notify_all();
  }
  Error wait() { return wait_for_count(1); }
  /// The last of the first `n`.
  Error wait_for_count(int n) {
    std::unique_lock lock(mutex_);
    FS_CHECK(changed_.wait_for(lock, std::chrono::seconds(30),
                               [&] { return ends_.size() >= static_cast<size_t>(n); }));
    return ends_[static_cast<size_t>(n) - 1];
  }
  void wait_for_ever() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ends_.empty(); });
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return ends_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Error> ends_;
};

/// The wire between two nodes, held where it can be cut.
struct Cord {
  Socket end;
  void cut() { ::shutdown(end.get(), SHUT_RDWR); }
};

/// An actor system with a published actor that echoes.
struct Node {
  explicit Node(bool publishes = true) {
    config.set("scheduler.max-threads", size_t{2});
    config.set("scheduler.policy", caf::atom("sharing"));
    config.add_message_type<Question>("test.Question");
    config.add_message_type<Reply>("test.Reply");
    config.add_message_type<Introduction>("test.Introduction");
    config.add_message_type<EchoActor>("test.EchoActor");
    Remoting::configure(config);
    system.emplace(config);
    remoting.emplace(*system);
    if (publishes) {
      front = spawn();
      FS_CHECK(remoting->publish(front).ok());
    }
  }
  ~Node() {
    remoting.reset();
    caf::anon_send_exit(front, caf::exit_reason::kill);
    for (const EchoActor& own : introduced) caf::anon_send_exit(own, caf::exit_reason::kill);
    front = nullptr;
    for (const caf::actor& watcher : watchers) caf::anon_send_exit(watcher, caf::exit_reason::kill);
    introduced.clear();
    watchers.clear();
    system.reset();
  }

  EchoActor spawn() {
    return system->spawn([this](EchoActor::pointer self) -> EchoActor::behavior_type {
      self->set_down_handler([this](const caf::down_msg&) {
        const std::lock_guard lock(mutex);
        lost++;
        changed.notify_all();
      });
      return {[](const Question& q) {
                return Reply{q.x, q.y, q.text};
              },
              [self](caf::atom_value) { return self->make_response_promise<std::string>(); },
              [this, self](const Introduction& i) {
                if (i.who)
                  self->monitor(i.who);
                else
                  empty_introductions++;
              }};
    });
  }

  /// Keeps the thread that reads and writes for this system busy.
  void hold_loop() {
    system->middleman().run_later([this] {
      while (holding) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  }
  void let_loop_go() { holding = false; }

  Remoting::Closed note_end() {
    return [this](const Error& why) { ended.add(why); };
  }
  Status adopt(Socket socket) {
    return remoting->adopt(plain_stream(std::move(socket), "the peer"), note_end());
  }
  template <class Handle>
  Result<Handle> try_join(Node& to, Cord* cord = nullptr) {
    SocketPair pair;
    if (cord != nullptr) cord->end = Socket(::dup(pair.a.get()));
    FS_TRY(to.adopt(std::move(pair.b)));
    return remoting->join<Handle>(plain_stream(std::move(pair.a), "the other"),
                                  std::chrono::seconds(20), note_end());
  }
  EchoActor join(Node& to) { return try_join<EchoActor>(to).value(); }
  EchoActor join(Node& to, Cord& cord) { return try_join<EchoActor>(to, &cord).value(); }
  EchoActor join(Socket socket) {
    return remoting
        ->join<EchoActor>(plain_stream(std::move(socket), "the child"), std::chrono::seconds(20),
                          note_end())
        .value();
  }

  Reply ask(caf::scoped_actor& self, const EchoActor& whom, const Question& question) {
    Reply got;
    self->request(whom, std::chrono::seconds(20), question)
        .receive([&](Reply& reply) { got = std::move(reply); },
                 [&](caf::error& error) { got.text = system->render(error); });
    return got;
  }
  Reply ask(const EchoActor& whom, const Question& question) {
    caf::scoped_actor self(*system);
    return ask(self, whom, question);
  }
  /// Sends a handle of an actor of this node, and waits until it has been taken up.
  void introduce(const EchoActor& to) {
    introduced.push_back(spawn());
    caf::anon_send(to, Introduction{introduced.back()});
    ask(to, {0, 0, "sync"});
  }
  bool wait_for_lost(int n, std::chrono::milliseconds timeout = std::chrono::seconds(20)) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, timeout, [&] { return lost >= n; });
  }
  /// The reason for which the actor is reported to be down.
  std::future<caf::error> watch(const EchoActor& whom) {
    auto reason = std::make_shared<std::promise<caf::error>>();
    auto future = reason->get_future();
    std::promise<void> watching;
    watchers.push_back(system->spawn([&](caf::event_based_actor* self) {
      self->monitor(whom);
      self->set_down_handler([self, reason](caf::down_msg& down) {
        reason->set_value(down.reason);
        self->quit();
      });
      self->become([](caf::unit_t) {});
      watching.set_value();
    }));
    watching.get_future().wait();
    return future;
  }

  caf::actor_system_config config;
  std::optional<caf::actor_system> system;
  std::optional<Remoting> remoting;
  EchoActor front;
  std::vector<EchoActor> introduced;
  std::vector<caf::actor> watchers;
  Ends ended;
  std::atomic<int> empty_introductions{0};
  std::atomic<bool> holding{true};
  std::mutex mutex;
  std::condition_variable changed;
  int lost = 0;  // actors that were introduced and are down
};

/// Another process with such a node, which has adopted the other end of a socket.
class ChildNode {
 public:
  static constexpr const char* kSocket = "FASTSERVE_TEST_SOCKET";

  ChildNode() {
    SocketPair pair;
    socket_ = std::move(pair.a);
    const Socket inherited(::dup(pair.b.get()));  // without close-on-exec
    const std::string variable = std::string(kSocket) + "=" + std::to_string(inherited.get());
    std::string program = std::filesystem::read_symlink("/proc/self/exe");
    std::string which = "--test-case=(child)*", skipped = "--no-skip";
    std::array<char*, 4> arguments{program.data(), which.data(), skipped.data(), nullptr};
    std::string own = variable;
    std::array<char*, 2> environment{own.data(), nullptr};
    FS_CHECK(::posix_spawn(&child_, program.c_str(), nullptr, nullptr, arguments.data(),
                           environment.data()) == 0);
  }
  ~ChildNode() {
    signal(SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  Socket take_socket() { return std::move(socket_); }
  void signal(int number) const { ::kill(child_, number); }

 private:
  Socket socket_;
  pid_t child_ = -1;
};

}  // namespace fastserve
