// SHA-256, for what an attacker must not be able to run backwards.
#pragma once

#include <string>
#include <string_view>

namespace fastserve {

/// 64 lower-case hex digits.
std::string sha256(std::string_view bytes);

}  // namespace fastserve
