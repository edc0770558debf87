// The ledger of a job: what it keeps, what a crash leaves of it, and what an audit finds out.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "simulated_cluster.h"
#include "tests/scratch.h"
#include "train/ledger_audit.h"
#include "train/ledger_file.h"

using namespace fastserve;

namespace {

std::string trainer_name(TrainerId trainer) { return "trainer-" + std::to_string(trainer.value); }

std::span<const std::byte> bytes_of(const std::string& ledger) {
  return std::as_bytes(std::span(ledger));
}

constexpr uint64_t kWindows = 10;

/// A job of three microbatches of 1, 1 and 2 sequences, by hand.
struct MadeUpJob {
  MadeUpJob() {
    spec.block = 6;
    spec.batch = 4;
    spec.microbatches = 3;
    append_name("one", bytes);
    append_name("two", bytes);
  }
  MadeUpJob& begin(uint64_t incarnation, uint64_t step) {
    append_record(LedgerBegin{incarnation, {step}, kWindows, 4, 3, spec.seed}, bytes);
    now = incarnation;
    return *this;
  }
  MadeUpJob& step(uint64_t step, std::vector<LedgerStep::Unit> units = {{{0, 2}, 0}, {{2, 1}, 1}}) {
    append_record(LedgerStep{now, {step}, 3, true, 0, std::move(units)}, bytes);
    return *this;
  }
  MadeUpJob& steps(uint64_t first, uint64_t end) {
    for (uint64_t i = first; i < end; i++) step(i);
    return *this;
  }
  Result<LedgerAudit> audited(int64_t steps, uint64_t windows = kWindows) const {
    return audit(bytes_of(bytes), spec, steps, windows, "ledger");
  }
  std::string complaint(int64_t steps) const {
    const auto found = audited(steps);
    if (found.ok()) return "none";
    CHECK(found.error().code == ErrorCode::kCorrupt);
    CHECK(found.error().where == "ledger");
    return found.error().what;
  }

  TrainSpec spec;
  std::string bytes{kLedgerMagic};
  uint64_t now = 0;
};

Commit made_up_commit(uint64_t step) {
  return {{step}, true, step % 2, {{{0, 2}, {0}}, {{2, 1}, {7}}}};
}

}  // namespace

TEST_CASE("a ledger reads as it was written, across several openings") {
  Folder folder;
  const Path path = folder.path / "ledger";
  for (uint64_t incarnation : {1, 2}) {
    const auto ledger = LedgerFile::open(path).value();
    CHECK(ledger->last_incarnation() == incarnation - 1);
    CHECK(ledger->begin({incarnation, {5}, 10, 4, 3, 9}, trainer_name).ok());
    for (uint64_t step = 5; step < 8; step++) CHECK(ledger->append(made_up_commit(step)).ok());
    CHECK(ledger->sync().ok());
  }
  const std::string bytes = read_file(path).value();
  LedgerReader reader = LedgerReader::open(bytes_of(bytes), "ledger").value();
  for (uint64_t incarnation : {1, 2}) {
    CHECK(std::get<LedgerBegin>(*reader.next()) == LedgerBegin{incarnation, {5}, 10, 4, 3, 9});
    for (uint64_t step = 5; step < 8; step++) {
      const LedgerStep expected{incarnation, {step}, 3, true, step % 2, {{{0, 2}, 0}, {{2, 1}, 1}}};
      CHECK(std::get<LedgerStep>(*reader.next()) == expected);
      CHECK(reader.step_at(reader.last()) == expected);
    }
  }
  CHECK_FALSE(reader.next());
  CHECK(reader.at_end());
  CHECK(reader.names() == std::vector<std::string>{"trainer-0", "trainer-7"});
}

TEST_CASE("any units can be kept, for an audit to judge") {
  std::string bytes(kLedgerMagic);
  append_name("a", bytes);
  LedgerStep step{~0ull, {~0ull}, ~0u, false, ~0ull, {{{5, 1}, 0}, {{0, ~0u}, 0}, {{~0u, 9}, 0}}};
  append_record(step, bytes);
  LedgerReader reader = LedgerReader::open(bytes_of(bytes), "").value();
  CHECK(std::get<LedgerStep>(*reader.next()) == step);
}

