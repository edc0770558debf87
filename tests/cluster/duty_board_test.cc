// Who serves and who compresses, as nodes come, go, drain and fail.
#include "cluster/duty_board.h"

#include <doctest/doctest.h>

#include "memory_state.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

using State = NodeStatus::State;

NodeStatus node(const std::string& name, std::vector<std::string> roles = {"server"},
                State state = State::kReady) {
  NodeStatus status;
  status.name = name;
  status.roles = std::move(roles);
  status.state = state;
  status.lanes = 2;
  return status;
}

DutyReport report(const std::string& id, DutyReport::State state) {
  DutyReport said;
  said.id = id;
  said.state = state;
  said.stage = "loading";
  said.host = "127.0.0.1";
  said.port = 9000;
  return said;
}

struct Board {
  Board() { reopen(); }
  void reopen() {
    auto opened = DutyBoard::open(state, clock);
    if (!opened.ok()) FAIL(opened.error().message());
    board = std::move(*opened);
  }
  std::string deploy(const std::string& model, const std::string& pinned = "") {
    const auto id = board->add(DutyKind::kDeploy, model, Json::object({}), pinned);
    if (!id.ok()) FAIL(id.error().message());
    return *id;
  }
  std::string compress(const std::string& model) {
    const auto id = board->add(DutyKind::kCompress, model, Json::object({}), "");
    if (!id.ok()) FAIL(id.error().message());
    return *id;
  }
  void settle(const std::vector<NodeStatus>& nodes, Nanoseconds later = {}) {
    clock.advance(later);
    board->settle(nodes);
  }
  void serves(const std::string& id, const std::string& on) {
    board->report(on, {report(id, DutyReport::State::kServing)});
  }
  void fails(const std::string& id, const std::string& on, ErrorCode code) {
    DutyReport said = report(id, DutyReport::State::kFailed);
    said.error = Error{code, "does not go", on, "try another"};
    board->report(on, {said});
  }
  Duty duty(const std::string& id) { return board->find(id).value(); }
  std::string node_of(const std::string& id) { return duty(id).node; }

  MemoryState state;
  ManualClock clock;
  std::unique_ptr<DutyBoard> board;
};

constexpr auto kLong = DutyBoard::kPatience + std::chrono::seconds(1);

}  // namespace

TEST_CASE("deployments go to the ready node with the role that has the least to do") {
  Board b;
  const std::vector<NodeStatus> nodes = {node("a"), node("b"), node("c", {"trainer"}),
                                         node("d", {"server"}, State::kDraining)};
  const std::string first = b.deploy("poems@1");
  b.settle(nodes);
  CHECK(b.node_of(first) == "a");
  const std::string second = b.deploy("verses@1"), third = b.deploy("prose@2", "a");
  b.settle(nodes);
  CHECK(b.node_of(second) == "b");
  CHECK(b.node_of(third) == "a");
  const auto orders = b.board->orders("a");
  REQUIRE(orders.size() == 2);
  CHECK(b.board->orders("c").empty());
  CHECK(b.duty(first).state == Duty::State::kWaiting);
  b.serves(first, "b");  // which does not have it
  CHECK(b.duty(first).state == Duty::State::kWaiting);
  b.serves(first, "a");
  CHECK(b.duty(first).serving());
  CHECK(b.duty(first).note == "serves on node a at 127.0.0.1:9000");
}

TEST_CASE("a deployment stays with a node that comes back soon, and moves from one that does not") {
  Board b;
  const std::string id = b.deploy("poems@1"), pinned = b.deploy("verses@1", "a");
  b.settle({node("a"), node("b", {"server"}, State::kGone)});
  b.serves(id, "a");
  const std::vector<NodeStatus> away = {node("a", {"server"}, State::kGone), node("b")},
                                silent = {node("a", {"server"}, State::kSilent), node("b")};
  b.settle(away, std::chrono::seconds(2));
  CHECK(b.node_of(id) == "a");
  CHECK(b.duty(id).state == Duty::State::kWaiting);
  CHECK(b.duty(id).note == "node a does not answer");
  b.settle({node("a"), node("b")}, std::chrono::seconds(5));
  b.serves(id, "a");
  CHECK(b.duty(id).serving());
  b.settle(silent, std::chrono::seconds(14));  // it may be slow: its connection is there
  CHECK(b.node_of(id) == "a");
  b.settle(away);  // which tells more
  CHECK(b.node_of(id) == "b");
  CHECK(b.node_of(pinned) == "a");
  b.settle(away);
  CHECK(b.duty(pinned).note == "waits for node a, which is gone");
  const auto events = b.board->events(id).value();
  REQUIRE(events.size() >= 2);
  CHECK(events[events.size() - 2].find("node a was lost") != std::string::npos);
}

