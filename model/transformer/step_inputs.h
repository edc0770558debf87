// The rows of a step where a device's operations read them.
#pragma once

#include <memory>
#include <span>

#include "model/decoder.h"

namespace fastserve {

/// One block of device memory, and its image in pinned memory: each step's rows cross in one copy.
///
/// Owns:    both.
/// Threads: one caller. The device must outlive it.
class StepInputs {
 public:
  /// For steps of a decoder with these options, all set.
  static Result<std::unique_ptr<StepInputs>> make(Device& device, const DecoderOptions& options,
                                                  int max_positions);
  ~StepInputs();
  StepInputs(const StepInputs&) = delete;
  StepInputs& operator=(const StepInputs&) = delete;

  struct Step {
    std::span<const int32_t> tokens;
    std::span<const Segment> segments;
    std::span<const int32_t> wanted;
    std::span<const TokenDraw> draws;  ///< one for each wanted row, or none
    int rows;                          ///< at least as many as tokens; the rest stand nowhere
    int reach;                         ///< ResidentRows::reach
  };
  /// Ordered before the operations that follow; those of earlier steps have run.
  void fill(const Step& step);

  const ResidentRows& rows() const { return rows_; }
  int32_t* tokens() const { return tokens_.device; }
  const int32_t* wanted() const { return wanted_.device; }
  const TokenDraw* draws() const { return draws_.device; }

 private:
  /// An array at both places.
  template <class T>
  struct Array {
    T* host = nullptr;
    T* device = nullptr;
    size_t size = 0;
  };
  explicit StepInputs(Device& device) : device_(device) {}
  template <class T>
  void place(Array<T>& array, size_t size, size_t& bytes);

  Device& device_;
  std::unique_ptr<DeviceBuffer> pinned_, memory_;
  Array<TokenDraw> draws_;
  Array<RowPlace> places_;
  Array<int32_t> tokens_, positions_, wanted_, blocks_;  // blocks_ last: copied as far as used
  int block_tokens_ = 0;
  ResidentRows rows_{};
  DeviceTicket copied_ = 0;
};

}  // namespace fastserve