TEST_CASE("a million steps on four trainers stay below 200 MB") {
  std::string bytes;
  LedgerStep step{uint64_t{3} << 32 | 17, {999'999}, 96, true, 1, {}};
  for (uint32_t i = 0; i < 12; i++) step.units.push_back({{8 * i, 8}, i / 3});
  append_record(step, bytes);
  CHECK(bytes.size() < 100);
}

TEST_CASE("a torn end is cut off, wherever it is torn, and the job writes on behind it") {
  Folder folder;
  const Path path = folder.path / "ledger";
  size_t whole = 0, length = 0;
  {
    const auto ledger = LedgerFile::open(path).value();
    CHECK(ledger->begin({1, {0}, 10, 4, 3, 1337}, trainer_name).ok());
    CHECK(ledger->append(made_up_commit(0)).ok());
    whole = std::filesystem::file_size(path);
    CHECK(ledger->append(made_up_commit(1)).ok());
    length = std::filesystem::file_size(path);
  }
  const std::string bytes = read_file(path).value();
  for (size_t cut = whole; cut < length; cut++)
    for (const bool zeros : {false, true}) {  // a power cut may leave the length without the bytes
      std::string torn = bytes.substr(0, cut);
      if (zeros) torn.resize(length + 100);
      CHECK(write_file_atomically(path, torn).ok());
      const auto ledger = LedgerFile::open(path).value();
      CHECK(ledger->cut_off() == torn.size() - whole);
      CHECK(ledger->begin({2, {1}, 10, 4, 3, 1337}, trainer_name).ok());
      CHECK(ledger->append(made_up_commit(1)).ok());
      const std::string mended = read_file(path).value();
      TrainSpec spec = MadeUpJob().spec;
      CHECK(audit(bytes_of(mended), spec, 2, 10, "ledger").value().incarnations == 2);
    }
}

TEST_CASE("a file that is no ledger is refused, and left as it is") {
  Folder folder;
  const Path path = folder.path / "ledger";
  CHECK(write_file_atomically(path, "something else").ok());
  const auto ledger = LedgerFile::open(path);
  REQUIRE_FALSE(ledger.ok());
  CHECK(ledger.error().code == ErrorCode::kCorrupt);
  CHECK(read_file(path).value() == "something else");
}

TEST_CASE("what a full disk refuses is written with a later step, and warned of once") {
  Folder folder;
  const Path path = folder.path / "ledger";
  std::shared_ptr<LedgerFile> ledger = LedgerFile::open(path).value();
  std::vector<std::string> lines;
  const Log log([&](LogLevel, std::string_view line) { lines.emplace_back(line); });
  const auto committed = keep_in(ledger, {1, {0}, 10, 4, 3, 1337}, trainer_name, log);
  committed(made_up_commit(0));
  {
    const FullDisk full(std::filesystem::file_size(path) + 10);
    committed(made_up_commit(1));
    committed(made_up_commit(2));
    CHECK(std::filesystem::file_size(path) == full.limit.rlim_cur);
  }
  committed(made_up_commit(3));
  CHECK(lines.size() == 1);
  const std::string bytes = read_file(path).value();
  CHECK(audit(bytes_of(bytes), MadeUpJob().spec, 4, 10, "ledger").value().repeated_units == 2);
}

TEST_CASE("an audit counts what counted: samples, epochs, each trainer's microbatches") {
  MadeUpJob job;
  job.begin(1, 0).steps(0, 8);
  const LedgerAudit found = job.audited(6).value();
  CHECK(found.steps == 6);
  CHECK(found.ahead == 2);
  CHECK(found.samples == 24);
  CHECK(found.whole_epochs == 2);  // of ten windows
  CHECK(found.microbatches == std::map<std::string, int64_t>{{"one", 12}, {"two", 6}});
  CHECK(job.audited(6, 0).value().windows == kWindows);  // as the ledger says
  CHECK(found.to_json().find("microbatches")->find("one")->as_int() == 12);
}

TEST_CASE("of a step that was replayed the last record is valid") {
  MadeUpJob job;
  job.begin(1, 0).steps(0, 5);
  job.begin(4, 3).step(3, {{{0, 2}, 1}, {{2, 1}, 1}}).steps(4, 6);
  const LedgerAudit found = job.audited(6).value();
  CHECK(found.incarnations == 2);
  CHECK(found.replayed_steps == 2);
  CHECK(found.microbatches == std::map<std::string, int64_t>{{"one", 10}, {"two", 8}});
}

TEST_CASE("an audit names the first step that does not hold, and how") {
  CHECK(MadeUpJob().begin(1, 0).steps(0, 3).complaint(4) == "step 3 has no record");
  CHECK(MadeUpJob().begin(1, 0).steps(0, 2).step(3).complaint(2) ==
        "step 3 comes where 2 is next: it counted twice, or others did not");
  CHECK(MadeUpJob().begin(1, 0).steps(0, 2).step(1).complaint(2) ==
        "step 1 comes where 2 is next: it counted twice, or others did not");
  CHECK(MadeUpJob().begin(1, 0).steps(0, 2).begin(2, 3).complaint(2) ==
        "step 2 has no record, and incarnation 2 begins after it");
  CHECK(MadeUpJob().begin(2, 0).steps(0, 2).begin(2, 1).complaint(2) ==
        "step 1 begins incarnation 2 after 2");
  MadeUpJob stale;
  stale.begin(2, 0).steps(0, 2).now = 1;
  CHECK(stale.step(2).complaint(3) == "step 2 is of incarnation 1 in the midst of 2");
  const auto with = [](std::vector<LedgerStep::Unit> units) {
    return MadeUpJob().begin(1, 0).step(0).step(1, std::move(units)).complaint(2);
  };
  CHECK(with({{{0, 2}, 0}}) == "step 1 counts only the first 2 microbatches");
  CHECK(with({}) == "step 1 counts only the first 0 microbatches");
  CHECK(with({{{2, 1}, 0}}) == "step 1 counts the microbatches 2 to 3 without those before");
  CHECK(with({{{0, 2}, 0}, {{1, 1}, 0}, {{2, 1}, 0}}) ==
        "step 1 counts the microbatches 1 to 2 twice");
  CHECK(with({{{0, 1}, 0}, {{1, 2}, 0}}) ==
        "step 1 counts the microbatches 1 to 3, which are no part of it");
  CHECK(with({{{2, 1}, 0}, {{0, 2}, 1}}) == "none");  // in any order
}

TEST_CASE("an audit holds the ledger against the job's own settings") {
  MadeUpJob job;
  job.begin(1, 0).steps(0, 3);
  CHECK_FALSE(job.audited(3, kWindows + 1).ok());
  job.spec.seed++;
  CHECK_FALSE(job.audited(3).ok());
  job.spec.seed--;
  job.spec.batch = 5;
  CHECK_FALSE(job.audited(3).ok());
}

TEST_CASE("damage in the middle is found, and named by its place") {
  MadeUpJob job;
  job.begin(1, 0).steps(0, 3);
  const size_t at = job.bytes.size();
  job.steps(3, 6).bytes[at + 12] ^= 1;
  CHECK(job.complaint(3) == "none");
  CHECK(job.complaint(6) ==
        "step 3 has no record: what begins at byte " + std::to_string(at) + " is damaged");
}

TEST_CASE("a job on any number of trainers, some of which are killed, passes its audit") {
  for (uint64_t seed = 0; seed < 20; seed++) {
    Folder folder;
    const Path path = folder.path / "ledger";
    SimulatedCluster cluster(
        {.spec = made_up_spec(), .trainers = 4, .shards = 2, .seed = seed, .kills = 3});
    REQUIRE(cluster.run().ok());
    std::shared_ptr<LedgerFile> ledger = LedgerFile::open(path).value();
    LedgerBegin begin = beginning(made_up_spec(), cluster.plan, cluster.sampler->windows(), {});
    begin.incarnation = 1;
    const auto keep = keep_in(ledger, begin, trainer_name, Log());
    for (const Commit& commit : cluster.commits) keep(commit);
    const std::string bytes = read_file(path).value();
    const auto found = audit(bytes_of(bytes), made_up_spec(), 12, cluster.sampler->windows(), "");
    REQUIRE_MESSAGE(found.ok(), found.error().message());
    CHECK(found->samples == 12 * 7);
  }
}
