// An Error as a message between processes. For actors/*.cc only.
#pragma once

#include <caf/all.hpp>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace fastserve::wire_messages {

/// An Error; code 0xff: none.
struct Fault {
  uint8_t code = 0xff;
  std::string what, where, hint;
  bool ok() const { return code == 0xff; }
};
inline Fault to_fault(const Error& error) {
  return {static_cast<uint8_t>(error.code), error.what, error.where, error.hint};
}
inline Error to_error(const Fault& fault) {
  return {static_cast<ErrorCode>(fault.code), fault.what, fault.where, fault.hint};
}
inline Status to_status(const Fault& fault) { return fault.ok() ? Status() : to_error(fault); }

template <class I>
typename I::result_type inspect(I& f, Fault& x) {
  return f(caf::meta::type_name("fs_fault"), x.code, x.what, x.where, x.hint);
}

}  // namespace fastserve::wire_messages
