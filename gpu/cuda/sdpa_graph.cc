#include "gpu/cuda/sdpa_graph.h"

namespace fastserve::gpu {
namespace {

/// The tensors of a shape. [sequences, heads, tokens, head_dim] in all of them; a row of the fused
/// projection holds every head's query, then the keys, then the values.
struct Tensors {
  GraphBuilder& graph;
  const SdpaShape& shape;
  cudnnDataType_t type =
      shape.precision == Precision::kFloat16 ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16;
  int64_t dim = shape.heads.head_dim;

  Dimensions sized(int64_t heads, int64_t last) const {
    return {shape.sequences, heads, shape.tokens, last};
  }
  Dimensions per_head() const { return sized(shape.heads.heads, dim); }
  Dimensions scores() const { return sized(shape.heads.heads, shape.tokens); }
  Dimensions per_row() const { return sized(shape.heads.heads, 1); }

  /// `width` is how far one token's row is from the next.
  GraphTensor heads(int64_t name, int64_t count, int64_t width) const {
    return graph.memory(name, type, sized(count, dim), {shape.tokens * width, dim, width, 1});
  }
  GraphTensor heads_transposed(int64_t name, int64_t count, int64_t width) const {
    return graph.memory(name, type, {shape.sequences, count, dim, shape.tokens},
                        {shape.tokens * width, dim, 1, width});
  }
  GraphTensor floats(int64_t name, const Dimensions& dimensions) const {
    Dimensions strides(4, 1);
    for (size_t i = 3; i-- > 0;) strides[i] = strides[i + 1] * dimensions[i + 1];
    return graph.memory(name, CUDNN_DATA_FLOAT, dimensions, strides);
  }
  int64_t qkv_width() const { return shape.heads.width(); }
  int64_t out_width() const { return shape.heads.heads * dim; }
};

}  // namespace

Result<Descriptor> sdpa_forward_graph(const Cudnn& library, const SdpaShape& shape,
                                      cudnnHandle_t handle) {
  GraphBuilder g(library);
  const Tensors t{g, shape};
  const int64_t kv_heads = shape.heads.kv_heads, heads = shape.heads.heads;
  const GraphTensor query = t.heads(kSdpaQuery, heads, t.qkv_width());
  const GraphTensor key = t.heads_transposed(kSdpaKey, kv_heads, t.qkv_width());
  const GraphTensor value = t.heads(kSdpaValue, kv_heads, t.qkv_width());
  const GraphTensor out = t.heads(kSdpaOut, heads, t.out_width());
  const GraphTensor scale = g.scalar(kSdpaScale), never = g.scalar(kSdpaNever);

  const GraphTensor products = g.between(t.scores()), scaled = g.between(t.scores());
  g.matmul(query, key, products);
  g.pointwise(CUDNN_POINTWISE_MUL, scaled, products, &scale);
  const GraphTensor masked = g.causal(scaled, never);

  const GraphTensor most = g.between(t.per_row()), shifted = g.between(t.scores());
  const GraphTensor powers = g.between(t.scores()), sum = g.between(t.per_row());
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, masked, most);
  g.pointwise(CUDNN_POINTWISE_SUB, shifted, masked, &most);
  g.pointwise(CUDNN_POINTWISE_EXP, powers, shifted);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, powers, sum);

  const GraphTensor log = g.between(t.per_row()), stats = t.floats(kSdpaStats, t.per_row());
  g.pointwise(CUDNN_POINTWISE_LOG, log, sum);
  g.pointwise(CUDNN_POINTWISE_ADD, stats, most, &log);

  const GraphTensor weights = g.between(t.scores(), t.type);
  g.pointwise(CUDNN_POINTWISE_DIV, weights, powers, &sum);
  g.matmul(weights, value, out);
  return g.finish(handle);
}

