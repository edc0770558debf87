#include "gpu/cuda/nccl_link.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "gpu/cuda/cuda_error.h"

namespace fastserve::gpu {
namespace {

/// Waits by looking again and again, at first as often as it can.
class Looking {
 public:
  Looking(const Clock& clock, Nanoseconds patience)
      : clock_(clock), left_(patience), last_(clock.now()) {}

  /// False when it is out of patience. A process that was stopped for long has lost none by that.
  bool go_on() {
    const Nanoseconds now = clock_.now(), most = std::chrono::milliseconds(100);
    left_ -= std::min(now - std::exchange(last_, now), most);
    if (left_ <= Nanoseconds(0)) return false;
    if (looks_++ < kEager)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    return true;
  }

 private:
  static constexpr int kEager = 2000;
  const Clock& clock_;
  Nanoseconds left_, last_;
  int looks_ = 0;
};

/// An event behind a collective in a card's stream.
class Behind {
 public:
  Behind() = default;
  Behind(Behind&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Behind& operator=(Behind&&) = delete;
  ~Behind() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  /// The card is the calling thread's.
  cudaError_t record(cudaStream_t stream) {
    const cudaError_t code = cudaEventCreateWithFlags(&event_, cudaEventDisableTiming);
    return code == cudaSuccess ? cudaEventRecord(event_, stream) : code;
  }
  /// cudaErrorNotReady until the card has got there.
  cudaError_t reached() const {
    const cudaError_t code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) cudaGetLastError();  // or the next launch is thought to fail
    return code;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class NcclLink final : public DeviceLink {
 public:
  NcclLink(std::vector<Runtime*> cards, std::unique_ptr<DeviceLink> copies,
           const Opened<Nccl>& library, const Clock& clock, Nanoseconds patience)
      : cards_(std::move(cards)),
        copies_(std::move(copies)),
        library_(library),
        clock_(clock),
        patience_(patience) {}

  ~NcclLink() override {
    settle();
    for (const ncclComm_t one : std::exchange(communicators_, {}))
      library_.table->ncclCommDestroy(one);
  }

  std::string description() const override {
    return communicators_.empty() ? copies_->description() : "NCCL " + library_.found.version;
  }
  void copy(size_t to, void* into, size_t from, const void* data, size_t bytes) override {
    const std::lock_guard lock(mutex_);
    copies_->copy(to, into, from, data, bytes);
  }

  Status open_collectives() override {
    const std::lock_guard lock(mutex_);
    FS_CHECK(communicators_.empty());
    if (library_.table == nullptr)
      return Error{ErrorCode::kUnsupported, library_.found.problem, library_.found.name, ""};
    Status opened = make_communicators();
    if (!opened.ok()) abort();
    return opened;
  }
  std::string reduce_id() const override {
    return "ring of " + std::to_string(cards_.size()) + ", NCCL " + library_.found.version;
  }

  void reduce(size_t to, float* into, std::span<const float* const> parts, size_t n) override {
    FS_CHECK(parts.size() == cards_.size());
    start("the sum over all cards", n, [&](size_t card, ncclComm_t one, cudaStream_t stream) {
      return nccl().ncclReduce(parts[card], card == to ? into : nullptr, n, ncclFloat32, ncclSum,
                               static_cast<int>(to), one, stream);
    });
  }
  void broadcast(size_t from, std::span<float* const> ranges, size_t n) override {
    FS_CHECK(ranges.size() == cards_.size());
    start("sending weights to all cards", n, [&](size_t card, ncclComm_t one, cudaStream_t stream) {
      return nccl().ncclBroadcast(ranges[from], ranges[card], n, ncclFloat32,
                                  static_cast<int>(from), one, stream);
    });
  }

  void settle() override {
    Looking looking(clock_, patience_);
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        look_at_started();
        if (started_.empty()) return;
      }
      if (looking.go_on()) continue;
      const std::lock_guard lock(mutex_);
      return fail({ErrorCode::kUnavailable,
                   "a collective of all cards has not moved for too long, and was given up", "NCCL",
                   "nvidia-smi tells how the cards are; NCCL_DEBUG=INFO what NCCL does"});
    }
  }

 private:
  using Started = std::vector<Behind>;  // of each card

  const Nccl& nccl() const { return *library_.table; }
  const std::string& name(size_t card) const { return cards_[card]->properties().name; }
  cudaStream_t stream(size_t card) const {
    return static_cast<cudaStream_t>(cards_[card]->stream());
  }

  Error failed(ncclResult_t code, const char* doing) const {
    std::string what = std::string(doing) + " failed: " + nccl().ncclGetErrorString(code);
    if (const char* more = nccl().ncclGetLastError(nullptr); more != nullptr && *more != '\0')
      what += std::string(" (") + more + ")";
    return {ErrorCode::kInternal, what, "NCCL " + library_.found.version,
            "NCCL_DEBUG=INFO tells more"};
  }
  Status checked(ncclResult_t code, const char* doing) const {
    if (code == ncclSuccess || code == ncclInProgress) return {};
    return failed(code, doing);
  }

  /// Calls `each` for every card inside one group, and ends that whatever comes of it: a group that
  /// is left open takes in all that the thread asks of NCCL afterwards.
  template <class Each>
  Status in_group(const char* doing, const Each& each) {
    FS_TRY(checked(nccl().ncclGroupStart(), doing));
    Status status;
    for (size_t card = 0; card < cards_.size() && status.ok(); card++)
      status = checked(each(card), doing);
    Status ended = checked(nccl().ncclGroupEnd(), doing);
    return status.ok() ? ended : status;
  }

