// Checkpoints in pieces: what a node's disk keeps of them, when one is complete, and which one a
// job goes on from.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <numeric>

#include "tests/scratch.h"
#include "train/checkpoint.h"
#include "train/piece_store.h"

using namespace fastserve;

namespace {

struct Floats {
  explicit Floats(size_t n, float first = 1) : w(n), m(n), v(n), best(n) {
    std::iota(w.begin(), w.end(), first);
    std::iota(m.begin(), m.end(), first + 1000);
    std::iota(v.begin(), v.end(), first + 2000);
    std::iota(best.begin(), best.end(), first + 3000);
  }
  PieceStore::Floats all(bool with_best = true) const {
    return {w, m, v, with_best ? std::span<const float>(best) : std::span<const float>()};
  }
  std::vector<float> w, m, v, best;
};

PieceName piece(uint64_t begin, uint64_t end, int64_t step = 20, uint64_t incarnation = 7) {
  return {"job", incarnation, step, begin, end};
}

PieceReport report(const char* node, PieceName name, const char* copied_to = nullptr,
                   std::string hash = std::string(32, 'a')) {
  return {std::move(name), node,        copied_to != nullptr, copied_to != nullptr ? copied_to : "",
          std::move(hash), std::nullopt};
}

/// Two pieces, each with a copy on the other node.
PieceSet pieces_of(int64_t step, std::vector<std::string> holders = {"one", "two"}) {
  PieceSet set{7, step, false, {}};
  set.pieces.push_back({0, 10, std::string(32, 'a'), holders});
  std::reverse(holders.begin(), holders.end());
  set.pieces.push_back({10, 25, std::string(32, 'b'), holders});
  return set;
}

std::vector<PieceName> names_of(const PieceSet& set) {
  std::vector<PieceName> names;
  for (size_t i = 0; i < set.pieces.size(); i++) names.push_back(set.name("job", i));
  return names;
}

}  // namespace

TEST_CASE("a piece comes back from the disk bit by bit, and with the name it had") {
  Folder folder;
  const Floats floats(15);
  std::string hash;
  {
    auto store = PieceStore::open(folder.path / "pieces").value();
    hash = store->write(piece(10, 25), floats.all()).value();
    REQUIRE(store->write(piece(25, 40), floats.all(false)).ok());
  }
  auto store = PieceStore::open(folder.path / "pieces").value();
  CHECK(store->list("job") == std::vector{piece(10, 25), piece(25, 40)});
  CHECK(store->list("other").empty());
  const Piece back = store->read(piece(10, 25), hash).value();
  CHECK(std::ranges::equal(back.weights, floats.w));
  CHECK(std::ranges::equal(back.m, floats.m));
  CHECK(std::ranges::equal(back.v, floats.v));
  CHECK(std::ranges::equal(back.best, floats.best));
  CHECK(store->read(piece(25, 40), "").value().best.empty());
  CHECK(store->read(piece(0, 10), "").error().code == ErrorCode::kNotFound);
}

TEST_CASE("a damaged, cut off or exchanged piece is refused with its name and what is wrong") {
  Folder folder;
  auto store = PieceStore::open(folder.path).value();
  const std::string hash = store->write(piece(10, 25), Floats(15).all()).value();
  const Path file = folder.path / "job/step-000000020-0000000000000007/10-25.piece";
  REQUIRE(std::filesystem::exists(file));
  const std::string whole = read_file(file).value();
  const auto refused = [&](const std::string& bytes) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
    const auto read = store->read(piece(10, 25), hash);
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().code == ErrorCode::kCorrupt);
    CHECK(read.error().where == file.string());
    return read.error().what;
  };
  for (const size_t at : {size_t{60}, size_t{100}, whole.size() - 1}) {
    std::string bytes = whole;
    bytes[at] ^= 4;
    CHECK(refused(bytes) == "does not match its checksum");
  }
  CHECK(refused(whole.substr(0, whole.size() - 4)) == "holds 300 bytes instead of 304");
  CHECK(refused("text") == "holds 4 bytes, and is no piece of a checkpoint");
  CHECK(refused(std::string(304, 'x')) == "is no piece of a checkpoint");
  // A whole piece, of other bits: from before a job went another way.
  const std::string other = store->write(piece(10, 25), Floats(15, 2).all()).value();
  CHECK(other != hash);
  CHECK(store->read(piece(10, 25), hash).error().what ==
        "is whole, but not what the checkpoint names");
}

TEST_CASE("what a crash left half-written is cleared away, and a full disk leaves nothing") {
  Folder folder;
  std::filesystem::create_directories(folder.path / "job/step-000000020-0000000000000007");
  const Path half = folder.path / "job/step-000000020-0000000000000007/.writing-0-9.piece";
  std::ofstream(half) << "half";
  auto store = PieceStore::open(folder.path).value();
  CHECK_FALSE(std::filesystem::exists(half));
  {
    FullDisk full(4096);
    const auto refused = store->write(piece(0, 5000), Floats(5000).all());
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().where.find("0-5000.piece") != std::string::npos);
  }
  CHECK(store->list("job").empty());
  CHECK(std::filesystem::is_empty(half.parent_path()));
}

