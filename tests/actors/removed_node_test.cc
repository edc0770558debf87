// What other nodes have to do with one that was removed: nothing.
#include <poll.h>

#include "in_process_cluster.h"

using namespace fastserve;

namespace {

/// A peer that is connected to a node for tensors, and here to be looked at.
class Peer {
 public:
  Peer(ClusterNode& node, const std::string& name) {
    auto [here, there] = stream_pair();
    stream_ = std::move(here);
    node.bulk_connected({std::move(there), NodeClaim{"c", name, {}, 0}, ""});
  }
  void leave() { stream_->shut_down(); }
  bool is_cut() {
    char bytes[256];
    pollfd look{stream_->fd(), POLLIN, 0};
    while (::poll(&look, 1, 1) == 1)
      if (::read(look.fd, bytes, sizeof bytes) <= 0) return true;
    return false;
  }
  /// Whatever the node says meanwhile.
  void wait_until_cut() {
    char bytes[256];
    pollfd look{stream_->fd(), POLLIN, 0};
    constexpr int kPatience = 10'000;  // ms
    while (::poll(&look, 1, kPatience) == 1)
      if (::read(look.fd, bytes, sizeof bytes) <= 0) return;
    FAIL("the lane is still there");
  }

 private:
  std::unique_ptr<Stream> stream_;
};

}  // namespace

TEST_CASE("a node asks the coordinator whether a peer that connects belongs to the cluster") {
  InProcessCluster cluster;
  cluster.add("one");
  cluster.wait_for_nodes(1);
  CHECK(cluster.node("one").admitted({"c", "two", {}, 0}).ok());
  cluster.disown("two");
  const Status refused = cluster.node("one").admitted({"c", "two", {}, 0});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().what == "was removed");
}

TEST_CASE("while a node is without its coordinator it lets no new peer in") {
  InProcessCluster cluster;
  cluster.add("one");
  cluster.wait_for_nodes(1);
  cluster.kill_coordinator();
  Status refused;
  for (int i = 0; i < 1000 && refused.ok(); i++)
    refused = cluster.node("one").admitted({"c", "two", {}, 0});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kUnavailable);
}

TEST_CASE("who is removed loses the lanes to the other nodes") {
  InProcessCluster cluster;
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Peer two(cluster.node("one"), "two");
  cluster.disown("two");
  cluster.coordinator().forget("two");
  two.wait_until_cut();
}

TEST_CASE("a node that is back asks about the peers that it has lanes to, and no others") {
  InProcessCluster cluster;
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Peer gone(cluster.node("one"), "gone");
  gone.leave();
  std::optional<Peer> there;  // the node lets go of lanes that have ended when another comes
  do there.emplace(cluster.node("one"), "there");
  while (!gone.is_cut());
  cluster.kill_coordinator();
  cluster.start_coordinator();
  cluster.wait_for_nodes(1);
  for (int i = 0; i < 1000 && cluster.asked_about("there") == 0; i++)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(cluster.asked_about("there") == 1);
  CHECK(cluster.asked_about("gone") == 0);
}

TEST_CASE("who is removed while a node is away loses its lane when that node is back") {
  InProcessCluster cluster;
  cluster.add("one");
  cluster.wait_for_nodes(1);
  Peer two(cluster.node("one"), "two");
  cluster.kill_coordinator();
  cluster.disown("two");
  cluster.start_coordinator();
  two.wait_until_cut();
}
