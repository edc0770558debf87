#include "gpu/weight_memory.h"

#include <algorithm>

namespace fastserve::gpu {
namespace {

constexpr size_t kMostBlock = size_t{256} << 20, kAlign = 256;

}  // namespace

Result<WeightMemory::Piece> WeightMemory::own(size_t bytes) {
  FS_ASSIGN(Memory memory, Memory::allocate(runtime_, bytes));
  Piece piece;
  piece.data_ = memory.data();
  piece.bytes_ = bytes;
  piece.block_ = std::make_shared<Memory>(std::move(memory));
  return piece;
}

Result<WeightMemory::Piece> WeightMemory::take(size_t bytes) {
  if (bytes == 0) return Piece();
  const size_t room = (bytes + kAlign - 1) / kAlign * kAlign;
  const size_t left = block_ ? block_->bytes() - used_ : 0, block = std::min(expected_, kMostBlock);
  expected_ -= std::min(expected_, room);
  if (room > left) {
    // A large piece has its own; and a block is not given up while much of it is left.
    if (room > block / 4 || left > kMostBlock / 16) return own(bytes);
    FS_ASSIGN(Memory memory, Memory::allocate(runtime_, block));
    block_ = std::make_shared<Memory>(std::move(memory));
    used_ = 0;
  }
  Piece piece;
  piece.block_ = block_;
  piece.data_ = static_cast<std::byte*>(block_->data()) + used_;
  piece.bytes_ = bytes;
  used_ += room;
  return piece;
}

void WeightMemory::finish() {
  block_.reset();
  expected_ = used_ = 0;
}

}  // namespace fastserve::gpu
