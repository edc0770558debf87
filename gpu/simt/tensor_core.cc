#include "gpu/simt/tensor_core.h"

namespace fastserve::gpu {
namespace {

using simt::Fiber;
using simt::Quiet;

template <class D>
struct Mma {
  D* d;
  const uint32_t* a;
  uint32_t b[2];
};

/// Number `i` of a register of packed ones.
float element(BFloat16, uint32_t word, int i) {
  return to_float(BFloat16{static_cast<uint16_t>(word >> (16 * i))});
}
float element(Float16, uint32_t word, int i) {
  return to_float(Float16{static_cast<uint16_t>(word >> (16 * i))});
}
int element(int8_t, uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

/// The whole warp's product. `T` packs 4 / sizeof(T) numbers a register; D is float or int.
template <class T, class D>
void multiply(uint32_t, void** lanes) {
  constexpr int kPacked = 4 / static_cast<int>(sizeof(T)), kDepth = 8 * kPacked;
  D a[16][kDepth], b[8][kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* x = static_cast<const Mma<D>*>(lanes[lane]);
    const int g = lane >> 2, t = (lane & 3) * kPacked;
    for (int i = 0; i < kPacked; ++i) {
      for (int r = 0; r < 4; ++r)
        a[g + (r & 1) * 8][t + (r >> 1) * 4 * kPacked + i] = element(T{}, x->a[r], i);
      for (int r = 0; r < 2; ++r) b[g][t + r * 4 * kPacked + i] = element(T{}, x->b[r], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto* x = static_cast<const Mma<D>*>(lanes[lane]);
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int i = 0; i < 4; ++i) {
      const D *row = a[g + (i >> 1) * 8], *column = b[t + (i & 1)];
      D sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += row[k] * column[k];
      x->d[i] += sum;
    }
  }
}

template <class T, class D>
void warp_mma(D (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              std::source_location at) {
  Mma<D> mine{d, a, {b0, b1}};
  simt::collective(~0u, simt::kMma + static_cast<int>(sizeof(T)), &mine, multiply<T, D>, at);
}

struct SparseMma {
  int* d;
  const uint32_t *a, *b;
  uint32_t places;
  bool* in_order;
};

void multiply_sparse(uint32_t, void** lanes) {
  const auto of = [&](int lane) { return static_cast<const SparseMma*>(lanes[lane]); };
  int a[16][64] = {}, b[8][64];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane & 3;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 4; ++i) {
        const int row = g + (r & 1) * 8, column = 4 * t + i + (r >> 1) * 16, four = column / 2;
        const uint32_t places = of(4 * g + (r & 1) + four / 8 * 2)->places >> (four % 8 * 4);
        const uint32_t first = places & 3, second = places >> 2 & 3;
        if (first >= second) *of(0)->in_order = false;
        a[row][4 * four + static_cast<int>(i % 2 == 0 ? first : second)] =
            element(int8_t{}, of(lane)->a[r], i);
        b[g][4 * t + i + 16 * r] = element(int8_t{}, of(lane)->b[r], i);
      }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 64; ++k)
        of(lane)->d[i] += a[(lane >> 2) + (i >> 1) * 8][k] * b[(lane & 3) * 2 + (i & 1)][k];
}

struct LoadMatrix {
  uint32_t* r;
  const unsigned char* row;
};

template <bool kTransposed>
void load(uint32_t, void** lanes) {
  const auto number = [&](int matrix, int row, int column) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<LoadMatrix*>(lanes[matrix * 8 + row])->row + column * 2, 2);
    return uint32_t{bits};
  };
  for (int lane = 0; lane < 32; ++lane) {
    auto* x = static_cast<LoadMatrix*>(lanes[lane]);
    const int g = lane >> 2, t = (lane & 3) * 2;
    for (int m = 0; m < 4; ++m)
      x->r[m] = kTransposed ? number(m, t, g) | number(m, t + 1, g) << 16
                            : number(m, g, t) | number(m, g, t + 1) << 16;
  }
}

template <bool kTransposed>
void warp_load(uint32_t (&r)[4], const void* row, std::source_location at) {
  simt::Block& block = *simt::running;
  const auto* bytes = static_cast<const unsigned char*>(row);
  const unsigned char* begin = block.shared.data();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0 || bytes < begin ||
      bytes + 16 > begin + block.shared.size()) {
    block.current->at = at;
    block.fail("ldmatrix reads a row that is not 16 aligned bytes of shared memory");
  }
  // The lane's row, read where the sanitizers see it.
  unsigned char copy[16];
  std::memcpy(copy, row, 16);
  asm volatile("" : : "r"(copy) : "memory");
  LoadMatrix mine{r, bytes};
  simt::collective(~0u, simt::kLoadMatrix + kTransposed, &mine, load<kTransposed>, at);
}

void land(const simt::AsyncCopy& copy) {
  if (copy.bytes != 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  std::memset(static_cast<char*>(copy.to) + copy.bytes, 0,
              static_cast<size_t>(copy.size - copy.bytes));
}

void start(simt::AsyncCopy copy) {
  Fiber& me = *simt::running->current;
  const auto aligned = [&](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % static_cast<size_t>(copy.size) == 0;
  };
  if (!aligned(copy.to) || !aligned(copy.from))
    simt::running->fail(copy.size == 16 ? "cp.async of addresses that are not 16-byte aligned"
                                        : "cp.async of addresses that are not 8-byte aligned");
  copy.group = me.copy_group;
  if (simt::running->early_copies) return land(copy);
  const Quiet quiet;
  me.copies.push_back(copy);
}

}  // namespace

void mma(BFloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         std::source_location at) {
  warp_mma<BFloat16>(d, a, b0, b1, at);
}
void mma(Float16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         std::source_location at) {
  warp_mma<Float16>(d, a, b0, b1, at);
}
void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
            std::source_location at) {
  warp_mma<int8_t>(d, a, b0, b1, at);
}
void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places,
                   std::source_location at) {
  bool in_order = true;
  SparseMma mine{d, a, b, places, &in_order};
  simt::collective(~0u, simt::kSparseMma, &mine, multiply_sparse, at);
  if (in_order) return;
  simt::running->current->at = at;
  simt::running->fail("mma.sp is given places that are not in order");
}
void load_matrix(uint32_t (&r)[4], const void* row, std::source_location at) {
  warp_load<false>(r, row, at);
}
void load_matrix_transposed(uint32_t (&r)[4], const void* row, std::source_location at) {
  warp_load<true>(r, row, at);
}

void copy_async(void* to, const void* from, int bytes) { start({to, from, bytes, 16, 0}); }
void copy_async_8(void* to, const void* from, bool there) {
  start({to, from, there ? 8 : 0, 8, 0});
}

void copy_commit() {
  const Quiet quiet;
  ++simt::running->current->copy_group;
}

void copy_wait_for(unsigned groups_left) {
  std::vector<simt::AsyncCopy> landing;
  {
    const Quiet quiet;
    Fiber& me = *simt::running->current;
    const auto late =
        std::find_if(me.copies.begin(), me.copies.end(), [&](const simt::AsyncCopy& copy) {
          return me.copy_group < groups_left || copy.group >= me.copy_group - groups_left;
        });
    landing.assign(me.copies.begin(), late);
    me.copies.erase(me.copies.begin(), late);
  }
  for (const simt::AsyncCopy& copy : landing) land(copy);
}

}  // namespace fastserve::gpu