TEST_CASE("a node keeps the pieces of the checkpoints it is told to, and what is newer") {
  Folder folder;
  auto store = PieceStore::open(folder.path).value();
  const Floats floats(5);
  const auto write = [&](int64_t step, uint64_t incarnation) {
    REQUIRE(store->write(piece(0, 5, step, incarnation), floats.all()).ok());
  };
  write(10, 1);
  write(30, 1);  // of an incarnation that ended before it was published
  write(20, 2);
  write(30, 2);
  write(40, 2);  // being written
  store->keep("job", {{2, 20}, {2, 30}}, {2, 30});
  CHECK(store->list("job") ==
        std::vector{piece(0, 5, 20, 2), piece(0, 5, 30, 2), piece(0, 5, 40, 2)});
  store->keep("../job", {}, {9, 9});
  store->remove("job");
  CHECK(store->list("job").empty());
  write(10, 3);
  store->keep_jobs({"job", "another"});
  CHECK(store->list("job").size() == 1);
  store->keep_jobs({"another"});
  CHECK(store->list("job").empty());
  const auto outside = store->write({"../job", 1, 1, 0, 5}, floats.all());
  CHECK(outside.error().code == ErrorCode::kInvalidArgument);
}

TEST_CASE("a checkpoint is complete when each piece is on its owner's disk and its copy's") {
  PieceCollection pieces(7, 20, 25);
  pieces.add(report("one", piece(0, 10), "two"));
  pieces.add(report("two", piece(10, 25), "one"));
  CHECK_FALSE(pieces.complete());
  pieces.add(report("two", piece(0, 10)));
  pieces.add(report("two", piece(0, 10)));                             // again
  pieces.add(report("one", piece(10, 25, 10), nullptr, "otherwise"));  // of another step
  CHECK_FALSE(pieces.complete());
  pieces.add(report("one", piece(10, 25)));
  REQUIRE(pieces.complete());
  const PieceSet set = pieces.set(true);
  CHECK(set.elements() == 25);
  CHECK(set.pieces[1].holders == std::vector<std::string>{"two", "one"});
  const auto back = PieceSet::from_json(set.to_json(), "test").value();
  CHECK(back.to_json() == set.to_json());
  CHECK(back.best);
}

TEST_CASE("whose disk is slow can be told, and a checkpoint that comes late is none any more") {
  PieceCollector pieces("job", 25);
  pieces.expect({{0, "one"}, {0, "two"}, {10, "two"}, {10, "one"}});
  pieces.add(report("one", piece(0, 10), "two"));  // before it is known that all will copy
  pieces.want(7, 20);
  pieces.add(report("two", piece(0, 10)));
  CHECK(pieces.missing() == std::set<std::string>{"one", "two"});
  pieces.add(report("two", piece(10, 25), "one"));
  CHECK(pieces.missing() == std::set<std::string>{"one"});
  CHECK_FALSE(pieces.take_ended(false));
  pieces.want(8, 15);  // the incarnation is over
  pieces.add(report("one", piece(10, 25)));
  CHECK_FALSE(pieces.take_ended(false));
  pieces.add(report("two", piece(0, 25, 15, 8), ""));
  const auto ended = pieces.take_ended(true);
  REQUIRE(ended);
  CHECK((*ended)->step == 15);
  CHECK((*ended)->best);
  CHECK_FALSE(pieces.take_ended(true));  // once
}

TEST_CASE("a node that was to keep a copy is lost: that checkpoint is given up, the next is not") {
  PieceCollector pieces("job", 10);
  pieces.want(7, 20);
  pieces.add(report("one", piece(0, 10), "two"));
  pieces.give_up_lost();
  CHECK_FALSE(pieces.take_ended(false));
  pieces.lost("two");
  pieces.give_up_lost();
  const auto ended = pieces.take_ended(false);
  REQUIRE(ended);
  CHECK(ended->error().where == "node two");
  pieces.want(7, 25);
  pieces.add(report("one", piece(0, 10, 25), "two"));
  pieces.give_up_lost();  // it is back
  CHECK_FALSE(pieces.take_ended(false));
  pieces.add(report("two", piece(0, 10, 25)));
  CHECK(pieces.take_ended(false)->ok());
}

TEST_CASE("copies that differ, or a node that cannot keep its piece, make no checkpoint") {
  PieceCollection pieces(7, 20, 10);
  pieces.add(report("one", piece(0, 10), "two"));
  pieces.add(report("two", piece(0, 10), nullptr, std::string(32, 'c')));
  REQUIRE(pieces.error());
  CHECK(pieces.error()->message().find("node two") != std::string::npos);
  CHECK_FALSE(pieces.complete());
  PieceCollection full(7, 20, 10);
  PieceReport refused = report("one", piece(0, 10), "");
  refused.error = Error{ErrorCode::kResourceExhausted, "is full", "node one", ""};
  full.add(refused);
  CHECK(full.error()->what == "is full");
}

