// What a power cut, a kill and a full disk leave behind.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <fstream>

#include "fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

constexpr const char* kVictimFolder = "FASTSERVE_TEST_VICTIM_FOLDER";

/// Runs one hidden test case of this program in a process of its own; returns its pid and the
/// reading end of its standard output. (RocksDB's threads do not survive a plain fork.)
std::pair<pid_t, int> start_victim(const Path& folder, const char* test_case) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const std::string filter = std::string("--test-case=") + test_case;
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::setenv(kVictimFolder, folder.c_str(), 1);
    ::execl("/proc/self/exe", "store_test", "--no-skip", "--minimal", filter.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(ends[1]);
  return {pid, ends[0]};
}

TEST_CASE("victim: publishes until it is killed" * doctest::skip()) {
  const char* folder = std::getenv(kVictimFolder);
  if (folder == nullptr) return;
  auto store = open_store(folder);
  const auto tell = [](char what) { REQUIRE(::write(STDOUT_FILENO, &what, 1) == 1); };
  Store::PublishOptions options;
  options.progress = [&](double) { tell('.'); };
  for (uint64_t i = 0;; i++) {
    REQUIRE(store->publish("a", random_model({1, 2 * i, 2 * i + 1}, 20'000), {}, options).ok());
    tell('+');
    if (i % 3 == 2) {
      REQUIRE(store->remove({"a", store->list()->front().ref.version}).ok());
      tell('-');
    }
  }
}

TEST_CASE("whenever a publisher is killed, each publish is whole or absent") {
  const Folder folder;
  Rng rng(7);
  uint64_t acknowledged = 0;
  for (int round = 0; round < 25; round++) {
    CAPTURE(round);
    const auto [pid, output] = start_victim(folder.path(), "victim: publishes until it is killed");
    // Killed a seeded number of news and a seeded moment later, wherever it is by then.
    uint64_t published = 0, news = 1 + rng.below(30);
    char what = 0;
    while (news > 0 && ::read(output, &what, 1) == 1) {
      if (what == '+') published++;
      news--;
    }
    for (volatile uint64_t spin = rng.below(4'000'000); spin > 0;) spin = spin - 1;
    REQUIRE(::kill(pid, SIGKILL) == 0);
    while (::read(output, &what, 1) == 1)
      if (what == '+') published++;
    ::close(output);
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    REQUIRE(WIFSIGNALED(status));

    auto store = open_store(folder.path());
    const auto list = store->list();
    REQUIRE(list.ok());
    REQUIRE((published == 0 || !list->empty()));
    acknowledged += published;
    if (!list->empty()) CHECK(list->back().ref.version >= acknowledged);
    for (const ModelInfo& info : *list) {
      const Status whole = store->verify(info.ref, {});
      CHECK_MESSAGE(whole.ok(), (whole.ok() ? "" : whole.error().message()));
    }
    CHECK(files_in(folder.path() / "tmp") == 0);
    if (!list->empty()) acknowledged = list->back().ref.version;
  }
  auto store = open_store(folder.path());
  if (store->list()->empty()) return;
  REQUIRE(store->remove({"a"}).ok());
  CHECK(files_in(folder.path() / "extents") == 0);  // nothing was leaked on the way
}

TEST_CASE("rubbish that a crash left is cleaned, and models stay") {
  const Folder folder;
  publish(*open_store(folder.path()), "a", random_model({1}));
  std::ofstream(folder.path() / "tmp" / "extent-0") << "half";
  std::ofstream(folder.path() / "extents" / std::string(32, 'a')) << "orphan";
  auto store = open_store(folder.path());
  CHECK(files_in(folder.path() / "tmp") == 0);
  CHECK(files_in(folder.path() / "extents") == 1);
  CHECK(store->verify({"a"}, {}).ok());
}

Path write_ahead_log(const Path& root) {
  Path newest;
  for (const auto& entry : std::filesystem::directory_iterator(root / "catalogue"))
    if (entry.path().extension() == ".log" && entry.path() > newest) newest = entry.path();
  REQUIRE_FALSE(newest.empty());
  return newest;
}

TEST_CASE("a log torn inside an acknowledged change is reported, inside another it is forgiven") {
  const Folder folder;
  {
    auto store = open_store(folder.path());
    publish(*store, "a", random_model({1}));
    publish(*store, "a", random_model({2}));
  }
  const Path log = write_ahead_log(folder.path());
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 3);
  const auto torn = Store::open(folder.path());
  REQUIRE_FALSE(torn.ok());
  CHECK(torn.error().code == ErrorCode::kCorrupt);
  CHECK(torn.error().what.find("1 of 2 acknowledged changes") != std::string::npos);

  std::ofstream(folder.path() / "acknowledged") << "1";  // as after a kill inside the second commit
  auto store = open_store(folder.path());
  REQUIRE(store->list()->size() == 1);
  CHECK(store->verify({"a", 1}, {}).ok());
  CHECK(publish(*store, "a", random_model({3})).version == 2);
}

TEST_CASE("a damaged log is refused") {
  const Folder folder;
  {
    auto store = open_store(folder.path());
    publish(*store, "a", random_model({1}));
    publish(*store, "a", random_model({2}));
  }
  const Path log = write_ahead_log(folder.path());
  {
    std::fstream file(log, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(200);
    file.put('X');
  }
  const auto damaged = Store::open(folder.path());
  REQUIRE_FALSE(damaged.ok());
  CHECK(damaged.error().code == ErrorCode::kCorrupt);
}

TEST_CASE("a catalogue that is gone is reported, and no weights are deleted for it") {
  for (const char* lost : {"catalogue/CURRENT", "catalogue"}) {
    CAPTURE(lost);
    const Folder folder, kept;
    publish(*open_store(folder.path()), "a", random_model({1}));
    std::filesystem::rename(folder.path() / lost, kept.path() / "lost");
    std::filesystem::remove(folder.path() / "acknowledged");
    for (int attempt = 0; attempt < 2; attempt++) {
      const auto opened = Store::open(folder.path());
      REQUIRE_FALSE(opened.ok());
      CHECK(opened.error().code == ErrorCode::kCorrupt);
      CHECK(opened.error().hint.find("restore") == 0);
      CHECK(files_in(folder.path() / "extents") == 1);
    }
    std::filesystem::rename(kept.path() / "lost", folder.path() / lost);
    CHECK(open_store(folder.path())->verify({"a"}, {}).ok());
  }
}

/// Fills the disk below `folder` when its second tensor is asked for.
class FillsDisk final : public TensorSource {
 public:
  FillsDisk(Path folder, std::shared_ptr<const TensorSource> inner)
      : folder_(std::move(folder)), inner_(std::move(inner)) {}
  std::vector<std::string> names() const override { return inner_->names(); }
  bool contains(std::string_view name) const override { return inner_->contains(name); }
  Result<TensorView> tensor(std::string_view name) const override { return inner_->tensor(name); }
  std::string where() const override { return inner_->where(); }
  void fill() const {
    const int fd = ::open((folder_ / "filler").c_str(), O_WRONLY | O_CREAT, 0644);
    const std::vector<char> zeros(1 << 20);
    while (::write(fd, zeros.data(), zeros.size()) > 0) {
    }
    ::close(fd);
  }

 private:
  Path folder_;
  std::shared_ptr<const TensorSource> inner_;
};

/// Gives this process (a victim) a file system of `size` of its own at `where`; false when the
/// system allows neither root nor user namespaces to mount one.
bool mount_small_disk(const Path& where, const char* size) {
  if (::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  return ::mount("tmpfs", where.c_str(), "tmpfs", 0, size) == 0;
}

constexpr int kNoSmallDisk = 77;

TEST_CASE("victim: fills its disk" * doctest::skip()) {
  const char* folder = std::getenv(kVictimFolder);
  if (folder == nullptr) return;
  const Path disk(folder);
  if (!mount_small_disk(disk, "size=128m")) std::_Exit(kNoSmallDisk);
  auto store = open_store(disk / "store");
  publish(*store, "a", random_model({1}));

  // More than the disk has: refused before a byte is written.
  const auto refused = store->publish("b", random_model({2, 3, 4}, 10 << 20), {});
  CHECK(refused.error().code == ErrorCode::kResourceExhausted);
  CHECK(refused.error().what.find("are needed") != std::string::npos);

  // The disk fills up in the middle.
  ModelBundle bundle = random_model({5, 6}, 2 << 20);
  const auto filler = std::make_shared<FillsDisk>(disk, bundle.tensors);
  bundle.tensors = filler;
  Store::PublishOptions options;
  bool filled = false;
  options.progress = [&](double) {
    if (!filled) filler->fill();
    filled = true;
  };
  const auto result = store->publish("b", bundle, {}, options);
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == ErrorCode::kResourceExhausted);
  CHECK(files_in(disk / "store" / "tmp") == 0);
  CHECK(files_in(disk / "store" / "extents") == 1);
  CHECK(store->verify({"a"}, {}).ok());
  CHECK(store->list()->size() == 1);

  // Full to the last page it can still be opened, and a model removed to make room.
  filler->fill();
  store.reset();
  store = open_store(disk / "store");
  CHECK(store->verify({"a"}, {}).ok());
  CHECK(store->remove({"a"}).ok());

  std::filesystem::remove(disk / "filler");
  CHECK(store->publish("b", bundle, {}).ok());
  CHECK(store->verify({"b"}, {}).ok());
  store.reset();
  CHECK(open_store(disk / "store")->verify({"b"}, {}).ok());
}

TEST_CASE("a full disk refuses a publish, keeps what was there, and goes on when there is room") {
  const Folder folder;
  const auto [pid, output] = start_victim(folder.path(), "victim: fills its disk");
  std::string said;
  char buffer[512];
  for (ssize_t n; (n = ::read(output, buffer, sizeof buffer)) > 0;)
    said.append(buffer, static_cast<size_t>(n));
  ::close(output);
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoSmallDisk) {
    MESSAGE("not run: this system lets the test mount no small disk");
    return;
  }
  CHECK_MESSAGE(status == 0, said);
}

}  // namespace
}  // namespace fastserve
