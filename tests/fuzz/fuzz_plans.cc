// A GPU's plan file from a disk that one cannot trust: any bytes, and any body whose checksum
// holds. What is taken reads the same when it is written again.
#include <fmt/format.h>

#include <cstdint>

#include "base/check.h"
#include "base/hash.h"
#include "gpu/plan_cache.h"

using namespace fastserve;

namespace {

void check(const std::string& text) {
  gpu::PlanCache cache({}, "lt-13.1.0", "H200");
  cache.take(text);
  gpu::PlanCache again({}, "lt-13.1.0", "H200");
  again.take(cache.text());
  FS_CHECK(again.size() == cache.size());
  FS_CHECK(again.text() == cache.text());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(text);
  const std::string body = text.substr(std::min<size_t>(size, 17));
  check(fmt::format("{:016x}\n", hash64(body)) + body);
  return 0;
}
