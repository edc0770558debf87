// gpu_ceilings: what this card does at best, measured: copying its own memory, and multiplying.
// One JSON object on stdout; 1 with a sentence on stderr when there is no card.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "gpu/cuda/cublaslt_engine.h"
#include "gpu/cuda/device_runtime.h"
#include "gpu/cuda/driver.h"
#include "gpu/cuda/sdpa_plan.h"

namespace {

using namespace fastserve;
using namespace fastserve::gpu;

/// The best of several rounds: a ceiling is what the card can do, not what it does on average.
template <class Work>
Result<double> seconds(Runtime& runtime, int repeats, const Work& work) {
  double best = 1e9;
  for (int round = 0; round < 8; round++) {
    FS_TRY(runtime.sync());
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; i++) work();
    FS_TRY(runtime.sync());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count() / repeats);
  }
  return best;
}

/// Bytes read and written a second when the card copies 1 GiB to another place in its memory.
Result<double> copy_rate(Runtime& runtime) {
  constexpr size_t kBytes = size_t{1} << 30;
  FS_ASSIGN(const Memory from, Memory::allocate(runtime, kBytes));
  FS_ASSIGN(const Memory to, Memory::allocate(runtime, kBytes));
  const auto stream = static_cast<cudaStream_t>(runtime.stream());
  FS_ASSIGN(const double took, seconds(runtime, 10, [&] {
              cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream);
            }));
  return 2.0 * kBytes / took;
}

/// bfloat16 numbers between -1 and 1: of zeros the card multiplies more a second than of others.
void fill(const Memory& memory, size_t bytes) {
  std::vector<BFloat16> numbers(bytes / sizeof(BFloat16));
  Rng rng(1);
  for (BFloat16& x : numbers) x = to_bfloat16(2 * static_cast<float>(rng.uniform()) - 1);
  cudaMemcpy(memory.data(), numbers.data(), bytes, cudaMemcpyHostToDevice);
}

/// bfloat16 operations a second in the library's own product of two large squares.
Result<double> multiply_rate(Runtime& runtime) {
  constexpr int kSide = 8192;
  const SystemClock clock;
  const auto& library = cublaslt();
  if (library.table == nullptr)
    return Error{ErrorCode::kNotFound, library.found.problem, "cuBLASLt", ""};
  FS_ASSIGN(const auto engine,
            make_cublaslt_engine(*library.table, library.found.version, runtime, {}, &clock));
  constexpr size_t kBytes = size_t{kSide} * kSide * 2;
  FS_ASSIGN(const Memory a, Memory::allocate(runtime, kBytes));
  FS_ASSIGN(const Memory b, Memory::allocate(runtime, kBytes));
  FS_ASSIGN(const Memory out, Memory::allocate(runtime, kBytes));
  fill(a, kBytes), fill(b, kBytes);
  Product p;
  p.m = p.n = p.k = p.lda = p.ldb = p.out_ld = kSide;
  p.a = a.data(), p.b = b.data(), p.out = out.data();
  if (!engine->supports(p))
    return Error{ErrorCode::kUnsupported, "has no algorithm for 8192 x 8192 x 8192", "cuBLASLt",
                 ""};
  FS_ASSIGN(const double took, seconds(runtime, 10, [&] { engine->run(p); }));
  return 2.0 * kSide * kSide * kSide / took;
}

/// Attention of cuDNN's first choice, in seconds a call; the shapes of bench/gpu_timings.
struct AttentionShape {
  const char* name;
  SdpaShape shape;
};
const AttentionShape kAttention[] = {{"12 x 64, 1024 tokens", {16, 1024, {12, 12, 64}}},
                                     {"32 x 128 of 8, 4096 tokens", {4, 4096, {32, 8, 128}}}};

struct Operands {
  std::map<SdpaOperand, void*> pointers;
  std::vector<Memory> memory;
  float scale = 0.125f, never = -std::numeric_limits<float>::max(), one = 1;

