// Bytes that no client of Cap'n Proto sends.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/rng.h"

namespace fastserve::testing {

inline std::string words(std::initializer_list<uint32_t> values) {
  std::string bytes;
  for (const uint32_t value : values)
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  return bytes;
}

/// Messages of other protocols, damaged ones, and 50 of random bytes.
inline std::vector<std::string> rubbish() {
  const uint32_t huge = 0xffffffff;
  std::vector<std::string> messages = {
      "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
      words({0}),                                         // half a header
      words({0, 100}) + "half",                           // half a message
      words({0, huge}),                                   // 32 GiB to come
      words({huge, huge}),                                // four billion segments
      words({0, 600'000}),                                // more than the limit
      words({0, 1, 0, 0}),                                // an empty message
      words({0, 2, 0xfffffffe, huge, 0xfffffffe, huge}),  // pointers into nowhere
  };
  Rng rng(3);
  for (int i = 0; i < 50; i++) {
    std::string bytes(1 + rng.below(3000), '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.next());
    if (i % 2 == 0) bytes.replace(0, 4, 4, '\0');  // one segment, so that it is read further
    messages.push_back(std::move(bytes));
  }
  return messages;
}

}  // namespace fastserve::testing
