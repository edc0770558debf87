// Spaces and word characters, as Unicode defines them.
#pragma once

#include <cstddef>
#include <string_view>

namespace fastserve {

/// Unicode's White_Space.
bool is_space(char32_t character);
/// Alphabetic, a mark, a decimal digit, connecting punctuation or a join control (UTS 18, \w).
bool is_word(char32_t character);

/// Bytes of spaces at the start and at the end of well-formed UTF-8.
size_t leading_spaces(std::string_view text);
size_t trailing_spaces(std::string_view text);

/// The first and the last character of a text that is not empty.
char32_t first_character(std::string_view text);
char32_t last_character(std::string_view text);

}  // namespace fastserve
