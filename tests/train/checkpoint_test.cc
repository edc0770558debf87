#include "train/checkpoint.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

#include "tests/scratch.h"
#include "train/spec.h"

using namespace fastserve;

namespace {

CheckpointHeader header_at(int64_t step) {
  CheckpointHeader header;
  header.spec = find_preset("tiny")->spec;
  header.spec.model.vocab_size = 65;
  header.spec.seed = 0xffffffffffffffff;
  header.state.steps_done = step;
  header.state.updates = step - 1;
  header.state.evaluated_at = step;
  header.state.validation_loss = 1.0 / 3;
  header.state.early.evaluated(step, 1.0 / 3);
  header.state.scaler.scale = 1024;
  header.tokenizer_json = "{\"model\": \"\\u00e9\"}";
  header.dataset_fingerprint = 0xfedcba9876543210;
  header.numerics_id = "cpu/portable";
  return header;
}

std::vector<std::shared_ptr<const ShardState>> parts_at(int64_t step) {
  const auto part = [&](size_t offset, size_t n) {
    auto state = std::make_shared<ShardState>();
    state->offset = offset;
    for (size_t i = offset; i < offset + n; i++) {
      state->weights.push_back(static_cast<float>(step) + static_cast<float>(i));
      state->m.push_back(static_cast<float>(i) * 0.5f);
      state->v.push_back(static_cast<float>(i) * 0.25f);
    }
    return state;
  };
  return {part(10, 7), part(0, 10)};  // as the shards happen to answer
}

void damage(const Path& file) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(5);
  stream.put('\x55');
}

}  // namespace

TEST_CASE("what a checkpoint saved comes back bit by bit") {
  Folder folder;
  auto directory = CheckpointDirectory::open(folder.path / "run").value();
  const std::vector<float> best(17, 0.1f);
  REQUIRE(directory->write(header_at(40), parts_at(40), &best).ok());
  const auto back = directory->newest(Log());
  REQUIRE(back.has_value());
  CHECK(back->weights.size() == 17);
  CHECK(back->weights[12] == 52);
  CHECK(back->m[16] == 8);
  CHECK(back->v[3] == 0.75f);
  CHECK(back->best == best);
  const CheckpointHeader& header = back->header;
  CHECK(header.state.to_json() == header_at(40).state.to_json());
  CHECK(header.state.early.best_loss == 1.0 / 3);
  CHECK(header.spec.to_json() == header_at(40).spec.to_json());
  CHECK(header.spec.seed == 0xffffffffffffffff);
  CHECK(header.tokenizer_json == header_at(40).tokenizer_json);
  CHECK(header.dataset_fingerprint == 0xfedcba9876543210);
  CHECK(check_resumable(header, header.spec, header.dataset_fingerprint).ok());
  TrainSpec longer = header.spec;
  longer.steps *= 2;
  CHECK(check_resumable(header, longer, header.dataset_fingerprint).ok());
  longer.block /= 2;
  CHECK(check_resumable(header, longer, header.dataset_fingerprint).error().where == "block");
  CHECK(check_resumable(header, header.spec, 1).error().where == "data");
}

TEST_CASE("the last two checkpoints are kept, and a step written again replaces itself") {
  Folder folder;
  auto directory = CheckpointDirectory::open(folder.path).value();
  for (const int64_t step : {10, 20, 30, 30})
    REQUIRE(directory->write(header_at(step), parts_at(step), nullptr).ok());
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"lock", "step-000000020", "step-000000030"});
}

TEST_CASE("a damaged checkpoint is passed over with a warning that names the file") {
  for (const char* file : {"weights.f32", "adam_v.f32", "checkpoint.json"}) {
    Folder folder;
    auto directory = CheckpointDirectory::open(folder.path).value();
    REQUIRE(directory->write(header_at(10), parts_at(10), nullptr).ok());
    REQUIRE(directory->write(header_at(20), parts_at(20), nullptr).ok());
    damage(folder.path / "step-000000020" / file);
    std::string warning;
    const auto found =
        directory->newest(Log([&](LogLevel, std::string_view line) { warning = line; }));
    REQUIRE(found.has_value());
    CHECK(found->header.state.steps_done == 10);
    CHECK(warning.find(file) != std::string::npos);
  }
}

TEST_CASE("a write that was cut off leaves the last checkpoint, and is cleared away") {
  Folder folder;
  {
    auto directory = CheckpointDirectory::open(folder.path).value();
    REQUIRE(directory->write(header_at(10), parts_at(10), nullptr).ok());
  }
  const Path half = folder.path / ".writing-step-000000020";
  std::filesystem::create_directories(half);
  std::ofstream(half / "weights.f32") << "half";
  auto directory = CheckpointDirectory::open(folder.path).value();
  CHECK_FALSE(std::filesystem::exists(half));
  CHECK(directory->newest(Log())->header.state.steps_done == 10);
}

TEST_CASE("two jobs cannot train in one directory") {
  Folder folder;
  auto first = CheckpointDirectory::open(folder.path).value();
  const auto second = CheckpointDirectory::open(folder.path);
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::kUnavailable);
  CHECK(second.error().hint.find("another directory") != std::string::npos);
}
