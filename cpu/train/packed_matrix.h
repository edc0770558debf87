// A weight matrix in the layout of the training kernels.
#pragma once

#include "base/check.h"
#include "cpu/host_memory.h"
#include "cpu/train/train_kernels.h"
#include "model/train_ops.h"

namespace fastserve {

/// Owns two copies of [out, in] as words of the training precision: `forward`, panels of 64 output
/// rows as B of x W^T, and `backward`, panels of 64 input columns as B of dy W. What fills a panel
/// or a word up is zero.
class TrainPanels final : public TrainMatrix {
 public:
  TrainPanels(int out, int in, int per_word)
      : TrainMatrix(out, in),
        forward_words(words(in, per_word)),
        backward_words(words(out, per_word)),
        forward_panel(static_cast<size_t>(forward_words) * kPanelColumns),
        backward_panel(static_cast<size_t>(backward_words) * kPanelColumns),
        forward_(allocate(words(out, kPanelColumns) * forward_panel)),
        backward_(allocate(words(in, kPanelColumns) * backward_panel)) {}

  uint32_t* forward() { return reinterpret_cast<uint32_t*>(forward_.data()); }
  uint32_t* backward() { return reinterpret_cast<uint32_t*>(backward_.data()); }
  const uint32_t* forward() const { return reinterpret_cast<const uint32_t*>(forward_.data()); }
  const uint32_t* backward() const { return reinterpret_cast<const uint32_t*>(backward_.data()); }

  const int forward_words, backward_words;     ///< of the reduction
  const size_t forward_panel, backward_panel;  ///< words from panel to panel

 private:
  static int words(int n, int per_word) { return (n + per_word - 1) / per_word; }
  static HostMemory allocate(size_t words) {
    auto memory = HostMemory::allocate(words * sizeof(uint32_t), "a packed weight matrix");
    FS_CHECK(memory.ok());
    return std::move(memory).value();
  }
  HostMemory forward_, backward_;
};

}  // namespace fastserve
