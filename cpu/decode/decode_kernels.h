// The inner loops of inference, compiled once for each instruction set and chosen at run time.
//
// Only plain structs and function pointers cross this border: a template or inline function of the
// standard library that were instantiated in a file compiled for AVX-512 could be the copy that the
// linker keeps for the whole program.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace fastserve {

/// How a packed matrix's panels of 16 columns are laid out; see packed_matrix.h.
enum class PanelKind : uint8_t { kFloat32, kFloat16, kBFloat16, kInt8, kInt8Row, kInt4 };
constexpr int kPanelKinds = 6;
constexpr int kPanelColumns = 16;
constexpr int kQuad = 4;  ///< panels that are walked together

/// What the rows of a matmul become before they meet the weights.
enum class ActivationKind : uint8_t { kFloat, kBFloat16, kInt8 };

/// One row of activations: read, normalised, and brought into the form its matrix wants.
struct PrepareRow {
  enum class Norm : uint8_t { kNone, kLayer, kRms };
  const float* x;
  int in, depth;  ///< depth: `in` rounded up to 16; the tail becomes zeros
  Norm norm;
  const float *norm_weight, *norm_bias;  ///< [in]; bias may be null
  float epsilon;
  float* scratch;  ///< [depth]
  int group;       ///< kInt8: values that share a scale, a multiple of 16
  int zero;        ///< kInt8: the weights' zero point
  void* data;      ///< [depth] floats, bfloat16 or quantised values
  float* scale;    ///< kInt8: [groups]
  int32_t* start;  ///< kInt8: [groups] -zero * sum of the group's values
};

/// Prepared rows times some quads of panels, with the epilogue on the tile.
struct MultiplyTask {
  enum class Epilogue : uint8_t { kStore, kAdd, kGelu, kSwiGlu };
  const uint8_t* data;   ///< prepared rows
  size_t data_stride;    ///< bytes from row to row
  const float* scale;    ///< kInt8: [rows, groups]
  const int32_t* start;  ///< kInt8: [rows, groups]
  int groups, group, depth;
  int row, rows;           ///< this task's rows
  const uint8_t* weights;  ///< the matrix's first panel
  size_t header, panel;    ///< bytes of a panel's scales, and of the whole panel
  int quad, quads;         ///< this task's quads
  Epilogue epilogue;
  const float* bias;     ///< [columns] or null; kSwiGlu: the gate's
  const float* bias_up;  ///< kSwiGlu: [columns] or null
  float* out;
  size_t out_ld;
  int columns;  ///< of `out`: panels reach past it
};

/// What the numbers of a KV cache are; see KvType of model/kv_type.h.
enum class KvElement : uint8_t { kFloat32, kFloat16, kInt8 };

/// A slot of the KV cache belongs to a tile of 16 slots: keys [head_dim][16], values
/// [16][head_dim rounded up to 16]; in front of int8 ones 16 floats, the slots' scales. A block
/// holds one tile for each 16 tokens or part of it. Sizes and offsets are counted in elements.
struct KvLayout {
  int head_dim;
  int wide;  ///< head_dim rounded up to 16
  int block_tokens;
  int block_tiles;
  KvElement element;
  int header;  ///< elements that a tile's scales take, or 0
  int key_tile() const { return header + 16 * head_dim; }
  int value_tile() const { return header + 16 * wide; }
};

/// One token's query heads and key/value head: norm, rotation, append.
struct AppendTask {
  const KvLayout* layout;
  float* q;
  int q_heads;  ///< that share the key head
  float *k, *v;
  const float* table;  ///< head_dim/2 cosines, then sines, of this position; null: no rotation
  const float *q_norm, *k_norm;
  float epsilon, q_scale;
  void *key_slot, *value_slot;
  float *key_scale, *value_scale;  ///< kInt8
};

constexpr int kMostAttendRows = 8;
constexpr int kChunkTiles = 32;  ///< tiles between two rescalings of the softmax

/// Query rows that share a key head of one sequence.
struct AttendTask {
  const KvLayout* layout;
  int rows;
  const float* q[kMostAttendRows];  ///< [head_dim], scaled
  float* out[kMostAttendRows];
  int first[kMostAttendRows], last[kMostAttendRows];  ///< visible positions: [first, last)
  const void *keys, *values;                          ///< block 0 of this layer and head
  const void* next_keys;          ///< as `keys`, of the head whose turn comes next, or null
  size_t key_block, value_block;  ///< elements of a block
  const int32_t* blocks;
  float* scratch;  ///< attend_scratch(layout) floats, 64-byte aligned
};
inline size_t attend_scratch(const KvLayout& layout) {
  return size_t{kMostAttendRows} *
         (kChunkTiles * 16 + static_cast<size_t>(layout.wide) + 3 * size_t{kPanelColumns});
}

/// The kernels of one instruction set.
struct DecodeKernels {
  ActivationKind bfloat16_activations;    ///< what kBFloat16 panels are multiplied with
  int int8_bytes;                         ///< of one quantised activation: 1, or 2 without VNNI
  int attend_rows;                        ///< most rows of an AttendTask
  void (*prepare[3])(const PrepareRow&);  ///< by ActivationKind
  void (*multiply[kPanelKinds])(const MultiplyTask&);
  void (*append)(const AppendTask&);
  void (*attend)(const AttendTask&);
  void (*widen_half)(const uint16_t* half, float* out, int n);
  void (*narrow_half)(const float* x, uint16_t* half, int n);
  /// log of the sum of exp(x[i]).
  double (*log_sum_exp)(const float* x, int n);
};

const DecodeKernels& decode_kernels(Isa isa);

}  // namespace fastserve