  /// What the pass names, of the sequences from `sequence` on; room is the same for all.
  std::map<SdpaOperand, void*> from(int64_t sequence, const SdpaShape& s, SdpaPass pass) const {
    std::map<SdpaOperand, void*> moved = pointers;
    std::erase_if(moved, [&](const auto& named) {
      if (pass == SdpaPass::kForward) return named.first == kSdpaOne || named.first >= kSdpaOutGrad;
      return pass == SdpaPass::kBackward && named.first == kSdpaQuerySums;
    });
    const auto move = [&](SdpaOperand name, int64_t row_bytes) {
      if (const auto found = moved.find(name); found != moved.end())
        found->second = static_cast<std::byte*>(found->second) + sequence * s.tokens * row_bytes;
    };
    for (const SdpaOperand name :
         {kSdpaQuery, kSdpaKey, kSdpaValue, kSdpaQueryGrad, kSdpaKeyGrad, kSdpaValueGrad})
      move(name, s.heads.width() * 2);
    for (const SdpaOperand name : {kSdpaOut, kSdpaOutGrad})
      move(name, int64_t{s.heads.heads} * s.heads.head_dim * 2);
    move(kSdpaStats, int64_t{s.heads.heads} * 4);
    return moved;
  }

  Status add(Runtime& runtime, SdpaOperand name, int64_t bytes) {
    FS_ASSIGN(Memory made, Memory::allocate(runtime, static_cast<size_t>(bytes)));
    pointers[name] = made.data();
    fill(made, static_cast<size_t>(bytes));
    memory.push_back(std::move(made));
    return {};
  }

  /// Room for everything that either pass names; queries, keys and values in the fused rows.
  Status add_all(Runtime& runtime, const SdpaShape& s) {
    const int64_t rows = s.sequences * s.tokens, dim = s.heads.head_dim;
    const int64_t out = rows * s.heads.heads * dim;
    const auto fused = [&](SdpaOperand query, SdpaOperand key, SdpaOperand value) -> Status {
      FS_TRY(add(runtime, query, rows * s.heads.width() * 2));
      auto* start = static_cast<std::byte*>(pointers[query]);
      pointers[key] = start + s.heads.heads * dim * 2;
      pointers[value] = start + (s.heads.heads + s.heads.kv_heads) * dim * 2;
      return {};
    };
    FS_TRY(fused(kSdpaQuery, kSdpaKey, kSdpaValue));
    FS_TRY(fused(kSdpaQueryGrad, kSdpaKeyGrad, kSdpaValueGrad));
    FS_TRY(add(runtime, kSdpaOut, out * 2));
    FS_TRY(add(runtime, kSdpaOutGrad, out * 2));
    FS_TRY(add(runtime, kSdpaStats, rows * s.heads.heads * 4));
    FS_TRY(add(runtime, kSdpaRowDots, rows * s.heads.heads * 4));
    FS_TRY(add(runtime, kSdpaQuerySums, out * 4));
    pointers[kSdpaScale] = &scale;
    pointers[kSdpaNever] = &never;
    pointers[kSdpaOne] = &one;
    return {};
  }
};

struct AttentionFound {
  double seconds;
  bool same_bits;  ///< backward: of all gradients, in kTimesAgain runs after the first
};
constexpr int kTimesAgain = 4;

Result<std::vector<std::byte>> gradients(Runtime& runtime, const Operands& operands,
                                         const SdpaShape& s) {
  const int64_t bytes = s.sequences * s.tokens * s.heads.width() * 2;
  std::vector<std::byte> copied(static_cast<size_t>(bytes));
  runtime.copy_out(copied.data(), operands.pointers.at(kSdpaQueryGrad), copied.size());
  FS_TRY(runtime.sync());
  return copied;
}

