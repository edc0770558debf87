#include "api/transfer_desk.h"

#include <fmt/format.h>

#include <condition_variable>

#include "api/model_transfer.h"
#include "net/document_stream.h"
#include "net/tunnel.h"

namespace fastserve {
namespace {

constexpr auto kAsking = std::chrono::seconds(10), kAnswering = std::chrono::seconds(30),
               kStorePatience = std::chrono::seconds(10);
/// The server that speaks through us drops silent clients sooner.
constexpr auto kSilence = std::chrono::minutes(15);
/// How old the word on a token may be.
constexpr auto kRecheck = std::chrono::seconds(30);

/// Pumps both ways until either end goes, or `still_good`, asked now and then, says no.
Status join(std::unique_ptr<Stream> one, std::unique_ptr<Stream> other, const CancelFlag& closing,
            const std::function<Status()>& still_good) {
  FS_ASSIGN(LocalPair pair, make_local_pair());
  std::mutex mutex;
  std::condition_variable changed;
  int ended = 0;
  const auto closed = [&](const Error&) {
    const std::lock_guard lock(mutex);
    ended++;
    changed.notify_all();
  };
  Tunnel::Options options;
  options.silence = kSilence;
  FS_ASSIGN(const auto first,
            Tunnel::start(std::move(one), std::move(pair.tunnel), nullptr, options, closed));
  FS_ASSIGN(const auto second,
            Tunnel::start(std::move(other), std::move(pair.speaker), nullptr, options, closed));
  Nanoseconds asked = steady_now();
  std::unique_lock lock(mutex);
  while (ended < 2 && !closing.raised()) {
    changed.wait_for(lock, std::chrono::milliseconds(200));
    if (steady_now() - asked < kRecheck) continue;
    asked = steady_now();
    lock.unlock();
    FS_TRY(still_good());
    lock.lock();
  }
  return {};
}

}  // namespace

void TransferDesk::connected(TlsConnection connection) {
  ConnectionThreads& threads = connection.protocol == kGenerateProtocol ? relays_ : transfers_;
  const Status started = threads.start(
      connection,
      [this](TlsConnection given, const CancelFlag& closing) { serve(std::move(given), closing); });
  if (started.ok()) return;
  [[maybe_unused]] const Status told =
      send_word(*connection.stream, started.error(), std::chrono::seconds(1));
  around_.log.warning(started.error().message());
}

/// The node's name by its certificate, or nothing for a client whose token may run jobs.
Result<std::string> TransferDesk::who(const TlsConnection& connection,
                                      const TransferAsk& ask) const {
  if (connection.claim && ask.want != TransferAsk::Want::kGenerate) return connection.claim->node;
  FS_ASSIGN(const AccessRole role, around_.check_token(ask.token));
  if (role >= AccessRole::kRun) return std::string();
  return Error{ErrorCode::kInvalidArgument, "needs an access token of role run; this one's is read",
               "models and generation", "fsctl cluster token create --kind run"};
}

void TransferDesk::serve(TlsConnection connection, const CancelFlag& closing) {
  const std::string peer = connection.stream->peer();
  const auto served = [&]() -> Status {
    FS_ASSIGN(const std::string document,
              receive_document(*connection.stream, steady_now() + kAsking));
    auto ask = parse_transfer_ask(document);
    Status done = ask.ok() ? answer(connection, *ask, closing) : Status(ask.error());
    if (!done.ok() && connection.stream != nullptr) {
      [[maybe_unused]] const Status told =
          send_word(*connection.stream, done.error(), std::chrono::seconds(5));
    }
    return done;
  }();
  if (connection.stream != nullptr) connection.stream->shut_down();
  if (!served.ok() && served.error().code != ErrorCode::kCancelled)
    around_.log.info(fmt::format("{}: {}", peer, served.error().message()));
}

Status TransferDesk::answer(TlsConnection& connection, const TransferAsk& ask,
                            const CancelFlag& closing) {
  FS_ASSIGN(const std::string node, who(connection, ask));
  Stream& stream = *connection.stream;
  const bool generates = ask.want == TransferAsk::Want::kGenerate;
  if (generates != (connection.protocol == kGenerateProtocol))
    return Error{ErrorCode::kInvalidArgument, "cannot be asked for by this protocol",
                 connection.protocol, "update the older side"};
  switch (ask.want) {
    case TransferAsk::Want::kPull:
      return give_model(stream, ask, closing);
    case TransferAsk::Want::kPush:
      return take_model(stream, ask, node, closing);
    case TransferAsk::Want::kText:
      return give_text(stream, ask, node, closing);
    case TransferAsk::Want::kGenerate:
      return relay(connection, ask, closing);
  }
  return {};
}

Status TransferDesk::give_model(Stream& stream, const TransferAsk& ask, const CancelFlag& closing) {
  FS_ASSIGN(const ModelRef ref, ModelRef::parse(ask.model));
  FS_ASSIGN(const auto store, around_.store->open(kStorePatience));
  FS_ASSIGN(const auto model, store->send(ref));
  FS_TRY(send_word(stream, Json::object({{"model", model->listing().ref.text()}}), kAnswering));
  TransferHooks hooks;
  hooks.cancel = &closing;
  const auto sent = send_model(stream, *model, hooks);
  if (!sent.ok()) return sent.error();
  around_.log.info(fmt::format("{} has gone to {}", ref.text(), stream.peer()));
  return {};
}

Status TransferDesk::take_model(Stream& stream, const TransferAsk& ask, const std::string& node,
                                const CancelFlag& closing) {
  FS_ASSIGN(const auto store, around_.store->open(kStorePatience));
  FS_TRY(send_word(stream, Json::object({}), kAnswering));
  TransferHooks hooks;
  hooks.cancel = &closing;
  const auto as = [&](ModelListing& listing) -> Result<ReceiveAs> {
    if (!node.empty()) return around_.duties->place_for(ask.duty, node, listing);
    return ReceiveAs{ask.name, 0};
  };
  FS_ASSIGN(const ModelRef made, receive_model(stream, *store, as, hooks));
  around_.log.info(fmt::format("{} has come from {}", made.text(), stream.peer()));
  return node.empty() ? Status() : around_.duties->published(ask.duty, made);
}

Status TransferDesk::give_text(Stream& stream, const TransferAsk& ask, const std::string& node,
                               const CancelFlag& closing) {
  if (node.empty())
    return Error{ErrorCode::kInvalidArgument, "is for nodes", "the text of a compression", ""};
  FS_ASSIGN(const std::string text, around_.duties->text_for(ask.duty, node));
  FS_TRY(send_word(stream, Json::object({}), kAnswering));
  return send_text(stream, text, &closing);
}

Status TransferDesk::relay(TlsConnection& connection, const TransferAsk& ask,
                           const CancelFlag& closing) {
  FS_ASSIGN(const Duty duty, around_.duties->serving(ask.model));
  auto reached = [&]() -> Result<TlsConnection> {
    FS_ASSIGN(TlsConnection made, around_.dial(duty.node));
    TransferAsk onward;
    onward.want = TransferAsk::Want::kGenerate;
    onward.duty = duty.id;
    FS_TRY(send_document(*made.stream, encode(onward), steady_now() + kAsking));
    FS_TRY(receive_word(*made.stream, kAsking));
    return made;
  }();
  if (!reached.ok())
    return Error{
        ErrorCode::kUnavailable,
        fmt::format("is deployed on node {}, which cannot be reached now: {}", duty.node,
                    reached.error().message()),
        duty.model,
        fmt::format("try again in a while; fsctl jobs show {} tells where it is", duty.id)};
  FS_TRY(send_word(*connection.stream,
                   Json::object({{"model", duty.model}, {"node", duty.node}, {"job", duty.id}}),
                   kAnswering));
  return join(std::move(connection.stream), std::move(reached->stream), closing, [&]() -> Status {
    const auto role = around_.check_token(ask.token);
    return role.ok() ? Status() : role.error();
  });
}

}  // namespace fastserve