TEST_CASE("a coordinator that is started again waits for the nodes before it moves anything") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a"), node("b")});
  const std::string at = b.node_of(id), other = at == "a" ? "b" : "a";
  b.serves(id, at);
  b.reopen();
  const std::vector<NodeStatus> half = {node(at, {"server"}, State::kGone), node(other)};
  b.settle(half, std::chrono::seconds(14));
  CHECK(b.node_of(id) == at);
  b.settle(half, kLong);
  CHECK(b.node_of(id) == other);
}

TEST_CASE("draining a node moves its deployments, or ends them there with a word") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  b.settle({node("a", {"server"}, State::kDraining)});
  CHECK(b.node_of(id).empty());
  CHECK(b.board->orders("a").empty());
  b.settle({node("a", {"server"}, State::kDraining)});
  CHECK(b.duty(id).note == "waits for a node with the role server");
  b.settle({node("a", {"server"}, State::kDraining), node("b")});
  CHECK(b.node_of(id) == "b");
  b.settle({node("a"), node("b", {"server"}, State::kDraining)});
  CHECK(b.node_of(id) == "a");
}

TEST_CASE("a deployment that leaves a node answers there until the other node has it") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  const std::vector<NodeStatus> drained = {node("a", {"server"}, State::kDraining), node("b")};
  b.settle(drained);
  CHECK(b.node_of(id) == "b");
  CHECK(b.board->orders("a").size() == 1);
  CHECK(b.board->orders("b").size() == 1);
  CHECK(b.board->busy() == std::set<std::string>{"a", "b"});
  CHECK(b.board->serving("poems")->node == "a");
  b.serves(id, "a");  // it goes on saying so
  b.settle(drained);
  CHECK(b.board->serving("poems")->node == "a");
  b.serves(id, "b");
  CHECK(b.board->serving("poems")->node == "b");
  b.settle(drained);
  CHECK(b.board->orders("a").empty());
  CHECK(b.board->busy() == std::set<std::string>{"b"});
}

TEST_CASE("a deployment whose next node cannot have it stays where it is served") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  const std::vector<NodeStatus> drained = {node("a", {"server"}, State::kDraining), node("b"),
                                           node("c")};
  b.settle(drained);
  REQUIRE(b.node_of(id) == "b");
  b.fails(id, "b", ErrorCode::kResourceExhausted);
  b.settle(drained);
  CHECK(b.node_of(id) == "c");
  b.fails(id, "c", ErrorCode::kResourceExhausted);
  b.settle(drained);
  CHECK(b.duty(id).state == Duty::State::kWaiting);
  CHECK(b.board->serving("poems")->node == "a");
  b.settle({node("a"), node("b"), node("c")});  // it need not leave
  CHECK(b.node_of(id) == "a");
  b.settle({node("a"), node("b"), node("c")});
  CHECK(b.duty(id).serving());
}

TEST_CASE("a node that a deployment leaves is not waited for when it is gone") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  b.settle({node("a", {"server"}, State::kDraining), node("b"), node("c")});
  b.settle({node("a", {"server"}, State::kGone), node("b"), node("c")});
  CHECK(b.board->serving("poems").error().code == ErrorCode::kUnavailable);
  CHECK(b.board->cancel(id).ok());
  CHECK(b.board->busy().empty());
}

TEST_CASE("what has ended can be forgotten, and what has not cannot") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  CHECK(b.board->remove(id).error().code == ErrorCode::kUnavailable);
  CHECK(b.board->cancel(id).ok());
  CHECK(b.board->remove(id).ok());
  CHECK(b.board->find(id).error().code == ErrorCode::kNotFound);
  b.reopen();
  CHECK(b.board->all().empty());
  CHECK(b.board->remove(id).error().code == ErrorCode::kNotFound);
}

TEST_CASE("a node that cannot is passed over, until none is left that could") {
  Board b;
  const std::vector<NodeStatus> nodes = {node("a"), node("b")};
  const std::string id = b.deploy("poems@1");
  b.settle(nodes);
  b.fails(id, "a", ErrorCode::kResourceExhausted);
  b.settle(nodes);
  CHECK(b.node_of(id) == "b");
  b.fails(id, "b", ErrorCode::kResourceExhausted);
  b.settle(nodes);
  CHECK(b.duty(id).state == Duty::State::kFailed);
  CHECK(b.duty(id).error->where == "b");
  // What is wrong with the model is wrong everywhere.
  const std::string other = b.deploy("verses@1");
  b.settle(nodes);
  b.fails(other, b.node_of(other), ErrorCode::kNotFound);
  CHECK(b.duty(other).state == Duty::State::kFailed);
}

