// The public header, as a host program uses it: linked with the library alone.
#include <doctest/doctest.h>
#include <fastserve/fastserve.h>
#include <stdlib.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>
#include <utility>

#include "tests/thread_count.h"

using fastserve::FastServe;
using fastserve::FastServeError;
namespace fs = std::filesystem;

namespace {

/// A folder of its own, with a little text to train on; nothing is left of it.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "fastserve embedding XXXXXX").string();
    path_ = mkdtemp(name.data());
    fs::create_directories(path_ / "text");
    std::ofstream text(path_ / "text/a.txt");
    for (int i = 0; i < 400; i++)
      text << "The quick brown fox number " << i << " jumps over the lazy dog.\n";
  }
  ~Folder() { fs::remove_all(path_); }
  std::string text() const { return (path_ / "text").string(); }
  std::string store(const char* name = "store") const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

fastserve::TrainOptions short_training(const Folder& folder) {
  return {.data_path = folder.text(), .batch_size = 2, .steps = 4, .block = 16};
}

size_t open_files() {
  const auto files = fs::directory_iterator("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(files), end(files)));
}

int code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const FastServeError& error) {
    CHECK(std::string(error.what()).size() > 10);
    return error.code();
  }
  return 0;
}

constexpr int kInvalidArgument = 1, kNotFound = 2, kResourceExhausted = 6, kUnavailable = 7,
              kCancelled = 9;

}  // namespace

TEST_CASE("the first program of the manual is the whole way from text to a served model") {
  const Folder folder;
  FastServe fs{"my_model", {.store_path = folder.store(), .lanes = 1}};
  const auto report =
      fs.train({.data_path = folder.text(), .batch_size = 32, .epochs = 0.1, .block = 16});
  CHECK(report.model == "my_model@1");
  CHECK(fs.compress({.weights = "int8"}).model == "my_model@2");
  fs.deploy({.port = 0});
  CHECK(fs.port() > 0);
  const auto answer = fs.generate("The", {.max_tokens = 8, .ignore_eos = true});
  CHECK(answer.tokens.size() == 8);
  CHECK(answer.finish_reason == "length");
}

TEST_CASE("nothing of an object is left behind: no thread, no open file, no signal handler") {
  const Folder folder;
  { FastServe warm{"m", {.store_path = folder.store("warm"), .lanes = 1}}; }
  struct sigaction mine {};
  mine.sa_handler = [](int) {};
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGUSR1}) sigaction(signal, &mine, nullptr);
  const auto threads = fastserve::thread_ids();
  const size_t files = open_files();
  {
    FastServe first{"a", {.store_path = folder.store("a"), .lanes = 2}};
    FastServe second{"b", {.store_path = folder.store("b"), .lanes = 1}};
    for (FastServe* system : {&first, &second}) {
      system->train(short_training(folder));
      system->deploy({.port = 0});
    }
    CHECK(first.port() != second.port());
    CHECK(first.generate("The", {.max_tokens = 8, .temperature = 0}).tokens ==
          second.generate("The", {.max_tokens = 8, .temperature = 0}).tokens);
    for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGUSR1}) {
      struct sigaction now {};
      sigaction(signal, nullptr, &now);
      const bool untouched = now.sa_handler == mine.sa_handler;
      CHECK_MESSAGE(untouched, "signal " << signal);
    }
  }
  CHECK(fastserve::threads_left_since(threads) == 0);
  CHECK(open_files() == files);
  for (const auto& entry : fs::recursive_directory_iterator(folder.store("a")))
    CHECK_MESSAGE(entry.path().extension() != ".tmp", entry.path().string());
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGUSR1}) std::signal(signal, SIG_DFL);
}

TEST_CASE("what fails is a FastServeError with a code, and the object goes on") {
  const Folder folder;
  CHECK(code_of([&] { FastServe("not a name!", {.store_path = folder.store()}); }) ==
        kInvalidArgument);
  CHECK(code_of([&] { FastServe("m", {.store_path = folder.store(), .lanes = -1}); }) ==
        kInvalidArgument);
  FastServe fs{"m", {.store_path = folder.store(), .lanes = 1}};
  CHECK(code_of([&] { fs.deploy({.port = 0}); }) == kNotFound);
  CHECK(code_of([&] { fs.generate("x"); }) == kNotFound);
  CHECK(code_of([&] { fs.train({.data_path = folder.store("nowhere")}); }) == kNotFound);
  CHECK(code_of([&] { fs.train({.data_path = folder.text(), .batch_size = -1}); }) ==
        kInvalidArgument);
  CHECK(code_of([&] { fs.train({.data_path = folder.text(), .epochs = -1}); }) == kInvalidArgument);
  CHECK(code_of([&] { fs.train({.data_path = folder.text(), .precision = "fp8"}); }) ==
        kInvalidArgument);
  fs.train(short_training(folder));
  CHECK(code_of([&] { fs.compress({.weights = "int3"}); }) == kInvalidArgument);

  fs.deploy({.port = 0});
  const int port = fs.port();
  FastServe other{"m", {.store_path = folder.store(), .lanes = 1}};
  CHECK(code_of([&] { other.deploy({.port = port}); }) == kUnavailable);
  CHECK(other.port() == 0);
  CHECK(code_of([&] { fs.generate("The", {.temperature = -1}); }) == kInvalidArgument);
  // An option that cannot be leaves the running deployment alone; another deploy replaces it.
  CHECK(code_of([&] { fs.deploy({.port = 0, .weights = "int3"}); }) == kInvalidArgument);
  CHECK(fs.port() == port);
  CHECK(code_of([&] { fs.deploy({.port = port, .model_memory = 1000}); }) == kResourceExhausted);
  fs.deploy({.port = port});
  CHECK(fs.port() == port);
  CHECK(!fs.generate("The", {.max_tokens = 4}).tokens.empty());
}

