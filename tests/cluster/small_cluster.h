// A cluster of plain classes: an authority, a state in memory, a clock that is told.
#pragma once

#include <doctest/doctest.h>

#include "cluster/membership.h"
#include "tests/cluster/memory_state.h"

namespace fastserve::testing {

/// Both hands of a clock, each set on its own.
class SetClock final : public Clock {
 public:
  Nanoseconds now() const override { return monotonic; }
  int64_t unix_seconds() const override { return wall; }
  void pass(int64_t seconds) {
    wall += seconds;
    monotonic += std::chrono::seconds(seconds);
  }
  // Far from the certificates' real time: nothing here asks what time it is.
  int64_t wall = 1'700'000'000;
  Nanoseconds monotonic = std::chrono::hours(3);
};

struct SmallCluster {
  SmallCluster() {
    REQUIRE(Membership::create(state, authority).ok());
    restart();
  }
  /// The coordinator ends, and another one opens what it left.
  void restart() {
    members.reset();
    members = Membership::open(state, clock, authority).value();
  }
  std::string join_token(int64_t uses = 0) { return members->make_join_token(0, uses, "").value(); }
  Result<JoinGrant> join(const std::string& name, const KeyAndRequest& key,
                         const std::string& token) {
    return members->join(ask(name, key, token), "0.1.0");
  }
  static JoinAsk ask(const std::string& name, const KeyAndRequest& key, const std::string& token) {
    JoinAsk ask;
    ask.version = "0.1.0";
    ask.token = token;
    ask.name = name;
    ask.roles = {"trainer"};
    ask.lanes = 4;
    ask.request = key.request;
    return ask;
  }
  static NodeClaim claim_of(const Result<JoinGrant>& grant) {
    REQUIRE_MESSAGE(grant.ok(), grant.error().message());
    return read_claim(grant->certificate).value();
  }

  SetClock clock;
  MemoryState state;
  CertificateAuthority authority = CertificateAuthority::create(clock.wall).value();
  std::unique_ptr<Membership> members;
};

/// Keys take a while to make under sanitizers; tests share these three.
inline const KeyAndRequest& key_number(size_t i) {
  static const std::vector<KeyAndRequest> keys = {make_key_and_request().value(),
                                                  make_key_and_request().value(),
                                                  make_key_and_request().value()};
  return keys.at(i);
}

template <class T>
std::string said(const Result<T>& result) {
  return result.ok() ? "" : result.error().message();
}
inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace fastserve::testing
