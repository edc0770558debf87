// What a coordinator, its nodes and their clients send each other of models: listings, requests,
// orders, reports, texts. Any bytes; what is read is within its limits, and reads the same again.
#include <cstdint>
#include <string>

#include "api/compression_text.h"
#include "api/duty_request.h"
#include "base/check.h"
#include "cluster/duty.h"
#include "cluster/transfer_documents.h"
#include "store/model_row.h"
#include "store/transfer.h"

using namespace fastserve;

namespace {

void try_listing(std::string_view text) {
  const auto listing = ModelListing::decode(text);
  if (!listing.ok()) return;
  uint64_t bytes = 0;
  for (const auto& piece : listing->pieces()) {
    FS_CHECK(piece.bytes > 0 && piece.bytes <= kPieceBytes);
    bytes += piece.bytes;
  }
  FS_CHECK(bytes <= listing->about.bytes && listing->ref.version > 0);
  const auto again = ModelListing::decode(listing->encode());
  FS_CHECK(again.ok() && again->encode() == listing->encode());
}

void try_documents(std::string_view text) {
  if (const auto ask = parse_transfer_ask(text); ask.ok()) {
    const auto again = parse_transfer_ask(encode(*ask));
    FS_CHECK(again.ok() && again->model == ask->model && again->token == ask->token);
  }
  if (const auto answer = parse_transfer_answer(text); !answer.ok()) {
    const auto again = parse_transfer_answer(encode_refusal_of(answer.error()));
    FS_CHECK(!again.ok() && again.error().code == answer.error().code);
  }
  if (const auto orders = parse_orders(text); orders.ok()) {
    FS_CHECK(orders->size() <= kMostDuties);
    FS_CHECK(parse_orders(encode_orders(*orders)).ok());
  }
  if (const auto reports = parse_reports(text); reports.ok()) {
    for (const DutyReport& report : *reports)
      FS_CHECK(report.fraction >= 0 && report.fraction <= 1 && report.port >= 0);
    FS_CHECK(parse_reports(encode_reports(*reports)).ok());
  }
  const auto json = Json::parse(text, "input");
  if (!json.ok()) return;
  [[maybe_unused]] const auto row = read_model_row(*json);
  [[maybe_unused]] const auto result = read_compress_result(*json);
  if (const auto deploy = read_deploy_request(*json); deploy.ok())
    FS_CHECK(read_deploy_request(to_json(*deploy)).ok());
  if (const auto compress = read_compress_request(*json); compress.ok())
    FS_CHECK(read_compress_request(to_json(*compress)).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  if (data[0] == 'L') {
    try_listing(text);
  } else if (data[0] == 'T') {
    const auto read = CompressionText::decode(text);
    if (read.ok()) FS_CHECK(read->encode() == text);
  } else {
    try_documents(text);
  }
  return 0;
}
