#include "net/bulk_lane.h"

#include <thread>

#include "net/bulk_connection.h"

namespace fastserve {
namespace {

class ThreadedLane final : public BulkLane {
 public:
  ThreadedLane(BulkReceiver& receiver, const Options& options) : inbox_(receiver, options) {}

  Status add(std::unique_ptr<Stream> stream, const Options& options) {
    FS_ASSIGN(Wake wake, Wake::create());
    connections_.push_back(std::make_unique<BulkConnection>(std::move(stream), std::move(wake),
                                                            outbox_, inbox_, options));
    return {};
  }

  void begin() {
    for (const auto& connection : connections_)
      threads_.emplace_back([this, at = connection.get()] { end(at->run()); });
  }

  ~ThreadedLane() override {
    stop_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void send(const BulkTag& tag, std::vector<BulkSource> parts, uint32_t urgency) override {
    if (ended_) return;
    outbox_.add(tag, std::move(parts), urgency);
    for (const auto& connection : connections_) connection->wake();
    if (ended_) outbox_.clear();  // it ended meanwhile, and nobody else would let go of the bytes
  }

  uint64_t queued_bytes() const override { return outbox_.queued_bytes(); }

  Counters counters() const override {
    Counters counters;
    counters.bytes_sent = outbox_.sent_bytes();
    counters.bytes_received = inbox_.bytes_received();
    counters.messages_sent = outbox_.messages_sent();
    counters.messages_received = inbox_.messages_received();
    counters.messages_refused = inbox_.messages_refused();
    return counters;
  }

 private:
  /// One stream's end is the lane's; the others then end because they are told to.
  void end(const Error& why) {
    if (ended_.exchange(true)) return;
    stop_all();
    outbox_.clear();
    inbox_.close(why);
  }
  void stop_all() {
    for (const auto& connection : connections_) connection->stop();
  }

  BulkOutbox outbox_;
  BulkInbox inbox_;
  std::vector<std::unique_ptr<BulkConnection>> connections_;
  std::vector<std::thread> threads_;
  std::atomic<bool> ended_{false};
};

}  // namespace

Result<std::unique_ptr<BulkLane>> BulkLane::start(std::vector<std::unique_ptr<Stream>> streams,
                                                  BulkReceiver& receiver, Options options) {
  FS_CHECK(!streams.empty() && options.chunk > 0 && options.window > 0);
  auto lane = std::make_unique<ThreadedLane>(receiver, options);
  for (auto& stream : streams) FS_TRY(lane->add(std::move(stream), options));
  lane->begin();
  return std::unique_ptr<BulkLane>(std::move(lane));
}

}  // namespace fastserve
