#include "gpu/cuda/peer_link.h"

#include <cuda_runtime_api.h>

#include "base/file.h"
#include "gpu/cuda/cuda_error.h"
#include "gpu/cuda/event_pool.h"

namespace fastserve::gpu {
namespace {

class PeerLink final : public DeviceLink {
 public:
  explicit PeerLink(std::vector<Runtime*> cards) : marks_(cards.size()) {
    for (Runtime* card : cards) cards_.push_back({card, 0});
  }

  Status open() {
    for (Card& card : cards_) {
      card.runtime->stream();  // makes it the calling thread's
      FS_TRY(checked(cudaGetDevice(&card.index), card, "asking which card it is"));
    }
    for (const Card& card : cards_)
      for (const Card& other : cards_)
        if (card.index != other.index) FS_TRY(let_reach(card, other));
    return {};
  }

  std::string description() const override {
    return reached_ ? "copies from card to card" : "copies through the host";
  }

  void copy(size_t to, void* into, size_t from, const void* data, size_t bytes) override {
    const Card& receiver = cards_[to];
    const Card& sender = cards_[from];
    if (bytes == 0 || receiver.runtime->failed()) return;
    if (sender.runtime->failed())
      return receiver.runtime->report({ErrorCode::kInternal,
                                       "what another card was to send has not come: it has failed",
                                       name(receiver), ""});
    const cudaError_t code = start_copy(to, into, from, data, bytes);
    if (code != cudaSuccess)
      receiver.runtime->report(cuda_error(code,
                                          "copying " + human_bytes(bytes) + " from " +
                                              std::to_string(sender.index) + " to card " +
                                              std::to_string(receiver.index),
                                          name(receiver)));
  }

 private:
  struct Card {
    Runtime* runtime;
    int index;
  };

  static const std::string& name(const Card& card) { return card.runtime->properties().name; }
  static Status checked(cudaError_t code, const Card& card, const char* doing) {
    if (code == cudaSuccess) return {};
    return cuda_error(code, doing, name(card));
  }

  /// Without it the driver copies through the host.
  Status let_reach(const Card& card, const Card& other) {
    int can = 0;
    FS_TRY(checked(cudaDeviceCanAccessPeer(&can, card.index, other.index), card,
                   "asking whether it reaches another card"));
    if (can == 0) {
      reached_ = false;
      return {};
    }
    card.runtime->stream();
    const cudaError_t code = cudaDeviceEnablePeerAccess(other.index, 0);
    if (code == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
      return {};
    }
    return checked(code, card, "letting it reach another card");
  }

  cudaError_t start_copy(size_t to, void* into, size_t from, const void* data, size_t bytes) {
    const auto sends = static_cast<cudaStream_t>(cards_[from].runtime->stream());
    cudaError_t code = cudaSuccess;
    const cudaEvent_t written = marks_[from].take(code);
    if (written == nullptr) return code;
    code = cudaEventRecord(written, sends);
    const auto receives = static_cast<cudaStream_t>(cards_[to].runtime->stream());
    if (code == cudaSuccess) code = cudaStreamWaitEvent(receives, written, 0);
    marks_[from].give_back(written);
    if (code != cudaSuccess) return code;
    const cudaEvent_t copied = marks_[to].take(code);
    if (copied == nullptr) return code;
    code = cudaMemcpyPeerAsync(into, cards_[to].index, data, cards_[from].index, bytes, receives);
    if (code == cudaSuccess) code = cudaEventRecord(copied, receives);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(sends, copied, 0);
    marks_[to].give_back(copied);
    return code;
  }

  std::vector<Card> cards_;
  std::vector<EventPool> marks_;  // of each card
  bool reached_ = true;           // each card reaches each
};

}  // namespace

Result<std::unique_ptr<DeviceLink>> make_peer_link(std::vector<Runtime*> cards) {
  auto link = std::make_unique<PeerLink>(std::move(cards));
  FS_TRY(link->open());
  return std::unique_ptr<DeviceLink>(std::move(link));
}

}  // namespace fastserve::gpu
