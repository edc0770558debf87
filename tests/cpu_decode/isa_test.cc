#include "cpu/isa.h"

#include <doctest/doctest.h>

#include <cstdlib>

namespace fastserve {
namespace {

TEST_CASE("every instruction set's name parses back to it") {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16}) {
    auto parsed = parse_isa(isa_name(isa));
    REQUIRE(parsed.ok());
    CHECK(*parsed == isa);
  }
}

TEST_CASE("FASTSERVE_ISA picks the path, and an unknown name is refused with the known ones") {
  setenv("FASTSERVE_ISA", "portable", 1);
  CHECK(choose_isa().value() == Isa::kPortable);
  setenv("FASTSERVE_ISA", "sse9", 1);
  auto refused = choose_isa();
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::kInvalidArgument);
  CHECK(refused.error().where == "FASTSERVE_ISA");
  CHECK(refused.error().hint.find("avx512-vnni") != std::string::npos);
  unsetenv("FASTSERVE_ISA");
  CHECK(choose_isa().value() == best_isa());
}

}  // namespace
}  // namespace fastserve
