// Between the messages of schema/fastserve.capnp and the types of serve/.
#pragma once

#include <string>

#include "schema/fastserve.capnp.h"
#include "serve/request.h"
#include "serve/service.h"

namespace fastserve {

/// 4 MiB: what a server reads of one message.
inline constexpr uint64_t kMostMessageWords = (uint64_t{4} << 20) / sizeof(capnp::word);

inline std::string to_string(capnp::Text::Reader text) { return {text.begin(), text.size()}; }
inline capnp::Text::Reader to_text(const std::string& text) { return {text.data(), text.size()}; }

void write_error(wire::Error::Builder out, const Error& error);
Error read_error(wire::Error::Reader in);

void write_request(wire::GenerateRequest::Builder out, const GenerateRequest& request);
GenerateRequest read_request(wire::GenerateRequest::Reader in);

void write_event(wire::GenerateEvent::Builder out, const GenerateEvent& event);
GenerateEvent read_event(wire::GenerateEvent::Reader in);
/// Words that write_event needs, about: a message of the right size is allocated once.
uint64_t event_words(const GenerateEvent& event);

void write_model(wire::Model::Builder out, const ServedModel& model);
ServedModel read_model(wire::Model::Reader in);

void write_health(wire::Health::Builder out, const ServerHealth& health);
ServerHealth read_health(wire::Health::Reader in);

/// Of a call whose parameters a server would not read: it would close the connection. What the
/// message adds around them is within the slack.
template <class Builder>
Status check_size(const Builder& params, const char* where) {
  constexpr uint64_t kSlack = 256;
  const uint64_t words = params.totalSize().wordCount;
  if (words + kSlack <= kMostMessageWords) return {};
  return Error{ErrorCode::kInvalidArgument,
               "has " + std::to_string(words * sizeof(capnp::word)) +
                   " bytes, more than the 4 MiB of one message",
               where, "send less at once"};
}

/// A KJ exception as it leaves this room. `where` is the peer's address.
Error from_exception(const kj::Exception& exception, const std::string& where);

}  // namespace fastserve
