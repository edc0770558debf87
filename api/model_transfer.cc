#include "api/model_transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cluster/transfer_documents.h"
#include "net/document_stream.h"

namespace fastserve {
namespace {

constexpr auto kPatience = std::chrono::seconds(30);  // for bytes that are due
/// For a receiver that reads what it has before it answers, and that commits at the end.
constexpr auto kLongPatience = std::chrono::minutes(10);
constexpr size_t kLengthBytes = 8;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// Says what went wrong here before the connection ends.
Error tell(Stream& stream, Error error) {
  [[maybe_unused]] const Status told =
      send_document(stream, encode_refusal_of(error), steady_now() + std::chrono::seconds(5));
  return error;
}

uint64_t bytes_wanted(const std::vector<ModelListing::Piece>& pieces,
                      const std::vector<bool>& wanted) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); i++)
    if (wanted[i]) bytes += pieces[i].bytes;
  return bytes;
}

/// Counts bytes into parts of a whole.
class Counted {
 public:
  Counted(const TransferHooks& hooks, uint64_t total) : hooks_(hooks), total_(total) {}
  void add(uint64_t bytes) {
    done_ += bytes;
    if (hooks_.progress && total_ > 0)
      hooks_.progress(static_cast<double>(done_) / static_cast<double>(total_));
  }

 private:
  const TransferHooks& hooks_;
  const uint64_t total_;
  uint64_t done_ = 0;
};

Result<ModelRef> model_of(const Json& word) {
  FS_ASSIGN(const std::string text, word.string_or("model", ""));
  return ModelRef::parse(text);
}

Status send_pieces(Stream& stream, OutgoingModel& model, const std::string& wanted,
                   const TransferHooks& hooks) {
  const auto pieces = model.listing().pieces();
  std::vector<bool> which(pieces.size());
  for (size_t i = 0; i < pieces.size(); i++) which[i] = wanted[i] != 0;
  Counted counted(hooks, bytes_wanted(pieces, which));
  for (size_t i = 0; i < pieces.size(); i++) {
    if (!which[i]) continue;
    auto piece = model.piece(i);
    if (!piece.ok()) return tell(stream, std::move(piece).error());
    FS_TRY(send_word(stream, Json::object({}), kPatience));
    FS_TRY(send_bytes(stream, bytes_of(*piece), kPatience, hooks.cancel));
    counted.add(piece->size());
  }
  return {};
}

Status receive_pieces(Stream& stream, IncomingModel& model,
                      const std::vector<ModelListing::Piece>& pieces, const TransferHooks& hooks) {
  const std::vector<bool> wanted = model.wanted();
  Counted counted(hooks, bytes_wanted(pieces, wanted));
  std::vector<std::byte> buffer;
  for (size_t i = 0; i < pieces.size(); i++) {
    if (!wanted[i]) continue;
    FS_TRY(receive_word(stream, kPatience));
    buffer.resize(pieces[i].bytes);
    FS_TRY(receive_bytes(stream, buffer, kPatience, hooks.cancel));
    if (Status put = model.put(i, buffer); !put.ok()) return tell(stream, std::move(put).error());
    counted.add(buffer.size());
  }
  return {};
}

}  // namespace

Status send_word(Stream& stream, const Result<Json>& word, Nanoseconds patience) {
  return send_document(stream, word.ok() ? encode_answer(*word) : encode_refusal_of(word.error()),
                       steady_now() + patience);
}

Result<Json> receive_word(Stream& stream, Nanoseconds patience) {
  FS_ASSIGN(const std::string document, receive_document(stream, steady_now() + patience));
  return parse_transfer_answer(document);
}

Status send_text(Stream& stream, const std::string& text, const CancelFlag* cancel) {
  std::array<std::byte, kLengthBytes> length{};
  for (size_t i = 0; i < kLengthBytes; i++)
    length[i] = static_cast<std::byte>(uint64_t{text.size()} >> (8 * i));
  FS_TRY(send_bytes(stream, length, kPatience, cancel));
  return send_bytes(stream, bytes_of(text), kPatience, cancel);
}

Result<std::string> receive_text(Stream& stream, uint64_t most, const CancelFlag* cancel) {
  std::array<std::byte, kLengthBytes> length{};
  FS_TRY(receive_bytes(stream, length, kPatience, cancel));
  uint64_t size = 0;
  for (size_t i = 0; i < kLengthBytes; i++) size |= static_cast<uint64_t>(length[i]) << (8 * i);
  if (size > most)
    return Error{ErrorCode::kCorrupt,
                 fmt::format("announces {} bytes, and the limit is {}", size, most), stream.peer(),
                 "the peer may be of another version, or no FastServe"};
  std::string text(size, '\0');
  FS_TRY(receive_bytes(stream, std::as_writable_bytes(std::span(text)), kPatience, cancel));
  return text;
}

Result<ModelRef> send_model(Stream& stream, OutgoingModel& model, const TransferHooks& hooks) {
  FS_TRY(send_text(stream, model.listing().encode(), hooks.cancel));
  FS_TRY(receive_word(stream, kLongPatience));
  std::string wanted(model.listing().pieces().size(), '\0');
  FS_TRY(receive_bytes(stream, std::as_writable_bytes(std::span(wanted)), kPatience, hooks.cancel));
  const Status sent = send_pieces(stream, model, wanted, hooks);
  const bool cancelled = hooks.cancel != nullptr && hooks.cancel->raised();
  // A receiver that takes no more has said why.
  auto word = sent.ok()   ? receive_word(stream, kLongPatience)
              : cancelled ? Result<Json>(sent.error())
                          : receive_word(stream, std::chrono::seconds(5));
  if (!sent.ok() && (word.ok() || word.error().code == ErrorCode::kUnavailable ||
                     word.error().code == ErrorCode::kDeadlineExceeded))
    return sent.error();
  if (!word.ok()) return std::move(word).error();
  return model_of(*word);
}

Result<ModelRef> receive_model(Stream& stream, Store& store,
                               const std::function<Result<ReceiveAs>(ModelListing& listing)>& as,
                               const TransferHooks& hooks) {
  FS_ASSIGN(const std::string text, receive_text(stream, kMostListingBytes, hooks.cancel));
  auto read = ModelListing::decode(text);
  if (!read.ok()) return tell(stream, std::move(read).error());
  const auto what = as(*read);
  if (!what.ok()) return tell(stream, what.error());
  const auto pieces = read->pieces();
  auto incoming = store.receive(std::move(*read), *what);
  if (!incoming.ok()) return tell(stream, std::move(incoming).error());
  FS_TRY(send_word(stream, Json::object({}), kPatience));
  std::string wanted;
  for (const bool one : (*incoming)->wanted()) wanted.push_back(one ? '\1' : '\0');
  FS_TRY(send_bytes(stream, bytes_of(wanted), kPatience, hooks.cancel));
  FS_TRY(receive_pieces(stream, **incoming, pieces, hooks));
  auto made = (*incoming)->commit();
  if (!made.ok()) return tell(stream, std::move(made).error());
  FS_TRY(send_word(stream, Json::object({{"model", made->text()}}), kPatience));
  return made;
}

}  // namespace fastserve
