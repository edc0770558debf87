// A model from one store to another over a connection: one end sends, the other receives.
#pragma once

#include <functional>
#include <string>

#include "base/cancel.h"
#include "net/stream.h"
#include "store/transfer.h"

namespace fastserve {

/// What TLS calls the protocol, at a coordinator's port: whoever connects asks first (TransferAsk),
/// and then sends or receives.
inline constexpr const char* kModelsProtocol = "fastserve-models/1";

/// The sender's listing; the receiver's word whether it wants the model, and which pieces; then
/// each of those after a word that it follows; then the receiver's word on what it has made of it.
/// A word is a document: {} or a refusal. Pieces are at most kPieceBytes: the memory that either
/// end takes.
///
/// Blocks. `progress` hears the part of the wanted bytes that came, 0..1; `cancel` may be null.
/// Errors: of either end; kUnavailable when the connection ends, kCorrupt for what does not fit its
///         checksum. What was received until then is kept for the next attempt.
struct TransferHooks {
  std::function<void(double)> progress;
  const CancelFlag* cancel = nullptr;
};
/// What the receiver has made of it.
Result<ModelRef> send_model(Stream& stream, OutgoingModel& model, const TransferHooks& hooks);
/// `as` decides by the listing what the model becomes here, or refuses it.
Result<ModelRef> receive_model(Stream& stream, Store& store,
                               const std::function<Result<ReceiveAs>(ModelListing& listing)>& as,
                               const TransferHooks& hooks);

// The words.
Status send_word(Stream& stream, const Result<Json>& word, Nanoseconds patience);
Result<Json> receive_word(Stream& stream, Nanoseconds patience);

/// A text whose length comes first, of at most `most` bytes.
Status send_text(Stream& stream, const std::string& text, const CancelFlag* cancel);
Result<std::string> receive_text(Stream& stream, uint64_t most, const CancelFlag* cancel);

}  // namespace fastserve
