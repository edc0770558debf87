// From Oniguruma's regular expressions (Ruby syntax, UTF-8) to PCRE2's.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace fastserve {

/// The PCRE2 pattern (UTF, UCP, multi-line, newline LF) that matches what Oniguruma's `pattern`
/// does. kUnsupported names the construct when there is none or none was needed so far.
Result<std::string> translate_regex(std::string_view pattern, const std::string& where);

}  // namespace fastserve
