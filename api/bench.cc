#include "api/bench.h"

#include <fmt/format.h>

#include "api/bench_models.h"

namespace fastserve {
namespace {

struct Row {
  BenchRow face;
  Result<BenchResult> (*run)(const BenchContext&);
};

const std::vector<Row>& rows() {
  static const std::vector<Row> all = {
      {{"train-char", "GPT-2 shape 4/4/128, block 64, batch 12, vocabulary 65 (shakespeare-char)"},
       [](const BenchContext& c) {
         return bench_training(c, {4, 4, 128, 64, 12, 65});
       }},
      {{"train-12m", "GPT-2 shape 6/6/384, block 256, batch 8, vocabulary 4096"},
       [](const BenchContext& c) {
         return bench_training(c, {6, 6, 384, 256, 8, 4096});
       }},
      {{"train-124m", "GPT-2 124M, block 64, batch 4"},
       [](const BenchContext& c) {
         return bench_training(c, {12, 12, 768, 64, 4, 50304});
       }},
      {{"train-124m-long", "GPT-2 124M, block 512, batch 1"},
       [](const BenchContext& c) {
         return bench_training(c, {12, 12, 768, 512, 1, 50304});
       }},
      {{"train-124m-card", "GPT-2 124M, block 1024, batch 64: steps for a GPU"},
       [](const BenchContext& c) {
         return bench_training(c, {12, 12, 768, 1024, 64, 50304});
       }},
      {{"train-1b-card", "Llama-shaped 1.1B, block 2048, batch 8: steps for a GPU"},
       [](const BenchContext& c) {
         return bench_training(c, {22, 32, 2048, 2048, 8, 32000, 4, 5632});
       }},
      {{"decode-110m", "Llama-shaped 110M, int8, one stream"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k110M, WeightFormat::kInt8Group128, 1, 128});
       }},
      {{"decode4-110m", "Llama-shaped 110M, int4, one stream"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k110M, WeightFormat::kInt4Group32, 1, 128});
       }},
      {{"decode-1b", "Llama-shaped 1.1B, int8, one stream"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k1B, WeightFormat::kInt8Group128, 1, 64});
       }},
      {{"decode4-1b", "Llama-shaped 1.1B, int4, one stream"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k1B, WeightFormat::kInt4Group32, 1, 64});
       }},
      {{"batch32-110m", "Llama-shaped 110M, int8, 32 streams after prompts of 128"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k110M, WeightFormat::kInt8Group128, 32, 64});
       }},
      {{"batch32-1b", "Llama-shaped 1.1B, int8, 32 streams after prompts of 128"},
       [](const BenchContext& c) {
         return bench_decoding(c, {BenchModel::k1B, WeightFormat::kInt8Group128, 32, 16});
       }},
      {{"serve256-1b", "Llama-shaped 1.1B, int8, 256 requests of a server's engine: for a GPU"},
       [](const BenchContext& c) {
         return bench_serving(c, {BenchModel::k1B, WeightFormat::kInt8Group128, 256, 64});
       }},
      {{"turns-110m", "two Llama-shaped 110M, int8, that take turns in the device's memory"},
       [](const BenchContext& c) {
         return bench_turns(c, BenchModel::k110M, WeightFormat::kInt8Group128);
       }},
      {{"turns-1b", "two Llama-shaped 1.1B, int8, that take turns in the device's memory"},
       [](const BenchContext& c) {
         return bench_turns(c, BenchModel::k1B, WeightFormat::kInt8Group128);
       }},
      {{"prefill-110m", "Llama-shaped 110M, int8, one prompt of 512 tokens"},
       [](const BenchContext& c) {
         return bench_prefill(c, BenchModel::k110M, WeightFormat::kInt8Group128, 512);
       }},
      {{"prefill-1b", "Llama-shaped 1.1B, int8, one prompt of 512 tokens"},
       [](const BenchContext& c) {
         return bench_prefill(c, BenchModel::k1B, WeightFormat::kInt8Group128, 512);
       }},
  };
  return all;
}

}  // namespace

const std::vector<BenchRow>& bench_rows() {
  static const std::vector<BenchRow> faces = [] {
    std::vector<BenchRow> out;
    for (const Row& row : rows()) out.push_back(row.face);
    return out;
  }();
  return faces;
}

Result<BenchResult> run_bench(const std::string& row, double seconds, const std::string& device,
                              Isa isa, int lanes, const CancelFlag& cancel) {
  std::string names;
  for (const Row& candidate : rows()) {
    if (candidate.face.name == row) {
      FS_ASSIGN(const ChosenDevice chosen,
                choose_device(device, isa, lanes, default_root() / "gpu-plans"));
      FS_TRY(chosen.one_for("a row of the bench"));
      FS_ASSIGN(BenchResult result, candidate.run({seconds, chosen, isa, lanes, cancel}));
      result.device = chosen.description;
      result.row = row;
      result.isa = isa_name(isa);
      result.threads = lanes;
      return result;
    }
    names += (names.empty() ? "" : ", ") + candidate.face.name;
  }
  return Error{ErrorCode::kNotFound, "is no row", row, "choose one of " + names};
}

}  // namespace fastserve