Result<Descriptor> sdpa_backward_graph(const Cudnn& library, const SdpaShape& shape,
                                       QueryGradient how, cudnnHandle_t handle) {
  GraphBuilder g(library);
  const Tensors t{g, shape};
  const int64_t kv_heads = shape.heads.kv_heads, heads = shape.heads.heads;
  const int64_t tokens = shape.tokens, width = t.qkv_width();
  const GraphTensor query = t.heads(kSdpaQuery, heads, width);
  const GraphTensor key = t.heads_transposed(kSdpaKey, kv_heads, width);
  const GraphTensor value = t.heads_transposed(kSdpaValue, kv_heads, width);
  const GraphTensor out = t.heads(kSdpaOut, heads, t.out_width());
  const GraphTensor out_grad = t.heads(kSdpaOutGrad, heads, t.out_width());
  const GraphTensor query_grad = t.heads(kSdpaQueryGrad, heads, width);
  const GraphTensor key_grad = t.heads(kSdpaKeyGrad, kv_heads, width);
  const GraphTensor value_grad = t.heads(kSdpaValueGrad, kv_heads, width);
  const GraphTensor stats = t.floats(kSdpaStats, t.per_row());
  const GraphTensor scale = g.scalar(kSdpaScale), one = g.scalar(kSdpaOne),
                    never = g.scalar(kSdpaNever);

  // Each row's dot product of dO and O.
  const GraphTensor both = g.between(t.per_head()), dots = g.between(t.per_row());
  const GraphTensor row_dots = t.floats(kSdpaRowDots, t.per_row());
  g.pointwise(CUDNN_POINTWISE_MUL, both, out_grad, &out);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, both, dots);
  g.pointwise(CUDNN_POINTWISE_MUL, row_dots, dots, &one);

  // P = exp(scale Q K^T - log-sum-exp), masked.
  const GraphTensor products = g.between(t.scores()), scaled = g.between(t.scores());
  const GraphTensor shifted = g.between(t.scores()), weights = g.between(t.scores());
  g.matmul(query, key, products);
  g.pointwise(CUDNN_POINTWISE_MUL, scaled, products, &scale);
  g.pointwise(CUDNN_POINTWISE_SUB, shifted, scaled, &stats);
  g.pointwise(CUDNN_POINTWISE_EXP, weights, g.causal(shifted, never));

  // Heads that share keys and values add up what each of them gives.
  const auto add_groups = [&](const GraphTensor& a, const GraphTensor& b, const GraphTensor& into) {
    if (heads == kv_heads) return g.matmul(a, b, into);
    const GraphTensor each = g.between(t.per_head(), t.type);
    g.matmul(a, b, each);
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, each, into);
  };
  const Dimensions by_key = {heads * tokens * tokens, tokens * tokens, 1, tokens};
  const GraphTensor weights_by_key = g.between(t.scores(), t.type, by_key);
  g.reshape(weights, weights_by_key);
  add_groups(weights_by_key, out_grad, value_grad);

  // dS = P (dO V^T - dots) scale
  const GraphTensor weight_grad = g.between(t.scores()), centred = g.between(t.scores());
  const GraphTensor unscaled = g.between(t.scores()), score_grad = g.between(t.scores());
  g.matmul(out_grad, value, weight_grad);
  g.pointwise(CUDNN_POINTWISE_SUB, centred, weight_grad, &row_dots);
  g.pointwise(CUDNN_POINTWISE_MUL, unscaled, centred, &weights);
  g.pointwise(CUDNN_POINTWISE_MUL, score_grad, unscaled, &scale);
  const GraphTensor score_grad_by_key = g.between(t.scores(), t.type, by_key);
  g.reshape(score_grad, score_grad_by_key);
  add_groups(score_grad_by_key, query, key_grad);

  const GraphTensor key_by_row =
      g.between(t.sized(kv_heads, t.dim), t.type, {tokens * width, t.dim, width, 1});
  g.reshape(key, key_by_row);
  // What cuDNN tells its algorithms by: it has no attribute for this, and its notes do not tell.
  if (how == QueryGradient::kWhole) {
    g.matmul(score_grad, key_by_row, query_grad);
    return g.finish(handle);
  }
  const GraphTensor sums = t.floats(kSdpaQuerySums, t.per_head());
  g.matmul(score_grad, key_by_row, sums);
  g.pointwise(CUDNN_POINTWISE_IDENTITY, query_grad, sums);
  return g.finish(handle);
}

}  // namespace fastserve::gpu
