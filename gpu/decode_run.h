// Operations of a decode step, gathered to be done by one kernel.
#pragma once

#include <optional>
#include <vector>

#include "gpu/decode_pack.h"
#include "gpu/kernels/decode_step.cuh"
#include "gpu/packed_format.h"
#include "gpu/tables.h"

namespace fastserve::gpu {

/// How tile_attend and join_parts are to be started.
struct AttendCut {
  int heads;         ///< query heads of a block
  int parts, turns;  ///< the grid behind the rows
  int each;          ///< positions of a unit
  int codes;         ///< keys and values are
};

/// Owns:    tables of the steps on the card, for the next time that the same are gathered.
/// Threads: one caller at a time. The runtime must outlive it.
class DecodeGathering {
 public:
  explicit DecodeGathering(Runtime& runtime) : runtime_(runtime), tables_(runtime, kMostTables) {}

  /// Most rows of what it takes; 0: this card has too little shared memory.
  int most_rows() const;
  /// Takes the operation, which is done by flush() behind what was taken before. False: it is none
  /// that the kernel does, and nothing has changed. `prepare`: without memory for what it makes.
  bool add(const GpuDecodeMatrix& weight, const DecodeProductArguments& product,
           const PrepareArguments& prepare);
  bool add(const DecodeAttentionArguments& attention, const AttendCut& cut);
  /// Starts what was taken.
  void flush();
  /// Another number when memory has been given back that captured work may use.
  uint64_t version() const { return tables_.version(); }

 private:
  static constexpr size_t kMostTables = 64;

  bool has_room(size_t steps, size_t shared) const;
  template <class Run>
  void start();

  Runtime& runtime_;
  Tables tables_;
  Memory arrived_;
  std::optional<WeightKind> format_;  ///< of the products taken; none: nothing was
  std::vector<DecodeStep> steps_;
  std::vector<RunWeights> weights_;
  size_t fixed_ = 0, room_ = 0;  ///< shared memory: of the kernel, and of its greediest step
};

}  // namespace fastserve::gpu