TEST_CASE("the copy of each node's pieces lies with the next node") {
  using Names = std::vector<std::string>;
  CHECK(copy_places({"a", "b", "c", "a"}, 2) == Names{"b", "c", "a", "b"});
  CHECK(copy_places({"a", "a"}, 2) == Names{"", ""});
  CHECK(copy_places({"a", "b"}, 1) == Names{"", ""});
}

TEST_CASE("a lost node's pieces are had from the copies; away and lost are told apart") {
  const PieceSet set = pieces_of(20);
  PieceHoldings holdings;
  CHECK(judge("job", set, holdings).away == std::set<std::string>{"one", "two"});
  holdings.connected("two", names_of(set));
  CHECK(judge("job", set, holdings).kind == PieceVerdict::Kind::kWhole);
  CHECK(holdings.holders(set.name("job", 0), {"one", "two"}) == std::vector<std::string>{"two"});
  holdings.damaged("two", set.name("job", 1));
  const PieceVerdict away = judge("job", set, holdings);
  CHECK(away.kind == PieceVerdict::Kind::kAway);
  CHECK(away.away == std::set<std::string>{"one"});
  holdings.connected("one", {});  // with a new disk
  const PieceVerdict lost = judge("job", set, holdings);
  CHECK(lost.kind == PieceVerdict::Kind::kLost);
  CHECK(lost.lost == "elements 10 to 25 of nodes two and one");
  holdings.ask_again();
  holdings.connected("three", names_of(set));  // the disk of one was put into it
  CHECK(judge("job", set, holdings).kind == PieceVerdict::Kind::kWhole);
}

TEST_CASE(
    "the newest checkpoint that can be had is taken; one whose nodes may come is waited for") {
  using Verdict = PieceVerdict::Kind;
  using Choice = CheckpointChoice::Kind;
  const auto choose = [](std::vector<Verdict> kinds, bool patient) {
    std::vector<PieceVerdict> verdicts;
    for (const Verdict kind : kinds)
      verdicts.push_back({kind, {"node-" + std::to_string(verdicts.size())}, ""});
    return choose_checkpoint(verdicts, patient);
  };
  CHECK(choose({Verdict::kWhole, Verdict::kWhole}, true).index == 0);
  CHECK(choose({Verdict::kLost, Verdict::kWhole}, true).index == 1);
  CHECK(choose({Verdict::kAway, Verdict::kWhole}, true).kind == Choice::kWait);
  CHECK(choose({Verdict::kAway, Verdict::kWhole}, true).away == std::set<std::string>{"node-0"});
  CHECK(choose({Verdict::kAway, Verdict::kWhole}, false).index == 1);
  CHECK(choose({Verdict::kAway, Verdict::kLost}, false).kind == Choice::kWait);
  CHECK(choose({Verdict::kLost, Verdict::kLost}, true).kind == Choice::kLost);
  CHECK(choose({Verdict::kLost, Verdict::kAway, Verdict::kWhole}, false).index == 2);
}

TEST_CASE("a manifest comes back as it was written, and says that its floats are elsewhere") {
  Folder folder;
  auto directory = CheckpointDirectory::open(folder.path).value();
  CheckpointHeader header;
  header.spec = find_preset("tiny")->spec;
  header.spec.model.vocab_size = 65;
  header.spec.keep_checkpoints = 3;
  for (const int64_t step : {10, 20, 30, 40}) {
    header.state.steps_done = step;
    REQUIRE(directory->write(header, pieces_of(step)).ok());
  }
  CHECK(directory->all().size() == 3);
  CHECK(directory->kept_pieces() ==
        std::vector<std::pair<uint64_t, int64_t>>{{7, 40}, {7, 30}, {7, 20}});
  const auto newest = directory->newest(Log());
  REQUIRE(newest);
  REQUIRE(newest->pieces);
  CHECK(newest->pieces->to_json() == pieces_of(40).to_json());
  CHECK(newest->weights.empty());
  const Error error = needs_its_nodes(*newest->pieces, newest->path);
  CHECK(error.what == "lies in pieces on the nodes of its cluster (one, two)");
  CHECK(CheckpointDirectory::newest_state(folder.path)->steps_done == 40);
}

TEST_CASE("a manifest with pieces that do not join is refused") {
  for (const auto& [begin, end] : {std::pair(11, 25), std::pair(9, 25), std::pair(10, 10)}) {
    PieceSet set = pieces_of(20);
    set.pieces[1].begin = static_cast<uint64_t>(begin);
    set.pieces[1].end = static_cast<uint64_t>(end);
    const auto read = PieceSet::from_json(set.to_json(), "the manifest");
    REQUIRE_FALSE(read.ok());
    CHECK(read.error().what == "has pieces that do not join at element 10");
  }
  PieceSet alone = pieces_of(20);
  alone.pieces[0].holders.clear();
  CHECK_FALSE(PieceSet::from_json(alone.to_json(), "the manifest").ok());
}
