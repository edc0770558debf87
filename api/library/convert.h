// Between the public header's types and the rooms' own.
#pragma once

#include <utility>

#include "api/answer.h"
#include "base/result.h"
#include "fastserve/fastserve.h"

namespace fastserve {

[[noreturn]] void raise(const Error& error);

template <class T>
T value_or_raise(Result<T> result) {
  if (!result.ok()) raise(result.error());
  return std::move(result).value();
}

/// Everything but the prompt.
GenerateRequest to_request(const GenerateOptions& options);

Generation to_generation(Answer answer, bool with_logprobs);

}  // namespace fastserve
