// The fused operations of inference: ragged batches over a paged KV cache.
//
// A batch is a list of segments: each some new rows (a prefill chunk, or one decoded token) of one
// sequence. The activations between ops are float [rows, ...]. A row's result does not depend on
// which other rows share the batch, on how a prompt was cut into chunks, or on the lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "model/config.h"
#include "model/kv_type.h"
#include "model/quantised.h"
#include "model/train_ops.h"

namespace fastserve {

/// A weight matrix [out, in] packed for inference in its WeightFormat. Immutable once made.
class DecodeMatrix {
 public:
  virtual ~DecodeMatrix() = default;
  int out() const { return out_; }
  int in() const { return in_; }
  WeightFormat format() const { return format_; }
  virtual size_t bytes() const = 0;  ///< read per decoded token

 protected:
  DecodeMatrix(int out, int in, WeightFormat format) : out_(out), in_(in), format_(format) {}
  int out_, in_;
  WeightFormat format_;
};

/// Several row blocks that become one fused matrix (q over k over v; gate over up), each either
/// floats [rows, in] or quantised. `interleave` asks for gate and up of a neuron to lie near each
/// other; results are as if it did not.
struct DecodeMatrixSource {
  struct Part {
    std::span<const float> floats;                ///< set for the float formats
    const QuantisedMatrix* quantised = nullptr;   ///< set for the quantised ones
    int rows = 0;
    /// Instead of either, where DecodeOps::takes_stored(): rows as a checkpoint holds them. Numbers
    /// of `type`, or codes and scales of `type` as model/quantised.h spells them, which need not
    /// have been looked at. All parts are stored then, and of one type. What lies in memory that is
    /// Device::pinned() is read until DecodeOps::loaded().
    std::span<const std::byte> stored = {};
    DType type = DType::kF32;
    std::span<const std::byte> scales = {};
  };
  std::span<const Part> parts;
  int in = 0;
  WeightFormat format = WeightFormat::kBFloat16;
  bool swiglu = false;  ///< two parts of equal rows, used with DecodeEpilogue::kSwiGlu only
};

struct KvShape {
  int layers, kv_heads, head_dim;
  int block_tokens = 16;  ///< tokens a block holds, for every layer and kv head
  int blocks;             ///< blocks in the pool
  KvType type = KvType::kFloat16;
};

/// The pool of KV blocks of one model on one device. Which sequence owns a block is the caller's matter.
class KvCache {
 public:
  virtual ~KvCache() = default;
  const KvShape& shape() const { return shape_; }
  virtual size_t bytes() const = 0;