Result<AttentionFound> attention(Runtime& runtime, const Cudnn& library, cudnnHandle_t handle,
                                 const Operands& operands, const SdpaShape& shape, SdpaPass pass,
                                 int64_t at_once) {
  SdpaShape part = shape;
  part.sequences = at_once;
  FS_ASSIGN(const SdpaPlan plan, SdpaPlan::make(library, part, pass, {handle, ""}));
  const auto wanted = static_cast<size_t>(plan.workspace_bytes());
  FS_ASSIGN(const Memory workspace, Memory::allocate(runtime, wanted));
  Status ran;
  const auto once = [&] {
    for (int64_t s = 0; s < shape.sequences && ran.ok(); s += at_once)
      ran = plan.run(handle, operands.from(s, shape, pass), workspace.data());
  };
  AttentionFound found{0, true};
  FS_ASSIGN(found.seconds, seconds(runtime, 10, once));
  if (pass != SdpaPass::kForward) {
    FS_ASSIGN(const auto first, gradients(runtime, operands, shape));
    for (int i = 0; i < kTimesAgain; i++) {
      once();
      FS_ASSIGN(const auto again, gradients(runtime, operands, shape));
      found.same_bits = found.same_bits && again == first;
    }
  }
  FS_TRY(ran);
  return found;
}

/// `"cudnn_attention": {"forward 12 x 64, 1024 tokens": 1.2e-4, ...}`, and which of those backward
/// gave the same bits each time. What cuDNN cannot do is not there.
std::string attentions(Runtime& runtime) {
  const Cudnn* library = cudnn().table;
  cudnnHandle_t handle = nullptr;
  std::string times, bits;
  if (library != nullptr && library->cudnnCreate(&handle) == CUDNN_STATUS_SUCCESS) {
    library->cudnnSetStream(handle, static_cast<cudaStream_t>(runtime.stream()));
    for (const AttentionShape& a : kAttention) {
      const SdpaShape& s = a.shape;
      Operands operands;
      const Status room = operands.add_all(runtime, s);
      const auto measure = [&](const std::string& what, SdpaPass pass, int64_t at_once) {
        const auto found = room.ok()
                               ? attention(runtime, *library, handle, operands, s, pass, at_once)
                               : Result<AttentionFound>(room.error());
        if (!found.ok())
          return fmt::print(stderr, "gpu_ceilings: {}: {}\n", what, found.error().message());
        times += fmt::format("{}\"{}\": {:.4e}", times.empty() ? "" : ", ", what, found->seconds);
        if (pass != SdpaPass::kForward)
          bits += fmt::format("{}\"{}\": {}", bits.empty() ? "" : ", ", what, found->same_bits);
      };
      const std::string name(a.name), same_bits = "backward deterministic " + name;
      measure("forward " + name, SdpaPass::kForward, s.sequences);
      measure("backward " + name, SdpaPass::kBackwardAtomic, s.sequences);
      measure(same_bits, SdpaPass::kBackward, s.sequences);
      // What lies between its products fits into less of the card, and into more of its cache.
      for (int64_t some = s.sequences / 2; some > 0; some /= 2)
        measure(fmt::format("{}, {} at a time", same_bits, some), SdpaPass::kBackward, some);
    }
    library->cudnnDestroy(handle);
  }
  return fmt::format("\"cudnn_attention\": {{{}}}, \"cudnn_attention_same_bits\": {{{}}}", times,
                     bits);
}

Status run() {
  GpuInventory found;
  ask_driver(found);
  if (found.problem) return *found.problem;
  const GpuInfo& gpu = found.gpus.front();
  if (!gpu.problem.empty()) return Error{ErrorCode::kUnsupported, gpu.problem, gpu.name, ""};
  FS_ASSIGN(const auto runtime, make_cuda_runtime(gpu.index, gpu.name));
  FS_ASSIGN(const double copied, copy_rate(*runtime));
  FS_ASSIGN(const double multiplied, multiply_rate(*runtime));
  fmt::print(
      "{{\"card\": \"{}\", \"capability\": \"{}.{}\", \"hbm_bytes_per_second\": {:.4e}, "
      "\"tensor_bf16_flops\": {:.4e}, {}}}\n",
      gpu.name, gpu.major, gpu.minor, copied, multiplied, attentions(*runtime));
  return {};
}

}  // namespace

int main() {
  const Status status = run();
  if (status.ok()) return 0;
  fmt::print(stderr, "gpu_ceilings: {}\n", status.error().message());
  return 1;
}
