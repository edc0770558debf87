#include "cpu/isa.h"

#include <array>
#include <cstdlib>
#include <string>

namespace fastserve {
namespace {

constexpr std::array kIsas = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni,
                              Isa::kAvx512Bf16};

std::string all_names() {
  std::string names;
  for (Isa isa : kIsas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512-vnni";
    case Isa::kAvx512Bf16:
      return "avx512-bf16";
  }
  return "unknown";
}

Result<Isa> parse_isa(std::string_view name) {
  for (Isa isa : kIsas)
    if (name == isa_name(isa)) return isa;
  return Error{ErrorCode::kInvalidArgument, "unknown instruction set \"" + std::string(name) + "\"",
               "", "one of " + all_names()};
}

Isa best_isa() {
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512Vnni;
#else
  return Isa::kPortable;
#endif
}

Result<Isa> choose_isa() {
  const char* wanted = std::getenv("FASTSERVE_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  auto isa = parse_isa(wanted);
  if (!isa.ok()) {
    Error error = std::move(isa).error();
    error.where = "FASTSERVE_ISA";
    return error;
  }
  if (*isa > best_isa())
    return Error{ErrorCode::kUnsupported,
                 "this processor cannot run " + std::string(isa_name(*isa)), "FASTSERVE_ISA",
                 "its best is " + std::string(isa_name(best_isa()))};
  return isa;
}

}  // namespace fastserve
