// Errors as values: every call that can fail for an outside reason returns Result<T>.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace fastserve {

/// What kind of thing went wrong. The number is part of the wire protocol and of fsctl's exit code
/// table (docs/exit-codes.md): append, never renumber.
enum class ErrorCode {
  kInvalidArgument = 1,   ///< the caller asked for something that cannot be
  kNotFound = 2,          ///< a name, file, model or version that is not there
  kAlreadyExists = 3,     ///< a name or version that is taken
  kCorrupt = 4,           ///< bytes that contradict their format or checksum
  kUnsupported = 5,       ///< well-formed, but not something this build handles
  kResourceExhausted = 6, ///< no memory, disk, connections or queue slots left
  kUnavailable = 7,       ///< a peer, port or lock that cannot be had now; trying later may help
  kDeadlineExceeded = 8,
  kCancelled = 9,
  kContractBroken = 10,   ///< compress: the result is outside the bounds the user gave
  kIo = 11,               ///< the operating system refused a read or write
  kInternal = 12,         ///< a bug
};

/// "invalid argument", "not found", ...
const char* error_code_name(ErrorCode code);

/// What failed, on what, and what to do next: the three things a user needs.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string what;   ///< what is wrong, a clause without a final dot: "the header ends at byte 8"
  std::string where;  ///< the file, field, model or address it is wrong in; may be empty
  std::string hint;   ///< what to do next; may be empty

  /// "where: what (hint)" on one line.
  std::string message() const;
};

/// A value or an Error. Like std::expected, which C++20 lacks.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { FS_CHECK(ok()); return std::get<0>(state_); }
  const T& value() const& { FS_CHECK(ok()); return std::get<0>(state_); }
  T&& value() && { FS_CHECK(ok()); return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { FS_CHECK(!ok()); return std::get<1>(state_); }
  Error&& error() && { FS_CHECK(!ok()); return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { FS_CHECK(!ok()); return *error_; }
  Error&& error() && { FS_CHECK(!ok()); return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

#define FS_CONCAT_INNER(a, b) a##b
#define FS_CONCAT(a, b) FS_CONCAT_INNER(a, b)

/// Returns the Error of a Result-valued expression from the enclosing function.
#define FS_TRY(expr)                                            \
  do {                                                          \
    if (auto fs_status = (expr); !fs_status.ok())               \
      return std::move(fs_status).error();                      \
  } while (false)

/// FS_ASSIGN(auto x, f()); declares x from f()'s value, or returns f()'s Error.
#define FS_ASSIGN(decl, expr) FS_ASSIGN_INNER(FS_CONCAT(fs_result_, __LINE__), decl, expr)
#define FS_ASSIGN_INNER(tmp, decl, expr)             \
  auto tmp = (expr);                                 \
  if (!tmp.ok()) return std::move(tmp).error();      \
  decl = std::move(tmp).value()

}  // namespace fastserve
