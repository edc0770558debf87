// Every model of the reference set, on every path this machine can run.
#include "model/transformer/parity.h"

#include <doctest/doctest.h>

#include "cpu/cpu_device.h"
#include "tests/transformer/reference_models.h"

namespace fastserve {
namespace {

void require_parity(Device& device) {
  const std::vector<Path> models = reference_models();
  REQUIRE_FALSE(models.empty());
  for (const Path& directory : models) {
    const auto parity = check_model(directory, device, {.bf16 = true});
    REQUIRE_MESSAGE(parity.ok(), parity.error().message());
    for (const ParityCheck& check : parity->checks)
      CHECK_MESSAGE(check.passed, device.description(), ", ", directory.filename().string(), ": ",
                    check.quantity, " is ", check.error, ", not within ", check.tolerance, " (",
                    check.note, ")");
  }
}

}  // namespace

TEST_CASE("the reference loops compute what Hugging Face computes") {
  require_parity(*make_reference_device());
}

TEST_CASE("every instruction set of this machine computes what Hugging Face computes") {
  for (const Isa isa :
       {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16}) {
    if (isa > best_isa()) continue;
    auto device = make_cpu_device({.lanes = 2, .isa = isa});
    REQUIRE(device.ok());
    require_parity(**device);
  }
}

}  // namespace fastserve
