// What the families of training operations share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <mutex>
#include <vector>

#include "gpu/attention_engine.h"
#include "gpu/launch.h"
#include "gpu/matmul_engine.h"
#include "gpu/tables.h"
#include "gpu/workspace.h"
#include "model/train_ops.h"

namespace fastserve::gpu {

inline unsigned blocks_for(size_t n, size_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

/// All of them on 16 bytes; null is.
inline bool on_fours(std::initializer_list<const float*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

/// A weight matrix [out, in] in the training precision, rows on 16 bytes: both directions read it.
class GpuMatrix final : public TrainMatrix {
 public:
  GpuMatrix(int out, int in, int ld, Memory memory)
      : TrainMatrix(out, in), ld_(ld), memory_(std::move(memory)) {}
  void* data() const { return memory_.data(); }
  int ld() const { return ld_; }

 private:
  int ld_;
  Memory memory_;
};

/// The runtime and the scratch of one TrainOps.
struct TrainState {
  TrainState(Runtime& on, std::span<MatmulEngine* const> by, Precision in,
             AttentionEngine* attends = nullptr)
      : runtime(on),
        engines(by.begin(), by.end()),
        attention(attends),
        precision(in),
        workspace(on),
        tables(on) {}
  Runtime& runtime;
  std::vector<MatmulEngine*> engines;
  AttentionEngine* attention;  ///< or null
  Precision precision;
  Workspace workspace;
  Tables tables;  ///< of host spans that an operation is given

  uint64_t scratch_version() const {
    uint64_t sum = workspace.version() + tables.version();
    for (const MatmulEngine* engine : engines) sum += engine->scratch_version();
    return attention != nullptr ? sum + attention->scratch_version() : sum;
  }
  size_t element_bytes() const { return precision == Precision::kFloat32 ? 4 : 2; }
  /// False when no engine runs it.
  bool multiply(const Product& product) const {
    for (MatmulEngine* engine : engines) {
      if (!engine->supports(product)) continue;
      engine->run(product);
      return true;
    }
    return false;
  }
};

/// Calls body.operator()<T>() with the type of a precision.
template <class Body>
void with_type(Precision precision, const Body& body) {
  switch (precision) {
    case Precision::kFloat32:
      return body.template operator()<float>();
    case Precision::kBFloat16:
      return body.template operator()<BFloat16>();
    case Precision::kFloat16:
      return body.template operator()<Float16>();
  }
}

struct JoinedSums;
/// join_column_sums: adds the columns of `partials`, of at most kMostJoined rows.
void add_sums(Runtime& runtime, const float* partials, int parts, const JoinedSums& sums);

/// Scratch that sum_columns_into takes, in floats.
size_t column_sum_scratch(int rows, int cols);
/// out[c] (+)= the sum of column c of `in` [rows, ld], of the type of `precision`.
void sum_columns_into(Runtime& runtime, Precision precision, const void* in, int rows, int cols,
                      int ld, float* out, bool accumulate, float* scratch);

void matmul_forward(TrainState& state, const MatmulForward& op);
void matmul_backward_input(TrainState& state, const MatmulBackwardInput& op);
void matmul_backward_weight(TrainState& state, const MatmulBackwardWeight& op);
void classifier_loss(TrainState& state, const ClassifierLoss& op);
void norm_forward(TrainState& state, const NormForward& op);
void norm_backward(TrainState& state, const NormBackward& op);
void attention_forward(TrainState& state, const AttentionForward& op);
void attention_backward(TrainState& state, const AttentionBackward& op);

}  // namespace fastserve::gpu
