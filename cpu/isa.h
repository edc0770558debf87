// Which instruction set the CPU device uses, chosen once at run time.
#pragma once

#include <string_view>

#include "base/result.h"

namespace fastserve {

/// In ascending order; each includes the ones before it.
///   kPortable    what the compiler's baseline gives
///   kAvx2        AVX2 + FMA + F16C
///   kAvx512      F, BW, VL, DQ
///   kAvx512Vnni  + VNNI: int8 dot products
///   kAvx512Bf16  + BF16 dot products
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16 };

const char* isa_name(Isa isa);  ///< "portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16"
Result<Isa> parse_isa(std::string_view name);

/// The best this processor and operating system can run.
Isa best_isa();

/// best_isa(), or what the environment variable FASTSERVE_ISA names: kUnsupported when the processor
/// lacks it, kInvalidArgument for an unknown name.
Result<Isa> choose_isa();

}  // namespace fastserve
