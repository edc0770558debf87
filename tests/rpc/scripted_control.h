// A cluster that does what a test says.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cluster/control.h"

namespace fastserve::testing {

inline Error no_such(const std::string& what, const std::string& name) {
  return {ErrorCode::kNotFound, "no such " + what, name, "there are: others"};
}

inline NodeStatus some_node(const std::string& name) {
  NodeStatus node;
  node.name = name;
  node.address = "10.0.0.2:7071";
  node.roles = {"trainer", "parameter-server"};
  node.state = NodeStatus::State::kDraining;
  node.lanes = 8;
  node.version = "0.1.0";
  node.device = "cpu avx512";
  node.numerics_id = "n1";
  node.joined_unix = 1'700'000'000;
  node.last_heard_unix = 1'700'000'009;
  node.clock_skew_seconds = -0.25;
  node.note = "drains";
  node.job = "j1";
  node.share = 0.5;
  node.tokens_per_second = 1234.5;
  node.bytes_per_second = 1e9;
  return node;
}

inline ClusterJob some_job(const std::string& id) {
  ClusterJob job;
  job.id = id;
  job.kind = "compress";
  job.model = "poems";
  job.state = "running";
  job.created_unix = 1'700'000'001;
  job.step = 10;
  job.steps = 100;
  job.loss = 2.5;
  job.validation_loss = 2.25;
  job.tokens_per_second = 5000;
  job.eta_seconds = 12.5;
  job.incarnation = 3;
  job.replayed_steps = 7;
  job.note = "goes well";
  job.details = Json::object({{"seed", 1337}, {"data", "texts"}});
  return job;
}

class ScriptedControl final : public ClusterControl {
 public:
  // What a test sets and sees.

  void put(ClusterJob job) {
    const std::lock_guard lock(mutex_);
    jobs_[job.id] = std::move(job);
  }
  void step(const std::string& id, int64_t step, const std::string& state = "running") {
    const std::lock_guard lock(mutex_);
    jobs_[id].step = step;
    jobs_[id].state = state;
  }
  /// "drain n1 true", ... in the order they came; looks at jobs and nodes are only counted.
  std::vector<std::string> calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  size_t looks() {
    const std::lock_guard lock(mutex_);
    return looks_;
  }
  void wait_for_calls(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return calls_.size() >= n; });
  }
  /// train() waits for open_gate().
  void close_gate() {
    const std::lock_guard lock(mutex_);
    gate_open_ = false;
  }
  void open_gate() {
    const std::lock_guard lock(mutex_);
    gate_open_ = true;
    changed_.notify_all();
  }
  std::vector<std::string> lines;  ///< every job's log
  std::vector<NodeStatus> members = {some_node("n1"), some_node("n2")};

  // ClusterControl

  Result<std::vector<NodeStatus>> nodes() override {
    look();
    return members;
  }
  Status drain(const std::string& node, bool drain) override {
    record("drain " + node + (drain ? " true" : " false"));
    return node == "absent" ? Status(no_such("node", node)) : Status();
  }
  Status remove(const std::string& node) override {
    record("remove " + node);
    return {};
  }
  Result<std::string> train(const Json& request) override {
    record("train " + request.dump());
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return gate_open_; });
    FS_ASSIGN(const std::string model, request.string_or("model", ""));
    if (model.empty())
      return Error{ErrorCode::kInvalidArgument, "is missing", "model", "give --model"};
    return std::string("j1");
  }
  Result<std::vector<ClusterJob>> jobs() override {
    look();
    const std::lock_guard lock(mutex_);
    std::vector<ClusterJob> all;
    for (const auto& [id, job] : jobs_) all.push_back(job);
    return all;
  }
  Result<ClusterJob> job(const std::string& id) override {
    look();
    const std::lock_guard lock(mutex_);
    const auto found = jobs_.find(id);
    if (found == jobs_.end()) return no_such("job", id);
    return found->second;
  }
  Status pause(const std::string& id) override {
    record("pause " + id);
    return {};
  }
  Status resume(const std::string& id) override {
    record("resume " + id);
    return {};
  }
  Status cancel(const std::string& id) override {
    record("cancel " + id);
    return {};
  }
  Status remove_job(const std::string& id) override {
    record("remove job " + id);
    return {};
  }
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) override {
    record("log " + id + " " + std::to_string(from) + " " + std::to_string(most));
    std::vector<std::string> some;
    for (uint64_t i = from; i < lines.size() && some.size() < static_cast<size_t>(most); i++)
      some.push_back(lines[i]);
    return some;
  }
  Result<Json> audit(const std::string& id) override {
    record("audit " + id);
    if (id == "twice")
      return Error{ErrorCode::kCorrupt, "step 3 counted microbatch 4 twice", "job twice", ""};
    return Json::object({{"steps", 100}, {"samples", 1200}});
  }
  Result<std::string> make_access_token(AccessRole role, const std::string& label,
                                        int64_t lifetime_seconds) override {
    record("access " + std::to_string(static_cast<int>(role)) + " " + label + " " +
           std::to_string(lifetime_seconds));
    return std::string("fsa1-fresh");
  }
  Result<std::string> make_join_token(int64_t lifetime_seconds) override {
    record("join " + std::to_string(lifetime_seconds));
    return std::string("fsj1-fresh");
  }
  Result<Json> tokens() override {
    record("tokens");
    return Json(Json::Array{Json::object({{"id", "5f3a91c2"}, {"kind", "run"}})});
  }
  Status revoke_token(const std::string& id) override {
    record("revoke " + id);
    return {};
  }
  Result<Json> models(const std::string& model) override {
    record("models " + model);
    if (model == "absent") return no_such("model", model);
    if (model == "all of them") {  // more than fit with what is known of them
      Json::Array rows;
      for (int i = 0; i < 8; i++)
        rows.push_back(Json::object(
            {{"name", "m" + std::to_string(i)}, {"details", std::string(size_t{1} << 20, 'x')}}));
      return Json(std::move(rows));
    }
    return Json(Json::Array{Json::object({{"name", "poems"}, {"version", 3}})});
  }
  Result<uint64_t> change_model(ModelChange change, const std::string& model,
                                const std::string& to) override {
    record("change " + std::to_string(static_cast<int>(change)) + " " + model + " " + to);
    return change == ModelChange::kRemove ? uint64_t{4096} : uint64_t{0};
  }
  Status verify_model(const std::string& model,
                      const std::function<void(double)>& progress) override {
    record("verify " + model);
    if (model == "large") {  // until somebody has heard of it
      progress(0.25);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return gate_open_; });
    }
    return model == "damaged" ? Status(Error{ErrorCode::kCorrupt, "is damaged", model, ""})
                              : Status();
  }
  Result<std::string> deploy(const Json& request) override {
    record("deploy " + request.dump());
    return std::string("d1");
  }
  Result<std::string> compress(const Json& request) override {
    record("compress " + request.dump());
    return std::string("c1");
  }
  Json status() override {
    return Json::object({{"cluster", "c0ffee"}, {"epoch", 4}, {"uptime_seconds", 7.5}});
  }

 private:
  void record(std::string call) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(call));
    changed_.notify_all();
  }
  void look() {
    const std::lock_guard lock(mutex_);
    looks_++;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, ClusterJob> jobs_;
  std::vector<std::string> calls_;
  size_t looks_ = 0;
  bool gate_open_ = true;
};

}  // namespace fastserve::testing