 protected:
  explicit KvCache(const KvShape& shape) : shape_(shape) {}
  KvShape shape_;
};

struct Segment {
  int first_row;   ///< in the batch's activations
  int rows;        ///< new tokens
  int position;    ///< of the first new token; tokens before it are in the cache
  std::span<const int32_t> blocks;  ///< host; block i holds positions i*block_tokens ...
};

/// Where a row of a batch stands.
struct RowPlace {
  int32_t position;  ///< below 0: nowhere. Such a row writes no key or value and attends to zeros
  int32_t table;     ///< of its sequence: first entry in the block tables
};

/// A step's rows in device memory, where DecodeOps::resident(); copied there before the step begins,
/// and written by no operation but feed(), before the others. Operations read them as they run, so
/// that captured ones have the rows of then; only the number of rows and their reach are told
/// beforehand.
struct ResidentRows {
  const int32_t *tokens, *positions;  ///< [rows]
  const RowPlace* places;             ///< [rows]
  const int32_t* blocks;              ///< block tables, one after another
  int rows;
  int reach;  ///< every position is below it
};

/// How a row's token is drawn: order and meaning of serve/sampler.h (temperature, top-k with ties,
/// top-p with equal ones by id, min-p).
struct TokenDraw {
  float temperature = 0;  ///< below 1e-6: the likeliest, of equal ones the lowest id
  int32_t top_k = 0;      ///< 0: all
  float top_p = 1;        ///< 1: all
  float min_p = 0;        ///< 0: all
  double uniform = 0;     ///< in [0, 1)
};
struct DecodeDraw {
  const float* logits;  ///< [rows, ld]
  int rows, vocab, ld;
  const TokenDraw* draws;  ///< device [rows]
  int32_t* tokens;         ///< device [rows]; -1 where a row's logits are not finite
};

/// tokens[i] = drawn[~tokens[i]] for each that is below 0; 0 where that is below 0 itself.
struct DecodeFeed {
  int32_t* tokens;       ///< device [rows]
  const int32_t* drawn;  ///< device
  int rows;
};

struct DecodeEmbed {
  std::span<const int32_t> tokens, positions;
  const void* token_table;  ///< [vocab, channels] of `type`
  DType type;               ///< kF32, kBF16 or kF16
  const float* position_table;  ///< [positions, channels] or null
  float* out;
  int channels;
  const ResidentRows* resident = nullptr;  ///< instead of tokens and positions
};

/// A norm fused in front of a matmul.
struct DecodeNorm {
  NormKind kind;
  const float *weight, *bias;
  float epsilon;
};

enum class DecodeEpilogue : uint8_t {
  kStore,   ///< out = x W^T + bias
  kAdd,     ///< out += x W^T + bias (the residual stream)
  kGelu,    ///< out = gelu(x W^T + bias)
  kSwiGlu,  ///< out [rows, F] = silu(gate) * up, for a matrix made with `swiglu`
};
struct DecodeMatmul {
  const DecodeMatrix* weight;
  const float* x;  ///< [.., x_ld]
  int rows, x_ld;
  std::span<const int32_t> gather;  ///< row r reads x at gather[r]; empty: at r
  const DecodeNorm* norm;           ///< applied to each row first, or null
  const float* bias;                ///< [out] or null
  DecodeEpilogue epilogue;
  float* out;
  int out_ld;
  const int32_t* resident_gather = nullptr;  ///< `gather` in device memory, instead of it
};

/// Per row: optional q/k norm, RoPE, append of k and v to the cache, attention over the sequence so far.
struct DecodeAttention {
  HeadShape shape;
  float* qkv;  ///< [rows, width]; overwritten
  std::span<const Segment> segments;
  KvCache* cache;
  int layer;
  const float* rope_table;       ///< as RotaryForward::table, or null
  const float *q_norm, *k_norm;  ///< or null
  float epsilon;
  int window;
  float scale;
  float* out;  ///< [rows, heads * head_dim]
  /// Instead of segments, which then only tell whether each has a single row (or are left out).
  const ResidentRows* resident = nullptr;
};

/// A code out of its format's range, or a scale that is not finite.
struct StoredFault {
  size_t part;  ///< of the quantised ones that were given as they are stored, counted from 0
  bool in_codes;
};

/// Threads: one caller at a time.
class DecodeOps {
 public:
  virtual ~DecodeOps() = default;
  virtual Result<std::unique_ptr<DecodeMatrix>> make_matrix(const DecodeMatrixSource& source) = 0;
  /// True: parts may be given as they are stored, and tables loaded by load().
  virtual bool takes_stored() const { return false; }
  /// Copies to device memory; `from` may change when this returns, or, where it is pinned(), when
  /// loaded() does.
  virtual Status load(void* /*to*/, std::span<const std::byte> /*from*/) { return {}; }
  /// Matrices come that are about so many bytes where they are stored.
  virtual void expect(size_t /*bytes*/) {}
  /// No more weights come: what loading needed is given back. The first fault of those that were
  /// given as they are stored, where they are looked at while they are packed.
  virtual std::optional<StoredFault> loaded() { return {}; }
  /// kResourceExhausted with the size when the pool cannot be had.
  virtual Result<std::unique_ptr<KvCache>> make_cache(const KvShape& shape) = 0;
  /// Bytes of a block: every layer's keys and values. 0: blocks cannot be moved to the host.
  virtual size_t block_bytes(const KvCache&) const { return 0; }
  /// The blocks' content, one after another, to memory of Device::allocate_host(), and back.
  virtual void save_blocks(KvCache&, std::span<const int32_t> /*blocks*/, void* /*host*/) {}
  virtual void restore_blocks(KvCache&, std::span<const int32_t> /*blocks*/,
                              const void* /*host*/) {}
  virtual void embed(const DecodeEmbed& op) = 0;
  virtual void matmul(const DecodeMatmul& op) = 0;
  virtual void attention(const DecodeAttention& op) = 0;
  /// Most rows of operations with resident rows that can be done as one: what is asked for between
  /// begin_fused() and end_fused() is then started by the latter at the latest, with the results
  /// that it has otherwise. 0: there is no such way. The host may not change what they were told
  /// to read before end_fused().
  virtual int fused_rows() const { return 0; }
  virtual void begin_fused() {}
  virtual void end_fused() {}
  /// losses[r] = -log softmax(logits[r])[targets[r]]; logits [rows, ld], host results.
  virtual void cross_entropy(const float* logits, int rows, int vocab, int ld,
                             std::span<const int32_t> targets, double* losses) = 0;

  /// True: operations take their rows from device memory, and draw() and feed() are there.
  virtual bool resident() const { return false; }
  virtual void draw(const DecodeDraw&) {}
  virtual void feed(const DecodeFeed&) {}
  /// Another number when scratch memory that captured operations work in has been given back: what
  /// was captured before must not be started any more.
  virtual uint64_t scratch_version() const { return 0; }
};

}  // namespace fastserve
