#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "base/endpoint.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/spelling.h"

using namespace fastserve;

TEST_CASE("every half value survives the way to float and back") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) continue;
    CHECK(to_float16(value).bits == bits);
  }
  CHECK(to_float16(65519.0f).bits == 0x7bff);
  CHECK(to_float16(65520.0f).bits == 0x7c00);
  CHECK(to_float16(0x1.0p-25f).bits == 0);           // tie to even
  CHECK(to_float16(0x1.8p-25f).bits == 1);
  CHECK(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(to_bfloat16(1.00390625f).bits == 0x3f80);    // tie to even
}

TEST_CASE("JSON keeps key order and integers, and says where it is broken") {
  const auto json = Json::parse(R"({"b": [1, 2.5, null], "a": {"x": "\u00e9"}})", "t");
  REQUIRE(json.ok());
  CHECK(json->dump() == R"({"b": [1, 2.5, null], "a": {"x": "é"}})");
  const auto twice = Json::parse(R"({"a": 1, "a": 2})", "file.json");
  REQUIRE(!twice.ok());
  CHECK(twice.error().message().find("\"a\" occurs twice") != std::string::npos);
  CHECK(twice.error().where == "file.json");
  CHECK(!Json::parse("{\"a\": ", "t").ok());
  CHECK(!Json::parse(std::string(1000, '['), "t").ok());
}

TEST_CASE("a file is replaced whole, and a second process cannot take a lock") {
  const Path folder = std::filesystem::temp_directory_path() / ("fs_base_" + std::to_string(getpid()));
  REQUIRE(make_directories(folder).ok());
  REQUIRE(write_file_atomically(folder / "a", "one").ok());
  REQUIRE(write_file_atomically(folder / "a", "two").ok());
  CHECK(*read_file(folder / "a") == "two");
  CHECK(read_file(folder / "a", 2).error().code == ErrorCode::kResourceExhausted);
  CHECK(read_file(folder / "b").error().code == ErrorCode::kNotFound);
  auto lock = FileLock::acquire(folder / "lock");
  REQUIRE(lock.ok());
  CHECK(FileLock::acquire(folder / "lock").error().code == ErrorCode::kUnavailable);
  std::filesystem::remove_all(folder);
}

TEST_CASE("random numbers are the same everywhere") {
  Rng rng(7);
  CHECK(rng.next() == Rng(7).next());
  double sum = 0, squares = 0;
  for (int i = 0; i < 20000; i++) {
    const double x = rng.normal();
    sum += x, squares += x * x;
  }
  CHECK(std::abs(sum / 20000) < 0.03);
  CHECK(std::abs(squares / 20000 - 1) < 0.03);
  Hasher128 pieces;
  const std::string text = "hello world";
  pieces.update(std::as_bytes(std::span(text).first(5)));
  pieces.update(std::as_bytes(std::span(text).subspan(5)));
  CHECK(pieces.digest() == hash128(std::as_bytes(std::span(text))));
}

#if defined(__x86_64__)
namespace {

/// All that the first sixteen registers hold beyond what narrow instructions see, or-ed together.
__attribute__((target("avx2"), noinline)) uint64_t wide_registers() {
  uint64_t bits[4] = {};
  asm volatile(
      "vorps %%ymm1, %%ymm0, %%ymm0\n vorps %%ymm2, %%ymm0, %%ymm0\n vorps %%ymm3, %%ymm0, %%ymm0\n"
      "vorps %%ymm4, %%ymm0, %%ymm0\n vorps %%ymm5, %%ymm0, %%ymm0\n vorps %%ymm6, %%ymm0, %%ymm0\n"
      "vorps %%ymm7, %%ymm0, %%ymm0\n vorps %%ymm8, %%ymm0, %%ymm0\n vorps %%ymm9, %%ymm0, %%ymm0\n"
      "vorps %%ymm10, %%ymm0, %%ymm0\n vorps %%ymm11, %%ymm0, %%ymm0\n vorps %%ymm12, %%ymm0, %%ymm0\n"
      "vorps %%ymm13, %%ymm0, %%ymm0\n vorps %%ymm14, %%ymm0, %%ymm0\n vorps %%ymm15, %%ymm0, %%ymm0\n"
      "vmovups %%ymm0, %0"
      : "=m"(bits)
      :
      : "xmm0");
  return bits[2] | bits[3];
}

}  // namespace

TEST_CASE("a hash leaves no wide register in use, which would slow the thread down") {
  if (!__builtin_cpu_supports("avx2")) return;
  const std::string text(5000, 'x');
  const auto bytes = std::as_bytes(std::span(text));
  static_cast<void>(hash64(text));
  CHECK(wide_registers() == 0);
  static_cast<void>(hash64(bytes));
  CHECK(wide_registers() == 0);
  static_cast<void>(hash128(bytes));
  CHECK(wide_registers() == 0);
  Hasher128 pieces;
  pieces.update(bytes);
  CHECK(wide_registers() == 0);
  static_cast<void>(pieces.digest());
  CHECK(wide_registers() == 0);
}
#endif

TEST_CASE("a mistyped name finds the names it may have meant, the nearest first") {
  const std::vector<std::string> names = {"train", "compress", "chat", "generate", "models"};
  CHECK(near_names("trian", names) == std::vector<std::string>{"train"});
  CHECK(near_names("Model", names) == std::vector<std::string>{"models"});
  CHECK(near_names("gen", names) == std::vector<std::string>{"generate"});
  CHECK(near_names("quantise", names).empty());
  CHECK(near_names("bat", {"bats", "bat", "cat"}) == std::vector<std::string>{"bat", "bats", "cat"});
}

TEST_CASE("a place is read as people write it: names, IPv4, and IPv6 in brackets") {
  const auto name = parse_endpoint("node-3.site:7600");
  REQUIRE(name.ok());
  CHECK(name->host == "node-3.site");
  CHECK(name->port == 7600);
  const auto six = parse_endpoint("[fd00::1]:65535");
  REQUIRE(six.ok());
  CHECK(six->host == "fd00::1");
  CHECK(six->port == 65535);
  for (const char* wrong : {"", "host", "host:", ":80", "host:0", "host:65536", "host:8o", "host:-1",
                            "host: 80", "[]:80", "[:80", "]:80", "[[::1]]:80", "::1:80", "host:99999999999999999999"}) {
    INFO(wrong);
    const auto place = parse_endpoint(wrong);
    REQUIRE(!place.ok());
    CHECK(place.error().message().find("is not HOST:PORT") != std::string::npos);
  }
}
