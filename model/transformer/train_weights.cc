#include <algorithm>

#include "model/trainable.h"

namespace fastserve {
namespace {

struct TrainedBlock {
  Block block;
  bool matrix;  // multiplied with, so the device keeps a packed copy
};

/// Every block in offset order. The token embedding is a matrix only when it is also the head.
std::vector<TrainedBlock> trained_blocks(const ModelConfig& config, const ParameterLayout& layout) {
  std::vector<TrainedBlock> blocks;
  const auto add = [&](const Block& block, bool matrix) {
    if (!block.empty()) blocks.push_back({block, matrix});
  };
  const bool tied = layout.head().offset == layout.token_embedding().offset;
  add(layout.token_embedding(), tied);
  add(layout.position_embedding(), false);
  for (int l = 0; l < config.layers; ++l) {
    const LayerBlocks& b = layout.layer(l);
    for (const Block* matrix : {&b.qkv, &b.output, &b.up, &b.down}) add(*matrix, true);
    for (const Block* vector : {&b.norm1, &b.norm1_bias, &b.qkv_bias, &b.q_norm, &b.k_norm,
                                &b.output_bias, &b.norm2, &b.norm2_bias, &b.up_bias, &b.down_bias})
      add(*vector, false);
  }
  add(layout.final_norm(), false);
  add(layout.final_norm_bias(), false);
  if (!tied) add(layout.head(), true);
  std::sort(blocks.begin(), blocks.end(), [](const TrainedBlock& a, const TrainedBlock& b) {
    return a.block.offset < b.block.offset;
  });
  return blocks;
}

bool decays(const ParameterLayout& layout, size_t offset) {
  const auto& parameters = layout.parameters();
  const auto after = std::upper_bound(parameters.begin(), parameters.end(), offset,
                                      [](size_t at, const Parameter& p) { return at < p.offset; });
  FS_CHECK(after != parameters.begin());
  return std::prev(after)->decay;
}

}  // namespace

int64_t Microbatch::counted() const {
  return std::count_if(targets.begin(), targets.end(), [](int32_t t) { return t >= 0; });
}

std::vector<TrainWeights::Tile> TrainWeights::tiles_of(const ModelConfig& config,
                                                       const ParameterLayout& layout) {
  std::vector<Tile> tiles;
  int matrices = 0;
  for (const auto& [block, matrix] : trained_blocks(config, layout)) {
    const int index = matrix ? matrices++ : -1;
    const bool decay = decays(layout, block.offset);
    for (int row = 0; row < block.rows; row += kRows) {
      const int rows = std::min(kRows, block.rows - row);
      const size_t cols = static_cast<size_t>(block.cols);
      tiles.push_back({block.offset + static_cast<size_t>(row) * cols,
                       static_cast<size_t>(rows) * cols, decay, index, row, rows});
    }
  }
  return tiles;
}

Result<std::unique_ptr<TrainWeights>> TrainWeights::create(Device& device, TrainOps& ops,
                                                           const ModelConfig& config,
                                                           const ParameterLayout& layout) {
  std::unique_ptr<TrainWeights> weights(new TrainWeights);
  FS_ASSIGN(weights->memory_, device.allocate(layout.elements() * sizeof(float)));
  weights->masters_ = {static_cast<float*>(weights->memory_->data()), layout.elements()};
  weights->tiles_ = tiles_of(config, layout);
  for (const auto& [block, matrix] : trained_blocks(config, layout)) {
    if (!matrix) continue;
    weights->matrices_.push_back(ops.make_matrix(block.rows, block.cols));
    weights->matrix_offsets_.push_back(block.offset);
  }
  FS_TRY(device.sync());  // make_matrix() tells there that memory is out
  return weights;
}

void TrainWeights::refresh(const Tile& tile, const TrainOps& ops) {
  if (tile.matrix < 0) return;
  const size_t index = static_cast<size_t>(tile.matrix);
  ops.pack(*matrices_[index], tile.row, tile.rows, masters_.data() + matrix_offsets_[index]);
}

void TrainWeights::refresh_all(const TrainOps& ops) {
  for (const Tile& tile : tiles_) refresh(tile, ops);
}

const TrainMatrix& TrainWeights::matrix(const Block& block) const {
  const auto found = std::lower_bound(matrix_offsets_.begin(), matrix_offsets_.end(), block.offset);
  FS_CHECK(found != matrix_offsets_.end() && *found == block.offset);
  return *matrices_[static_cast<size_t>(found - matrix_offsets_.begin())];
}

}  // namespace fastserve
