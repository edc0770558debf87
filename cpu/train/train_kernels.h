// The inner loops of training, compiled once for each instruction set and chosen at run time.
//
// Only plain structs and function pointers cross this border: a template or inline function of the
// standard library that were instantiated in a file compiled for AVX-512 could be the copy that the
// linker keeps for the whole program.
//
// Products work on words of 32 bits: a float, or two bfloat16 that are neighbours along the
// reduction. Half precision is stored as half and multiplied as float words.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace fastserve {

constexpr int kPanelColumns = 64;  ///< columns of a packed operand that lie side by side
constexpr int kBlockWords = 1536;  ///< of the reduction, so that a panel's block stays in L2

/// What becomes of a finished product; see MatmulEpilogue and InputGradEpilogue.
enum class ProductEnd : uint8_t {
  kStore,
  kStoreFloat,
  kStreamFloat,  ///< past the caches: `out` and out_ld are multiples of 64 bytes
  kAddFloat,     ///< out += product
  kAddResidual,
  kGelu,
  kSwiGlu,
  kTimesSlope,
  kTimesSlopes,
};

/// Rows [row, row + rows) by columns [column, column + columns) of C(m, n) = sum over words k of
/// A(m, k) B(k, n) + bias(n).
struct ProductTask {
  const void* a;  ///< word (m, k) at a + m * a_row + k * a_step, in words
  size_t a_row, a_step;
  const uint32_t* b;  ///< word (k, n) at b + n / 64 * b_panel + k * 64 + n % 64
  size_t b_panel;
  int words;  ///< of the reduction
  int row, rows;
  int column, columns;  ///< column: a multiple of 64. kSwiGlu: of the neurons
  const float* bias;    ///< by column, or null
  ProductEnd end;
  void* out;
  size_t out_ld;
  const float* residual;  ///< kAddResidual: [., out_ld]
  void* slope;            ///< [., slope_ld]; null: kGelu and kSwiGlu keep none
  size_t slope_ld;
  int width;       ///< kSwiGlu, kTimesSlopes: columns of the gate, or of the first part
  float* partial;  ///< rows * 64 floats when words > kBlockWords
};

/// A weight matrix's two copies: panels of 64 output rows, and panels of 64 input columns.
struct PackTask {
  const float* masters;  ///< [out, in]
  int out, in, row, rows;
  uint32_t *forward, *backward;
  size_t forward_panel, backward_panel;  ///< words from panel to panel
  bool stream;                           ///< write past the caches
};

/// Word pairs of neighbouring rows as panels of 64 columns; rows past the end count as zero.
struct PairTask {
  const void* source;  ///< compute [total_rows, ld]
  size_t ld;
  int row, rows, total_rows, columns;
  uint32_t* panels;
  size_t panel;  ///< words from panel to panel
};

struct NormTask {
  bool subtract_mean;
  const float *x, *weight, *bias;
  float epsilon;
  int channels;
  void* out;
  float* stats;
};
struct NormBackwardTask {
  bool subtract_mean;
  const float *dy, *x, *weight, *stats;
  int channels;
  float* dx;
  bool accumulate;
  void* dx_compute;
  float *dweight, *dbias;  ///< of these rows alone, overwritten; dbias may be null
};

struct RotaryTask {
  const void* in;
  void* out;  ///< backward: the gradient, in place
  size_t ld;
  int heads, kv_heads, head_dim;
  const int32_t* positions;
  const float *table, *q_norm, *k_norm;
  float epsilon;
  float* stats;
  float *dq_norm, *dk_norm;  ///< backward: of these rows alone, overwritten
};

/// One sequence and query head; or, backward, one key head with the query heads that share it.
struct AttentionTask {
  const void *q, *k, *v;  ///< compute, at row 0 of the sequence and column 0 of the head
  size_t ld;
  void* out;
  size_t out_ld;
  float* stats;       ///< [rows, 2]: largest score in base 2, 1 / sum; may be null forward
  size_t head_stats;  ///< floats from a head's stats to the next's
  int length, head_dim, window;
  int heads;  ///< backward: that share the key head
  float scale;
  const void* dout;
  void *dq, *dk, *dv;
  void* scratch;  ///< attention_bytes(length, head_dim)
};

struct LossTask {
  float* logits;  ///< [vocab], overwritten
  int vocab, target;
  float scale;
  void* dlogits;  ///< compute [dlogits_ld] or null
  int dlogits_ld;
};

struct EmbedTask {
  const int32_t *tokens, *positions;
  const float *token_table, *position_table;
  float* out;
  int channels;
};
struct EmbedBackwardTask {
  const int32_t *tokens, *positions;
  const float* dx;
  float *dtoken_table, *dposition_table;
  int rows, channels;
};

struct AdamWTask {
  float *param, *m, *v;
  const float* grad;
  size_t n;
  float keep, beta1, beta2, rest1, rest2;  ///< rest: 1 - beta
  float step_size;                         ///< learning rate / (1 - beta1^t)
  float root_scale;                        ///< 1 / sqrt(1 - beta2^t)
  float epsilon, grad_scale;
};

/// The kernels of one instruction set and precision.
struct TrainKernels {
  int per_word;  ///< compute elements in one word of a product
  bool widen;    ///< rows must become words before a product: their elements are not words
  void (*multiply)(const ProductTask&);
  void (*column_sums)(const uint32_t* panel, int words, int columns, float* sums);  ///< sums +=
  void (*pack)(const PackTask&);
  void (*pair_rows)(const PairTask&);
  /// Rows as words, the last one filled up with zeros: out [rows, words].
  void (*words_of_rows)(const void* source, size_t ld, int rows, int columns, uint32_t* out,
                        size_t words);
  void (*norm_forward)(const NormTask&, int row, int rows);
  void (*norm_backward)(const NormBackwardTask&, int row, int rows);
  void (*rotary_forward)(const RotaryTask&, int row, int rows);
  void (*rotary_backward)(const RotaryTask&, int row, int rows);
  size_t (*attention_bytes)(int length, int head_dim);
  void (*attention_forward)(const AttentionTask&);
  void (*attention_backward)(const AttentionTask&);
  double (*loss)(const LossTask&);  ///< -log p(target); zero gradient and loss when target < 0
  void (*embed_forward)(const EmbedTask&, int row, int rows);
  void (*embed_backward)(const EmbedBackwardTask&, int column, int columns);
  void (*adamw)(const AdamWTask&);
  void (*add)(const float* a, const float* b, float* out, size_t n);
  double (*sum_squares)(const float* x, size_t n);
  /// Multiply-adds of a product's tile with no memory behind them, for measuring the peak; returns
  /// the operations done.
  double (*spin)(int64_t rounds);
};

/// `precision`: 0 float, 1 bfloat16, 2 half, as in Precision.
const TrainKernels& train_kernels(Isa isa, int precision);

}  // namespace fastserve
