// What coordinators and nodes say to each other of duties and transfers, and the threads that do
// them.
#include "cluster/duty.h"

#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>

#include "cluster/duty_runner.h"
#include "cluster/transfer_documents.h"

using namespace fastserve;

TEST_CASE("orders and reports come across whole") {
  const std::vector<DutyOrder> orders = {
      {"1a2b3c4d", DutyKind::kDeploy, "poems@3", Json::object({{"port", 8080}})},
      {"5e6f7a8b", DutyKind::kCompress, "verses@1", Json()}};
  const auto read = parse_orders(encode_orders(orders));
  REQUIRE(read.ok());
  REQUIRE(read->size() == 2);
  CHECK(read->at(0).settings == orders[0].settings);
  CHECK(read->at(1).kind == DutyKind::kCompress);
  CHECK(read->at(1).model == "verses@1");

  DutyReport failed;
  failed.id = "1a2b3c4d";
  failed.state = DutyReport::State::kFailed;
  failed.stage = "fetching";
  failed.fraction = 0.25;
  failed.error = Error{ErrorCode::kContractBroken, "is worse", "poems@3", "try int8"};
  DutyReport serving;
  serving.id = "5e6f7a8b";
  serving.state = DutyReport::State::kServing;
  serving.host = "10.0.0.2";
  serving.port = 8080;
  const auto said = parse_reports(encode_reports({failed, serving}));
  REQUIRE(said.ok());
  REQUIRE(said->size() == 2);
  CHECK(said->at(0).state == DutyReport::State::kFailed);
  CHECK(said->at(0).fraction == 0.25);
  CHECK(said->at(0).error->message() == failed.error->message());
  CHECK(said->at(0).error->code == ErrorCode::kContractBroken);
  CHECK(said->at(1).host == "10.0.0.2");
  CHECK(said->at(1).port == 8080);
}

TEST_CASE("what is no list of orders or reports is refused") {
  for (const char* bad : {"", "{}", "[1]", R"([{"id": 5}])", R"([{"kind": "deploy"}])",
                          R"([{"id": "a", "state": "asleep"}])",
                          R"([{"id": "a", "state": "serving", "port": 70000}])"}) {
    CAPTURE(bad);
    CHECK_FALSE(parse_reports(bad).ok());
    CHECK_FALSE(parse_orders(bad).ok());
  }
  const auto unknown = parse_orders(R"([{"id": "a", "kind": "dance"}])");
  CHECK(unknown.error().code == ErrorCode::kUnsupported);
  std::string many = "[";
  for (size_t i = 0; i <= kMostDuties; i++) many += R"({"id": "a", "kind": "deploy"},)";
  many.back() = ']';
  CHECK_FALSE(parse_orders(many).ok());
  CHECK(parse_orders("[]")->empty());
}

TEST_CASE("a request for a transfer comes across, and a refusal is the Error that it was") {
  TransferAsk ask;
  ask.want = TransferAsk::Want::kGenerate;
  ask.token = "fsa1-...";
  ask.model = "poems@best";
  ask.duty = "1a2b3c4d";
  const auto read = parse_transfer_ask(encode(ask));
  REQUIRE(read.ok());
  CHECK(read->want == ask.want);
  CHECK(read->token == ask.token);
  CHECK(read->model == ask.model);
  CHECK(read->duty == ask.duty);
  CHECK(parse_transfer_ask(R"({"want": "sing"})").error().code == ErrorCode::kUnsupported);
  CHECK(parse_transfer_ask("[]").error().code == ErrorCode::kCorrupt);
  CHECK(parse_transfer_ask(R"({"want": "pull", "model": 5})").error().code == ErrorCode::kCorrupt);
  const Error error{ErrorCode::kNotFound, "is not there", "poems@9", "look at the list"};
  const auto refused = parse_transfer_answer(encode_refusal_of(error));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == error.code);
  CHECK(refused.error().message() == error.message());
  CHECK(parse_transfer_answer(encode_answer(Json::object({{"model", "a@1"}})))
            ->find("model")
            ->as_string() == "a@1");
}

namespace {

/// Work that a test lets go on.
struct Script {
  Result<Json> work(const DutyOrder& order, const DutyRunner::Tell& tell,
                    const CancelFlag& cancel) {
    began++;
    DutyReport now;
    now.state = DutyReport::State::kServing;
    tell(now);
    std::unique_lock lock(mutex);
    while (!cancel.raised() && !done) changed.wait_for(lock, std::chrono::milliseconds(1));
    ended++;
    if (order.model == "bad@1") return Error{ErrorCode::kNotFound, "is not there", "bad@1", ""};
    return Json::object({{"model", order.model}});
  }
  void finish() {
    const std::lock_guard lock(mutex);
    done = true;
    changed.notify_all();
  }
  std::atomic<int> began{0}, ended{0};
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

template <class Wanted>
void until(const Wanted& wanted) {
  while (!wanted()) std::this_thread::yield();
}

}  // namespace

TEST_CASE("a node begins what it is ordered, and ends what is ordered no more") {
  Script script;
  DutyRunner runner([&](const auto&... a) { return script.work(a...); });
  const DutyOrder a{"a", DutyKind::kDeploy, "poems@1", {}}, b{"b", DutyKind::kDeploy, "bad@1", {}};
  runner.set({a, b});
  runner.set({a, b});  // said twice is done once
  until([&] { return script.began == 2; });
  runner.set({b});
  until([&] { return script.ended == 1; });
  const auto reports = runner.reports();
  REQUIRE(reports.size() == 1);
  CHECK(reports[0].id == "b");
  runner.set({a, b});  // again: as soon as its last thread has gone
  until([&] {
    [[maybe_unused]] const auto said = runner.reports();
    return script.began == 3;
  });
  script.finish();
  until([&] { return script.ended == 3; });
  until([&] {
    const auto said = runner.reports();
    return said.size() == 2 && said[0].state == DutyReport::State::kFinished &&
           said[1].state == DutyReport::State::kFailed;
  });
  const auto said = runner.reports();
  CHECK(said[0].result.find("model")->as_string() == "poems@1");
  CHECK(said[1].error->code == ErrorCode::kNotFound);
  CHECK(script.began == 3);  // what has ended by itself is not begun again
}

TEST_CASE("a node that goes ends everything it does") {
  Script script;
  {
    DutyRunner runner([&](const auto&... a) { return script.work(a...); });
    runner.set({{"a", DutyKind::kDeploy, "poems@1", {}}, {"b", DutyKind::kDeploy, "verses@1", {}}});
    until([&] { return script.began == 2; });
  }
  CHECK(script.ended == 2);
}
