// A tiny model whose shapes are even.
#pragma once

#include "tests/transformer/tiny_models.h"

namespace fastserve {

/// A shape that takes the tensor cores' aligned paths and flash attention.
inline ModelConfig even_config(Architecture architecture) {
  ModelConfig c = tiny_config(architecture);
  c.vocab_size = 72;
  c.hidden_size = 64;
  c.head_dim = 16;
  c.intermediate_size = 96;
  c.intermediate_sizes = {96, 96};
  c.max_positions = 96;
  return c;
}

}  // namespace fastserve
