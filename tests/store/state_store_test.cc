// The state that a coordinator must find again.
#include "store/state_store.h"

#include <fcntl.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>

#include "fixture.h"

namespace fastserve {
namespace {

using namespace fastserve::testing;

constexpr const char* kVictimFolder = "FASTSERVE_TEST_VICTIM_STATE";

TEST_CASE("records are there again when the state is opened again") {
  const Folder folder;
  {
    auto state = open_state_store(folder.path() / "state").value();
    CHECK(state->write({{"a/1", "one"}, {"a/2", "two"}, {"b", std::string("\0x", 2)}}).ok());
    CHECK(state->write({{"a/1", std::nullopt}, {"a/3", "three"}, {"absent", std::nullopt}}).ok());
  }
  auto state = open_state_store(folder.path() / "state").value();
  CHECK(state->get("a/1").value() == std::nullopt);
  CHECK(state->get("b").value() == std::string("\0x", 2));
  const auto listed = state->list("a/").value();
  REQUIRE(listed.size() == 2);
  CHECK(listed[0] == std::pair<std::string, std::string>("a/2", "two"));
  CHECK(listed[1].second == "three");
}

TEST_CASE("a state that another process has is refused, and the process is named") {
  const Folder folder;
  const auto state = open_state_store(folder.path()).value();
  const auto second = open_state_store(folder.path());
  REQUIRE_FALSE(second.ok());
  CHECK(second.error().code == ErrorCode::kUnavailable);
  CHECK(second.error().message().find(std::to_string(::getpid())) != std::string::npos);
  CHECK(second.error().message().find("store") == std::string::npos);
}

TEST_CASE("beside the process that has a state another can look at it, and change nothing") {
  const Folder folder;
  const auto state = open_state_store(folder.path()).value();
  REQUIRE(state->write({{"a", "one"}}).ok());
  const auto glance = glance_at_state_store(folder.path());
  REQUIRE_MESSAGE(glance.ok(), glance.error().message());
  CHECK((*glance)->get("a").value() == "one");
  CHECK((*glance)->write({{"a", "two"}}).error().code == ErrorCode::kUnavailable);
  CHECK(state->write({{"a", "three"}}).ok());
  CHECK(glance_at_state_store(folder.path()).value()->get("a").value() == "three");
}

TEST_CASE("a state whose records are gone or damaged is refused, and not begun anew") {
  const Folder folder;
  {
    auto state = open_state_store(folder.path()).value();
    for (int i = 0; i < 20; i++)
      REQUIRE(state->write({{"key/" + std::to_string(i), std::string(100, 'x')}}).ok());
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder.path() / "catalogue")) {
    if (entry.path().extension() != ".log") continue;
    std::fstream log(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    log.seekp(600);
    log.put('!');
  }
  auto refused = open_state_store(folder.path());
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kCorrupt);
  CHECK(refused.error().message().find("backup") != std::string::npos);
  std::filesystem::remove_all(folder.path() / "catalogue");
  refused = open_state_store(folder.path());
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kCorrupt);
  CHECK(refused.error().message().find("gone") != std::string::npos);
}

TEST_CASE("victim: writes pairs until it is killed" * doctest::skip()) {
  const char* folder = std::getenv(kVictimFolder);
  if (folder == nullptr) return;
  auto state = open_state_store(folder).value();
  const std::string before = state->get("left").value().value_or("0");
  for (uint64_t i = std::stoull(before) + 1;; i++) {
    REQUIRE(state->write({{"left", std::to_string(i)}, {"right", std::to_string(i)}}).ok());
    const std::string line = std::to_string(i) + "\n";
    REQUIRE(::write(STDOUT_FILENO, line.data(), line.size()) > 0);
  }
}

TEST_CASE("whenever a writer is killed, what it was told is there, and groups are whole") {
  const Folder folder;
  for (int round = 0; round < 25; round++) {
    CAPTURE(round);
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const pid_t pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::setenv(kVictimFolder, folder.path().c_str(), 1);
      ::execl("/proc/self/exe", "store_test", "--no-skip", "--minimal",
              "--test-case=victim: writes pairs until it is killed", nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    std::string told;
    char buffer[256];
    while (std::count(told.begin(), told.end(), '\n') < 1 + round % 5) {
      const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
      REQUIRE(n > 0);
      told.append(buffer, static_cast<size_t>(n));
    }
    ::kill(pid, SIGKILL);
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;)
      told.append(buffer, static_cast<size_t>(n));
    ::close(ends[0]);
    ::waitpid(pid, nullptr, 0);
    told.resize(told.rfind('\n'));
    const uint64_t acknowledged = std::stoull(told.substr(told.rfind('\n') + 1));
    auto state = open_state_store(folder.path());
    REQUIRE_MESSAGE(state.ok(), state.error().message());
    const std::string left = (*state)->get("left").value().value();
    CHECK(left == (*state)->get("right").value().value());
    CHECK(std::stoull(left) >= acknowledged);
    CHECK(std::stoull(left) <= acknowledged + 1);
  }
}

}  // namespace
}  // namespace fastserve