  /// Until NCCL's own threads have done what it was asked for.
  Status await_ready(const char* doing) {
    Looking looking(clock_, patience_);
    for (const ncclComm_t one : communicators_) {
      ncclResult_t state = ncclInProgress;
      for (;;) {
        FS_TRY(checked(nccl().ncclCommGetAsyncError(one, &state), doing));
        if (state != ncclInProgress) break;
        if (!looking.go_on())
          return Error{ErrorCode::kUnavailable, std::string(doing) + " takes too long", "NCCL",
                       "NCCL_DEBUG=INFO tells what it waits for"};
      }
      FS_TRY(checked(state, doing));
    }
    return {};
  }

  Status check_cards() {
    for (Runtime* card : cards_) {
      card->stream();
      if (card->failed()) FS_TRY(card->sync());
    }
    return {};
  }

  Status make_communicators() {
    constexpr const char* kDoing = "starting NCCL";
    ncclUniqueId id;
    FS_TRY(checked(nccl().ncclGetUniqueId(&id), kDoing));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const auto count = static_cast<int>(cards_.size());
    std::vector<ncclComm_t> made(cards_.size(), nullptr);
    FS_TRY(check_cards());
    Status status = in_group(kDoing, [&](size_t card) {
      cards_[card]->stream();  // makes the card the calling thread's: the rank is on that
      if (cards_[card]->failed()) return ncclUnhandledCudaError;
      return nccl().ncclCommInitRankConfig(&made[card], count, id, static_cast<int>(card), &config);
    });
    std::ranges::copy_if(made, std::back_inserter(communicators_),
                         [](ncclComm_t one) { return one != nullptr; });
    if (status.ok()) status = await_ready(kDoing);
    if (!status.ok()) FS_TRY(check_cards());  // what a card has to say comes first
    return status;
  }

  template <class Each>
  void start(const char* doing, size_t n, const Each& each) {
    const std::lock_guard lock(mutex_);
    if (n == 0) return;
    // Before the group: one that lacks a rank never ends, not even by an abort.
    std::vector<cudaStream_t> streams;
    for (size_t card = 0; card < cards_.size(); card++) streams.push_back(stream(card));
    if (std::ranges::any_of(cards_, [](const Runtime* card) { return card->failed(); }))
      return tell_all({ErrorCode::kInternal,
                       std::string(doing) + " has not begun: a card has failed", "NCCL", ""});
    if (failure_) return tell_all(*failure_);
    FS_CHECK(communicators_.size() == cards_.size());
    Status status = in_group(
        doing, [&](size_t card) { return each(card, communicators_[card], streams[card]); });
    if (status.ok()) status = await_ready(doing);
    if (!status.ok()) return fail(status.error());
    mark_started(doing);
  }

  void mark_started(const char* doing) {
    Started behind(cards_.size());
    for (size_t card = 0; card < cards_.size(); card++) {
      const cudaStream_t where = stream(card);
      const cudaError_t code = behind[card].record(where);
      if (code != cudaSuccess) return fail(cuda_error(code, doing, name(card)));
    }
    started_.push_back(std::move(behind));
  }

  /// Takes away what is done; of what has failed everything.
  void look_at_started() {
    while (!started_.empty()) {
      bool done = true;
      for (size_t card = 0; card < cards_.size(); card++) {
        const cudaError_t code = started_.front()[card].reached();
        if (code == cudaErrorNotReady)
          done = false;
        else if (code != cudaSuccess)
          return fail(cuda_error(code, "a collective of all cards", name(card)));
      }
      for (const ncclComm_t one : communicators_) {
        ncclResult_t state = ncclSuccess;
        ncclResult_t code = nccl().ncclCommGetAsyncError(one, &state);
        if (code == ncclSuccess) code = state;
        if (code != ncclSuccess && code != ncclInProgress)
          return fail(failed(code, "a collective of all cards"));
      }
      if (!done) return;
      started_.pop_front();
    }
  }

  /// What other cards have of it cannot be known: none of them goes on.
  void fail(const Error& error) {
    if (!failure_) failure_ = error;
    abort();
    tell_all(error);
  }
  void tell_all(const Error& error) {
    for (Runtime* card : cards_) card->report(error);
  }
  /// Ends kernels that wait for others.
  void abort() {
    for (const ncclComm_t one : std::exchange(communicators_, {})) nccl().ncclCommAbort(one);
    started_.clear();
  }

  const std::vector<Runtime*> cards_;
  const std::unique_ptr<DeviceLink> copies_;
  const Opened<Nccl>& library_;
  const Clock& clock_;
  const Nanoseconds patience_;
  std::mutex mutex_;  // one call at a time gives the cards' streams work; guards what follows
  std::vector<ncclComm_t> communicators_;
  std::deque<Started> started_;
  std::optional<Error> failure_;
};

}  // namespace

std::unique_ptr<DeviceLink> make_nccl_link(std::vector<Runtime*> cards,
                                           std::unique_ptr<DeviceLink> copies,
                                           const Opened<Nccl>& library, const Clock& clock,
                                           Nanoseconds patience) {
  return std::make_unique<NcclLink>(std::move(cards), std::move(copies), library, clock, patience);
}

}  // namespace fastserve::gpu
