// The ClusterClient over a connection. Its calls are in cluster_client.cc, and those about models
// in cluster_client_models.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rpc/cluster_client_loop.h"
#include "rpc/cluster_messages.h"

namespace fastserve {

class ConnectedClusterClient final : public ClusterClient {
 public:
  ConnectedClusterClient(std::unique_ptr<Stream> stream, const ClusterClientOptions& options)
      : loop_(std::move(stream), options) {}

  Status open(const std::string& token);
  AccessRole role() const override { return role_; }
  const std::string& server() const override { return server_; }
  const std::string& endpoint() const override { return loop_.endpoint(); }

  Result<Json> cluster_status() override;
  Json status() override {
    auto got = cluster_status();
    return got.ok() ? *got : Json::object({{"error", got.error().message()}});
  }
  Result<std::vector<NodeStatus>> nodes() override;
  Status drain(const std::string& node, bool drain) override;
  Status remove(const std::string& node) override;
  Result<std::string> train(const Json& request) override;
  Result<std::vector<ClusterJob>> jobs() override;
  Result<ClusterJob> job(const std::string& id) override;
  Status pause(const std::string& id) override;
  Status resume(const std::string& id) override;
  Status cancel(const std::string& id) override;
  Status remove_job(const std::string& id) override;
  Result<std::vector<std::string>> log(const std::string& id, uint64_t from, int most) override;
  Result<Json> audit(const std::string& id) override;
  Result<std::string> make_access_token(AccessRole role, const std::string& label,
                                        int64_t lifetime_seconds) override;
  Result<std::string> make_join_token(int64_t lifetime_seconds) override;
  Result<Json> tokens() override;
  Status revoke_token(const std::string& id) override;
  Result<Json> models(const std::string& model) override;
  Result<uint64_t> change_model(ModelChange change, const std::string& model,
                                const std::string& to) override;
  Status verify_model(const std::string& model,
                      const std::function<void(double)>& progress) override;
  Result<std::string> deploy(const Json& request) override;
  Result<std::string> compress(const Json& request) override;
  Status watch(const Watch& watch,
               const std::function<bool(const ClusterUpdate&)>& on_update) override;

 private:
  using Patience = ClusterClientLoop::Patience;
  using State = ClusterClientLoop::State;
  using Text = Result<std::string>;
  struct Done {};

  static wire::Control::Client& control(State& state) {
    KJ_IF_MAYBE (opened, state.control) {
      return *opened;
    }
    KJ_FAIL_ASSERT("open() comes first");
  }
  /// A call that answers nothing but an error.
  template <class Request>
  Status act(Request request, const std::function<void()>& meanwhile = {}) {
    const auto send = [request](State& state) {
      return request(control(state)).send().then([](auto&& reply) -> Result<Done> {
        if (reply.hasError()) return read_error(reply.getError());
        return Done{};
      });
    };
    const Result<Done> done = loop_.call<Done>(Patience::kWhileAlive, send, meanwhile);
    return done.ok() ? Status() : done.error();
  }
  /// A call that answers a text, which `read` takes out.
  template <class Request, class Read>
  Text ask(Patience patience, Request request, Read read) {
    return loop_.call<std::string>(patience, [request, read](State& state) {
      return request(control(state)).send().then([read](auto&& reply) -> Text {
        if (reply.hasError()) return read_error(reply.getError());
        return to_string(read(reply));
      });
    });
  }
  /// Begins a job by a JSON object, with the call that `make` makes; answers its id.
  template <class Make>
  Text begin(const Json& request, Make make) {
    const std::string text = request.dump();
    if (text.size() > kMostContentBytes)
      return Error{ErrorCode::kInvalidArgument, "are more than fit into a message", "the settings",
                   ""};
    return ask(
        Patience::kWhileAlive,
        [text, make](auto& control) {
          auto call = make(control);
          call.setRequest(to_text(text));
          return call;
        },
        [](auto& reply) { return reply.getJob(); });
  }
  void start_watch(State& state, const Watch& watch,
                   const std::shared_ptr<ClusterWatched>& watched);
  Status receive(const std::shared_ptr<ClusterWatched>& watched,
                 const std::function<bool(const ClusterUpdate&)>& on_update);
  AccessRole role_ = AccessRole::kRead;
  std::string server_;
  ClusterClientLoop loop_;
};

}  // namespace fastserve
