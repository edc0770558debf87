// The calls of a cluster's control service, as its client makes them.
#include "cluster_fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

TEST_CASE("nodes and jobs come across whole") {
  ServedCluster served;
  served.control.put(some_job("j1"));
  const auto client = served.connect("read");
  CHECK(client->server().starts_with("fastserve "));
  CHECK(client->role() == AccessRole::kRead);
  const auto nodes = client->nodes();
  REQUIRE(nodes.ok());
  REQUIRE(nodes->size() == 2);
  const NodeStatus& node = nodes->back();
  CHECK(node.name == "n2");
  CHECK(node.address == "10.0.0.2:7071");
  CHECK(node.roles == std::vector<std::string>{"trainer", "parameter-server"});
  CHECK(node.state == NodeStatus::State::kDraining);
  CHECK(node.lanes == 8);
  CHECK(node.version == "0.1.0");
  CHECK(node.device == "cpu avx512");
  CHECK(node.numerics_id == "n1");
  CHECK(node.joined_unix == 1'700'000'000);
  CHECK(node.last_heard_unix == 1'700'000'009);
  CHECK(node.clock_skew_seconds == -0.25);
  CHECK(node.note == "drains");
  CHECK(node.job == "j1");
  CHECK(node.share == 0.5);
  CHECK(node.tokens_per_second == 1234.5);
  CHECK(node.bytes_per_second == 1e9);
  const auto job = client->job("j1");
  REQUIRE(job.ok());
  CHECK(job->id == "j1");
  CHECK(job->kind == "compress");
  CHECK(job->model == "poems");
  CHECK(job->state == "running");
  CHECK(job->created_unix == 1'700'000'001);
  CHECK(job->step == 10);
  CHECK(job->steps == 100);
  CHECK(job->loss == 2.5);
  CHECK(job->validation_loss == 2.25);
  CHECK(job->tokens_per_second == 5000);
  CHECK(job->eta_seconds == 12.5);
  CHECK(job->incarnation == 3);
  CHECK(job->replayed_steps == 7);
  CHECK(job->note == "goes well");
  CHECK(job->details == some_job("j1").details);
  const auto jobs = client->jobs();
  REQUIRE(jobs.ok());
  REQUIRE(jobs->size() == 1);
  CHECK(jobs->front().details == some_job("j1").details);
  CHECK(*client->cluster_status() == served.control.status());
  CHECK(client->status() == served.control.status());
}

TEST_CASE("every call reaches the coordinator as it was meant") {
  ServedCluster served;
  served.control.lines = {"one", "two", "three"};
  const auto client = served.connect();
  CHECK(client->drain("n1", true).ok());
  CHECK(client->drain("n1", false).ok());
  CHECK(client->remove("n2").ok());
  const Json request = Json::object({{"model", "poems"}, {"steps", 5}, {"learning_rate", 1e-3}});
  CHECK(*client->train(request) == "j1");
  CHECK(client->pause("j1").ok());
  CHECK(client->resume("j1").ok());
  CHECK(client->cancel("j1").ok());
  CHECK(client->remove_job("j1").ok());
  CHECK(*client->log("j1", 1, 2) == std::vector<std::string>{"two", "three"});
  CHECK(*client->audit("j1") == Json::object({{"steps", 100}, {"samples", 1200}}));
  CHECK(*client->make_access_token(AccessRole::kRun, "ci", 3600) == "fsa1-fresh");
  CHECK(*client->make_join_token(60) == "fsj1-fresh");
  CHECK(client->tokens()->as_array().at(0).find("id")->as_string() == "5f3a91c2");
  CHECK(client->revoke_token("5f3a91c2").ok());
  CHECK(served.control.calls() ==
        std::vector<std::string>{"drain n1 true", "drain n1 false", "remove n2",
                                 "train " + request.dump(), "pause j1", "resume j1", "cancel j1",
                                 "remove job j1", "log j1 1 2", "audit j1", "access 1 ci 3600",
                                 "join 60", "tokens", "revoke 5f3a91c2"});
}

TEST_CASE("models are looked at, changed, deployed and compressed over the connection") {
  ServedCluster served;
  const auto client = served.connect();
  CHECK(client->models("poems")->as_array().at(0).find("version")->as_int() == 3);
  CHECK(client->models("absent").error().code == ErrorCode::kNotFound);
  CHECK(*client->change_model(ModelChange::kTag, "poems@3", "best") == 0);
  CHECK(*client->change_model(ModelChange::kRemove, "poems@2", "") == 4096);
  CHECK(client->verify_model("poems", {}).ok());
  CHECK(client->verify_model("damaged", {}).error().code == ErrorCode::kCorrupt);
  const Json request = Json::object({{"model", "poems"}, {"port", 8080}});
  CHECK(*client->deploy(request) == "d1");
  CHECK(*client->compress(request) == "c1");
  CHECK(served.control.calls() ==
        std::vector<std::string>{"models poems", "models absent", "change 1 poems@3 best",
                                 "change 4 poems@2 ", "verify poems", "verify damaged",
                                 "deploy " + request.dump(), "compress " + request.dump()});
}

TEST_CASE("how far a model has been verified is told while that goes on") {
  ServedCluster served;
  served.control.close_gate();
  std::vector<double> told;
  const auto progress = [&](double fraction) {
    told.push_back(fraction);
    served.control.open_gate();  // or it would never end
  };
  CHECK(served.connect()->verify_model("large", progress).ok());
  CHECK(told == std::vector<double>{0.25});
}

TEST_CASE("a list of models that fits into no message comes without details") {
  ServedCluster served;
  const auto models = served.connect()->models("all of them");
  REQUIRE(models.ok());
  CHECK(models->as_array().size() == 8);
  CHECK(models->as_array().back().find("name")->as_string() == "m7");
  CHECK(models->as_array().back().find("details")->is_null());
}

TEST_CASE("errors of the coordinator keep their code, place and hint on the way") {
  ServedCluster served;
  const auto client = served.connect();
  const Status drained = client->drain("absent", true);
  CHECK(drained.error().code == ErrorCode::kNotFound);
  CHECK(drained.error().message() == "absent: no such node (there are: others)");
  CHECK(client->job("j9").error().code == ErrorCode::kNotFound);
  CHECK(client->audit("twice").error().code == ErrorCode::kCorrupt);
  CHECK(client->train(Json::object({})).error().where == "model");
}

TEST_CASE("a token to read looks at everything and changes nothing") {
  ServedCluster served;
  served.control.put(some_job("j1"));
  const auto client = served.connect("read");
  CHECK(client->nodes().ok());
  CHECK(client->jobs().ok());
  CHECK(client->log("j1", 0, 10).ok());
  CHECK(client->audit("j1").ok());
  for (const Status& refused :
       {client->drain("n1", true), client->remove("n1"), client->pause("j1"), client->resume("j1"),
        client->cancel("j1"), Status(client->train(Json::object({})).error()),
        Status(client->make_join_token(1).error()), Status(client->tokens().error()),
        client->revoke_token("5f3a91c2"), client->verify_model("poems", {}),
        client->remove_job("j1"), Status(client->deploy(Json::object({})).error()),
        Status(client->compress(Json::object({})).error()),
        Status(client->change_model(ModelChange::kPoint, "poems@2", "").error()),
        Status(client->make_access_token(AccessRole::kRead, "", 1).error())}) {
    CHECK(refused.error().code == ErrorCode::kInvalidArgument);
    CHECK(refused.error().what.find("needs an access token of role ") == 0);
    CHECK(refused.error().what.find("this one's is read") != std::string::npos);
  }
  CHECK(served.control.calls() == std::vector<std::string>{"log j1 0 10", "audit j1"});
}

TEST_CASE("a token to run handles jobs, and neither nodes nor tokens") {
  ServedCluster served;
  const auto client = served.connect("run");
  CHECK(client->train(Json::object({{"model", "poems"}})).ok());
  CHECK(client->pause("j1").ok());
  CHECK(client->change_model(ModelChange::kTag, "poems@2", "best").ok());
  CHECK_FALSE(client->change_model(ModelChange::kRename, "poems", "verses").ok());
  CHECK_FALSE(client->change_model(ModelChange::kRemove, "poems", "").ok());
  const Status refused = client->drain("n1", true);
  CHECK(refused.error().what == "needs an access token of role admin; this one's is run");
  CHECK(refused.error().hint.find("fsctl cluster token create --kind admin") != std::string::npos);
  CHECK_FALSE(client->make_join_token(60).ok());
}

TEST_CASE("a token that is none lets nobody in, and says what it heard") {
  const ServedCluster served;
  const auto client = served.try_connect("guessed");
  REQUIRE_FALSE(client.ok());
  CHECK(client.error().code == ErrorCode::kInvalidArgument);
  CHECK(client.error().message() ==
        "access token: is none of this cluster's (fsctl cluster token create)");
}

TEST_CASE("a token that is taken back is worth nothing on connections that are open, too") {
  ClusterServerOptions options;
  options.recheck = Nanoseconds{0};
  ServedCluster served(options);
  served.control.put(some_job("j1"));
  const auto client = served.connect();
  CHECK(client->pause("j1").ok());
  size_t updates = 0;
  const Status watched = client->watch({"j1", false, 10}, [&](const ClusterUpdate&) {
    updates++;
    served.taken_back = true;
    return true;
  });
  CHECK(updates == 1);
  CHECK(watched.error().what == "has expired");
  CHECK(client->pause("j1").error().what == "has expired");
  CHECK(client->nodes().error().what == "has expired");
  CHECK(served.control.calls().size() == 1);
}

TEST_CASE("the word on a token is not asked for with every call") {
  ServedCluster served;
  const auto client = served.connect();
  for (int i = 0; i < 20; i++) CHECK(client->nodes().ok());
  CHECK(served.checks == 1);
}

TEST_CASE("more jobs than a message holds come without their details, and far more not at all") {
  ServedCluster served;
  ClusterJob job = some_job("");
  job.details = Json(std::string(1 << 16, 'x'));
  for (int i = 0; i < 100; i++) {
    job.id = "j" + std::to_string(i);
    served.control.put(job);
  }
  const auto client = served.connect();
  const auto jobs = client->jobs();
  REQUIRE(jobs.ok());
  CHECK(jobs->size() == 100);
  CHECK(jobs->front().details.is_null());
  CHECK(jobs->front().note == "goes well");
  CHECK(client->job("j7")->details == job.details);
  job.note = std::string(1 << 20, 'x');
  for (int i = 0; i < 4; i++) {
    job.id = "j" + std::to_string(i);
    served.control.put(job);
  }
  CHECK(client->jobs().error().code == ErrorCode::kResourceExhausted);
  CHECK(client->job("j7").ok());
}

TEST_CASE("a long log comes in pages, and no line is lost at their ends") {
  ServedCluster served;
  for (int i = 0; i < 300; i++)
    served.control.lines.push_back(std::to_string(i) + std::string(30'000, '.'));
  served.control.lines.push_back(std::string(1 << 20, 'x'));
  const auto client = served.connect("read");
  std::vector<std::string> all;
  size_t pages = 0;
  while (true) {
    const auto page = client->log("j1", all.size(), 100'000);
    REQUIRE(page.ok());
    if (page->empty()) break;
    all.insert(all.end(), page->begin(), page->end());
    pages++;
  }
  CHECK(pages > 1);
  REQUIRE(all.size() == 301);
  all.back() = served.control.lines.back();  // one line longer than any may be was cut
  CHECK(all == served.control.lines);
}

TEST_CASE("calls that take long keep nobody from looking") {
  ServedCluster served;
  served.control.close_gate();
  const auto client = served.connect();
  std::vector<std::thread> waiting;
  std::atomic<int> begun{0};
  for (int i = 0; i < 8; i++)
    waiting.emplace_back([&] {
      if (client->train(Json::object({{"model", "poems"}})).ok()) begun++;
    });
  served.control.wait_for_calls(3);  // as many as run at a time
  CHECK(client->nodes().ok());
  CHECK(served.connect("read")->jobs().ok());
  CHECK(begun == 0);
  served.control.open_gate();
  for (std::thread& thread : waiting) thread.join();
  CHECK(begun == 8);
}

TEST_CASE("a call that takes long waits for as long as the coordinator is there") {
  ServedCluster served;
  served.control.close_gate();
  ClusterClientOptions options;
  options.timeout = std::chrono::milliseconds(200);
  CancelFlag cancel;
  options.cancel = &cancel;
  auto client = served.try_connect("admin", options);
  REQUIRE(client.ok());
  std::thread opener([&] {
    served.control.wait_for_calls(1);
    for (int i = 0; i < 50; i++) (void)(*client)->nodes();
    std::this_thread::sleep_for(std::chrono::milliseconds(600));  // three times the timeout
    served.control.open_gate();
  });
  CHECK((*client)->train(Json::object({{"model", "poems"}})).ok());
  opener.join();

  served.control.close_gate();
  std::thread canceller([&] {
    served.control.wait_for_calls(2);
    cancel.raise();
  });
  const auto stopped = (*client)->train(Json::object({{"model", "poems"}}));
  canceller.join();
  CHECK(stopped.error().code == ErrorCode::kCancelled);
  served.control.open_gate();
}

}  // namespace
}  // namespace fastserve