TEST_CASE("a compression is the coordinator's own where no node has the role") {
  Board b;
  const std::string id = b.compress("poems@1");
  b.settle({node("a")});
  CHECK(b.node_of(id) == kCoordinatorItself);
  CHECK(b.duty(id).note.find("the coordinator itself") != std::string::npos);
  DutyReport done = report(id, DutyReport::State::kFinished);
  done.result = Json::object({{"model", "poems@2"}});
  b.board->report(kCoordinatorItself, {done});
  CHECK(b.duty(id).state == Duty::State::kFinished);
  CHECK(b.duty(id).published == "poems@2");
  CHECK(b.board->orders(kCoordinatorItself).empty());
  const std::string other = b.compress("poems@1");
  b.settle({node("a", {"compressor"})});
  CHECK(b.node_of(other) == "a");
}

TEST_CASE("a compression that loses node after node fails with a word") {
  Board b;
  const std::vector<std::string> role = {"compressor"};
  const std::string id = b.compress("poems@1");
  b.settle({node("a", role), node("b", role)});
  for (int i = 0; i < DutyBoard::kMostLost; i++) {
    const std::string at = b.node_of(id), other = at == "a" ? "b" : "a";
    REQUIRE_FALSE(at.empty());
    const std::vector<NodeStatus> nodes = {node(at, role, State::kGone), node(other, role)};
    b.settle(nodes);
    b.settle(nodes, kLong);
  }
  CHECK(b.duty(id).state == Duty::State::kFailed);
  CHECK(b.duty(id).error->what.find("lost with 3 nodes") != std::string::npos);
}

TEST_CASE(
    "a coordinator that is started again knows its deployments, and leaves them where they are") {
  Board b;
  const std::string id = b.deploy("poems@1"), gone = b.deploy("verses@1");
  b.settle({node("a"), node("b")});
  const std::string at = b.node_of(id);
  b.serves(id, at);
  REQUIRE(b.board->cancel(gone).ok());
  b.reopen();
  CHECK(b.node_of(id) == at);
  CHECK(b.duty(id).state == Duty::State::kWaiting);
  CHECK(b.board->orders(at).size() == 1);
  CHECK(b.duty(gone).state == Duty::State::kCancelled);
  const std::vector<NodeStatus> before = {node("a", {"server"}, State::kGone),
                                          node("b", {"server"}, State::kGone)};
  b.settle(before);
  b.settle({node("a"), node("b")}, std::chrono::seconds(2));
  CHECK(b.node_of(id) == at);
  b.serves(id, at);
  CHECK(b.duty(id).serving());
}

TEST_CASE("what is cancelled is ordered no more, and what has ended cannot be") {
  Board b;
  const std::string id = b.deploy("poems@1");
  b.settle({node("a")});
  b.serves(id, "a");
  CHECK(b.board->cancel(id).ok());
  CHECK(b.board->orders("a").empty());
  b.serves(id, "a");
  CHECK(b.duty(id).state == Duty::State::kCancelled);
  CHECK(b.board->cancel(id).error().code == ErrorCode::kInvalidArgument);
  CHECK(b.board->cancel("00000000").error().code == ErrorCode::kNotFound);
}

TEST_CASE("who asks for a model is told where it answers, or what to do") {
  Board b;
  CHECK(b.board->serving("poems").error().code == ErrorCode::kNotFound);
  const std::string old = b.deploy("poems@1");
  b.settle({node("a")});
  const auto early = b.board->serving("poems");
  CHECK(early.error().code == ErrorCode::kUnavailable);
  CHECK(early.error().hint.find(old) != std::string::npos);
  b.serves(old, "a");
  b.clock.advance(std::chrono::seconds(5));
  const std::string newer = b.deploy("poems@2");
  CHECK(b.board->serving("poems")->id == old);  // the newer one is not there yet
  b.settle({node("a")});
  b.serves(newer, "a");
  CHECK(b.board->serving("poems")->id == newer);
  CHECK(b.board->serving("poems@1")->id == old);
  const auto none = b.board->serving("prose");
  CHECK(none.error().code == ErrorCode::kNotFound);
  CHECK(none.error().hint.find("poems@1, poems@2") != std::string::npos);
}

TEST_CASE("a full disk refuses a deployment, and the board goes on") {
  Board b;
  b.state.full = true;
  CHECK(b.board->add(DutyKind::kDeploy, "poems@1", Json::object({}), "").error().code ==
        ErrorCode::kResourceExhausted);
  CHECK(b.board->all().empty());
  b.state.full = false;
  b.deploy("poems@1");
}
