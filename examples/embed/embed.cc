// Trains, compresses, serves and asks a model inside this program, twice side by side.
//   embed DATA_DIR WORK_DIR
#include <fastserve/fastserve.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace {

int thread_count() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("Threads:")) return std::stoi(line.substr(8));
  return -1;
}

void train_and_serve(const std::string& data, const std::string& work) {
  fastserve::FastServe first{"first", {.store_path = work + "/a", .lanes = 1}};
  fastserve::FastServe second{"second", {.store_path = work + "/b", .lanes = 1}};
  for (fastserve::FastServe* fs : {&first, &second}) {
    const auto report = fs->train({.data_path = data, .batch_size = 8, .steps = 30, .block = 32});
    std::printf("%s: loss %.3f after %lld steps\n", report.model.c_str(), report.validation_loss,
                static_cast<long long>(report.steps));
    fs->compress({.weights = "int8"});
    fs->deploy({.port = 0});
    std::printf("serving on port %d\n", fs->port());
  }
  const std::string a = first.generate("The ", {.max_tokens = 20, .temperature = 0}).text;
  const std::string b = second.generate("The ", {.max_tokens = 20, .temperature = 0}).text;
  std::printf("The %s\n", a.c_str());
  if (a != b) throw std::runtime_error("two systems with the same seed and data answered differently");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: embed DATA_DIR WORK_DIR\n");
    return 2;
  }
  try {
    const int before = thread_count();
    train_and_serve(argv[1], argv[2]);
    // A thread that has ended is still listed while the kernel takes it down: look more than once.
    for (int look = 0; look < 200 && thread_count() != before; look++)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (thread_count() != before) {
      std::fprintf(stderr, "threads were left behind: %d, then %d\n", before, thread_count());
      return 1;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[2]))
      if (entry.path().extension() == ".tmp") {
        std::fprintf(stderr, "a temporary file was left behind: %s\n", entry.path().c_str());
        return 1;
      }
  } catch (const fastserve::FastServeError& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return 1;
  }
  return 0;
}
