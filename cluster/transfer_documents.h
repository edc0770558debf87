// What is asked for at the beginning of a connection that carries models or an answer's tokens.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// The first document of a connection: what its sender wants.
struct TransferAsk {
  enum class Want : uint8_t {
    kPull,     ///< a model: its listing and pieces come
    kPush,     ///< to give a model: it is published as `name`
    kText,     ///< what the compression `duty` measures on
    kGenerate  ///< to speak with what serves `model`, or with the deployment `duty`
  };
  Want want = Want::kPull;
  std::string token;  ///< of a client; nodes show a certificate instead
  std::string model;  ///< kPull, kGenerate: "name", "name@3" or "name@tag"
  std::string name;   ///< kPush by a client
  std::string duty;   ///< the id of what a node does
};

std::string encode(const TransferAsk& ask);
/// kCorrupt for what is no such document, kUnsupported for what a newer version may ask.
Result<TransferAsk> parse_transfer_ask(std::string_view document);

/// The answer: a document of members, or a refusal that carries an Error.
std::string encode_answer(const Json& answer);
std::string encode_refusal_of(const Error& error);
/// A refusal comes out as the Error that it carries.
Result<Json> parse_transfer_answer(std::string_view document);

/// An Error as JSON, cut to what people read, and back.
Json error_to_json(const Error& error);
/// Never fails: what is missing is said to be.
Error error_from_json(const Json& json);

}  // namespace fastserve
