// The fused operations of one training step, as a device offers them.
//
// Conventions for every op in this file:
//  - Pointers are device memory. "compute" marks elements of the device's training precision
//    (float, bfloat16, or half); everything else says its type. Matrices are row-major.
//  - rows = tokens of the microbatch; a `ld` is in elements.
//  - Calls are ordered on the device. Sizes are the caller's promise (checked, not reported).
//  - Bits depend on the inputs and the ISA, never on how many lanes the device has.
//  - Any size works; multiples of 16 (head_dim) and 64 (widths) are fastest.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "model/config.h"

namespace fastserve {

enum class Precision : uint8_t { kFloat32, kBFloat16, kFloat16 };
const char* precision_name(Precision precision);  ///< "fp32", "bf16", "fp16"

/// A weight matrix [out, in] as the device wants it for x W^T and dy W.
class TrainMatrix {
 public:
  virtual ~TrainMatrix() = default;
  int out() const { return out_; }
  int in() const { return in_; }

 protected:
  TrainMatrix(int out, int in) : out_(out), in_(in) {}
  int out_, in_;
};

struct EmbedForward {
  std::span<const int32_t> tokens, positions;  ///< host; rows of each
  const float* token_table;                    ///< [vocab, channels]
  const float* position_table;                 ///< [positions, channels] or null
  float* out;                                  ///< [rows, channels]
  int channels;
};
/// Adds each row of dx to its rows of the tables' gradients, in row order.
struct EmbedBackward {
  std::span<const int32_t> tokens, positions;
  const float* dx;         ///< [rows, channels]
  float* dtoken_table;
  float* dposition_table;  ///< or null
  int channels;
};

/// LayerNorm: stats = (mean, 1/std); RMSNorm: stats = (0, 1/rms).
struct NormForward {
  NormKind kind;
  const float *x, *weight, *bias;  ///< x [rows, channels]; bias may be null
  float epsilon;
  int rows, channels;
  void* out;     ///< compute [rows, channels]
  float* stats;  ///< [rows, 2]
};
struct NormBackward {
  NormKind kind;
  const void* dy;  ///< [rows, channels]: compute where the device norms_compute_dy(), else float
  const float *x, *weight, *stats;
  int rows, channels;
  float* dx;          ///< [rows, channels]: the residual stream's gradient
  bool accumulate;    ///< dx += (true) or dx = (false)
  void* dx_compute;   ///< compute copy of the new dx, or null
  float *dweight, *dbias;  ///< +=; dbias may be null
  /// Of a device that sums_dx(): += the column sums of the new dx, which is the gradient of the
  /// bias of the product that wrote to the stream before this norm; or null.
  float* dx_sums = nullptr;
};

/// What becomes of x W^T + bias.
enum class MatmulEpilogue : uint8_t {
  kStore,        ///< out: compute
  kStoreFloat,   ///< out: float
  kAddResidual,  ///< out (float) = residual (float) + product
  kGelu,         ///< out: compute = gelu(p), in its tanh form
  kSwiGlu,       ///< the matrix is gate over up, [2F, in]: out (compute, [rows, F]) = silu(g) u
};
struct MatmulForward {
  const TrainMatrix* weight;
  const void* x;  ///< compute [rows, in], leading dimension x_ld
  int rows, x_ld;
  const float* bias;  ///< [out] or null
  MatmulEpilogue epilogue;
  void* out;
  int out_ld;
  const float* residual;  ///< [rows, out_ld], kAddResidual only; may equal out
  /// compute [rows, F or 2F], kGelu and kSwiGlu only: what kTimesSlope of the same device and
  /// precision makes of it, the activation's slopes or what they follow from; nobody else can read
  /// it. Null when no backward follows.
  void* slope;
};

/// dx = dy W.
enum class InputGradEpilogue : uint8_t {
  kStore,       ///< dx: compute
  kStoreFloat,  ///< dx: float
  /// Back through an activation: after kGelu (slope_parts = 1) dx (compute) = gelu'(p) (dy W);
  /// after kSwiGlu (2) the product d [rows, F] becomes dx [rows, 2F] = (u silu'(g) d, silu(g) d).
  kTimesSlope,
};
struct MatmulBackwardInput {
  const TrainMatrix* weight;
  const void* dy;  ///< compute [rows, out]
  int rows, dy_ld;
  InputGradEpilogue epilogue;
  void* dx;
  int dx_ld;
  const void* slope = nullptr;  ///< [rows, dx_ld], as matmul_forward left it for kTimesSlope
  int slope_parts = 1;
  const float* bias = nullptr;  ///< kTimesSlope: that forward's, the same numbers still; or null
  /// kTimesSlope of a device that sums_dx(): += the column sums of dx as stored, which is the
  /// bias's gradient, in an order fixed by the shape; or null.
  float* dbias = nullptr;
};

/// dW (+)= dy^T x; dbias (+)= column sums of dy. The whole reduction over rows is ONE chain per
/// element, then one add to what was there.
struct MatmulBackwardWeight {
  const void *dy, *x;  ///< compute [rows, out], [rows, in]
  int rows, out, in, dy_ld, x_ld;
  float* dweight;  ///< [out, in]
  float* dbias;    ///< [out] or null; always +=
  bool accumulate;
};

/// The heads of a fused projection [rows, (heads + 2 kv_heads) head_dim]: queries, keys, values.
struct HeadShape {
  int heads, kv_heads, head_dim;
  int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

/// Optional RMSNorm of each query and key head, then rotate-half RoPE on both.
struct RotaryForward {
  HeadShape shape;
  const void* in;  ///< compute [rows, width]
  void* out;       ///< compute; may equal `in` unless the norms are set
  int rows;
  std::span<const int32_t> positions;  ///< host
  const float* table;                  ///< [max_positions, head_dim]: head_dim/2 cosines, then sines; null: no rotation
  const float *q_norm, *k_norm;        ///< [head_dim] or null
  float epsilon;
  float* stats;                        ///< [rows, heads + kv_heads] 1/rms, when the norms are set
};
struct RotaryBackward {
  RotaryForward forward;  ///< the same arguments
  void* dqkv;             ///< compute [rows, width]: gradient of `out`, becomes that of `in`
  float *dq_norm, *dk_norm;  ///< +=
};

/// Sequences packed one after another: sequence s is rows starts[s] .. starts[s+1].
struct AttentionForward {
  HeadShape shape;
  const void* qkv;  ///< compute [rows, width], rotated
  void* out;        ///< compute [rows, heads * head_dim]
  float* stats;     ///< [heads, rows, 2]: what backward needs of the softmax; null when none follows
  std::span<const int32_t> starts;  ///< host; sequences + 1
  int window;                       ///< 0: full causal
  float scale;                      ///< 1/sqrt(head_dim)
};
struct AttentionBackward {
  AttentionForward forward;
  const void* dout;  ///< compute [rows, heads * head_dim]
  void* dqkv;        ///< compute [rows, width], overwritten
};

/// Softmax cross-entropy of x W^T without a rows x vocab matrix of floats in memory.
struct ClassifierLoss {
  const TrainMatrix* head;
  const void* x;                     ///< compute [rows, in]
  int rows;
  std::span<const int32_t> targets;  ///< host; -1: not counted
  double* losses;                    ///< [rows]: -log p(target), 0 where not counted
  void* dlogits;                     ///< compute [rows, dlogits_ld] = (softmax - onehot) * scale, or null
  int dlogits_ld;                    ///< >= vocab; columns past vocab are zeroed
  float scale;                       ///< loss scale / counted tokens of the whole step
};

/// Decoupled AdamW (Loshchilov & Hutter 2019) on `n` numbers. g = grad * grad_scale;
/// p *= 1 - lr*decay; p -= lr * (m/(1-b1^t)) / (sqrt(v)/sqrt(1-b2^t) + eps).
struct AdamW {
  float *param, *m, *v;
  const float* grad;
  size_t n;
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step;      ///< t, from 1
  float grad_scale;  ///< clipping and loss scale
};

struct FloatRun {
  const float* data;
  size_t n;
};

/// Implemented by each device, and once in the plainest loops (cpu/reference).
/// Threads: one caller at a time.
class TrainOps {
 public:
  virtual ~TrainOps() = default;
  virtual Precision precision() const = 0;