TEST_CASE("what a host's callback throws comes out of the call that it ended") {
  const Folder folder;
  FastServe fs{"m", {.store_path = folder.store(), .lanes = 1, .on_log = [](const std::string&) {
                       throw std::runtime_error("a log that cannot be written");
                     }}};
  auto options = short_training(folder);
  options.steps = 1000000;
  options.on_progress = [](const fastserve::TrainStatus&) { throw 42; };
  CHECK_THROWS_AS(fs.train(options), int);
  fs.train(short_training(folder));
  CHECK_THROWS_AS(fs.compress({.on_progress = [](const std::string&, double) { throw 42; }}), int);
  CHECK_THROWS_AS(fs.generate("The", {.on_text = [](const std::string&) -> bool { throw 42; }}),
                  int);
  CHECK(!fs.generate("The", {.max_tokens = 4}).tokens.empty());
}

TEST_CASE("training stops at the host's word and goes on from there") {
  const Folder folder;
  FastServe fs{"m", {.store_path = folder.store(), .lanes = 1}};
  std::atomic<bool> stop{true};
  auto options = short_training(folder);
  options.stop = &stop;
  CHECK(code_of([&] { fs.train(options); }) == kCancelled);
}

TEST_CASE("several models are deployed together, and take turns where they are to") {
  const Folder folder;
  const fastserve::SystemOptions options = {.store_path = folder.store(), .lanes = 1};
  FastServe fs{"first", options};
  fs.train(short_training(folder));
  FastServe second{"second", options};
  auto longer = short_training(folder);
  longer.steps = 60;
  longer.learning_rate = 1e-2;
  second.train(longer);
  const auto greedy = [](const char* model) {
    return fastserve::GenerateOptions{
        .max_tokens = 12, .temperature = 0, .ignore_eos = true, .model = model};
  };
  const auto one = fs.generate("The", greedy("")).tokens;
  const auto other = second.generate("The", greedy("")).tokens;
  CHECK(one != other);
  CHECK(code_of([&] { fs.generate("The", greedy("second")); }) == kNotFound);
  for (const bool turns : {false, true}) {
    fs.deploy({.port = 0, .kv = "f32", .others = {"second@1"}, .turns = turns});
    for (int round = 0; round < 2; round++) {
      CHECK(fs.generate("The", greedy("")).tokens == one);
      CHECK(fs.generate("The", greedy("second")).tokens == other);
    }
  }
  CHECK(code_of([&] { fs.deploy({.port = 0, .kv = "f12"}); }) == kInvalidArgument);
  CHECK(code_of([&] { fs.deploy({.port = 0, .others = {"third"}}); }) == kNotFound);
  CHECK(code_of([&] { fs.deploy({.port = 0, .host_memory = 1}); }) == kInvalidArgument);
}

TEST_CASE("stop() from another thread ends an answer as cancelled") {
  const Folder folder;
  FastServe fs{"m", {.store_path = folder.store(), .lanes = 1}};
  fs.train(short_training(folder));
  fs.deploy({.port = 0});
  std::promise<void> begun;
  bool first = true;
  auto answer = std::async(std::launch::async, [&] {
    return fs.generate(
        "The", {.max_tokens = 1000000, .ignore_eos = true, .on_text = [&](const std::string&) {
                  if (std::exchange(first, false)) begun.set_value();
                  return true;
                }});
  });
  begun.get_future().wait();
  fs.stop();
  const std::string reason = answer.get().finish_reason;
  CHECK(
      (reason == "cancelled" || reason == "context"));  // a tiny context may have been filled first
  CHECK(fs.port() == 0);
}

TEST_CASE("an answer comes from the version that was published last") {
  const Folder folder;
  FastServe fs{"m", {.store_path = folder.store(), .lanes = 1}};
  fs.train(short_training(folder));
  const fastserve::GenerateOptions greedy = {
      .max_tokens = 12, .temperature = 0, .ignore_eos = true};
  const auto before = fs.generate("The", greedy).tokens;
  auto options = short_training(folder);
  options.steps = 60;
  options.learning_rate = 1e-2;
  fs.train(options);
  FastServe fresh{"m", {.store_path = folder.store(), .lanes = 1}};
  const auto after = fs.generate("The", greedy).tokens;
  CHECK(after == fresh.generate("The", greedy).tokens);
  CHECK(after != before);
}