  virtual std::unique_ptr<TrainMatrix> make_matrix(int out, int in) = 0;
  /// Takes rows [row, row + rows) of the float masters ([out, in]) into the device's layout.
  /// Different row ranges may be packed from different threads when their borders are multiples of 64.
  virtual void pack(TrainMatrix& matrix, int row, int rows, const float* masters) const = 0;

  virtual void embed_forward(const EmbedForward& op) = 0;
  virtual void embed_backward(const EmbedBackward& op) = 0;
  virtual void norm_forward(const NormForward& op) = 0;
  virtual void norm_backward(const NormBackward& op) = 0;
  /// Whether norm_backward takes dy in the training's precision: half of what the product before
  /// writes and it reads, where the memory is what both wait for.
  virtual bool norms_compute_dy() const { return false; }
  virtual void matmul_forward(const MatmulForward& op) = 0;
  virtual void matmul_backward_input(const MatmulBackwardInput& op) = 0;
  /// Whether kTimesSlope takes a dbias and norm_backward dx_sums: a device that would have to read
  /// dx again for it does not, and is asked for it in matmul_backward_weight.
  virtual bool sums_dx() const { return false; }
  virtual void matmul_backward_weight(const MatmulBackwardWeight& op) = 0;
  virtual void rotary_forward(const RotaryForward& op) = 0;
  virtual void rotary_backward(const RotaryBackward& op) = 0;
  virtual void attention_forward(const AttentionForward& op) = 0;
  virtual void attention_backward(const AttentionBackward& op) = 0;
  virtual void classifier_loss(const ClassifierLoss& op) = 0;

  /// Another number when memory that captured operations use (scratch, tables of what lay on the
  /// host) has been given back or holds something else: what was captured before must not be
  /// started any more. An operation that is asked for again with the number unchanged, and its
  /// operands' shapes and host spans as they were, can be captured.
  virtual uint64_t scratch_version() const { return 0; }

  // Optimiser side: flat float ranges.
  virtual void adamw(const AdamW& op) const = 0;
  /// out = a + b elementwise; out may be a or b.
  virtual void add(const float* a, const float* b, float* out, size_t n) const = 0;
  /// Sum of squares in double, in an order fixed by n alone; NaN or Inf when any element is.
  virtual double sum_squares(const float* x, size_t n) const = 0;
  /// The same of several runs, with the same bits: `sums` (host) has one for each.
  virtual void sums_of_squares(std::span<const FloatRun> runs, std::span<double> sums) const {
    for (size_t i = 0; i < runs.size(); i++) sums[i] = sum_squares(runs[i].data, runs[i].n);
  }
};

}  // namespace fastserve
