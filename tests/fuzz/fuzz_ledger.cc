// A job's ledger from a disk that one cannot trust: any bytes, and any bodies whose checksums hold.
// What reads at all reads the same when it is written again, and an audit of it ends.
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"
#include "train/ledger_audit.h"

using namespace fastserve;

namespace {

void check(const std::string& ledger) {
  const auto bytes = std::as_bytes(std::span(ledger));
  auto reader = LedgerReader::open(bytes, "fuzz");
  if (!reader.ok()) return;
  std::string again;
  while (const auto record = reader->next()) {
    const size_t at = again.size();
    std::visit([&](const auto& it) { append_record(it, again); }, *record);
    if (const auto* step = std::get_if<LedgerStep>(&*record)) {
      FS_CHECK(reader->step_at(reader->last()) == *step);
      for (const LedgerStep::Unit& unit : step->units)
        FS_CHECK(unit.trainer < reader->names().size());
    }
    FS_CHECK(again.size() > at);
  }
  FS_CHECK(reader->offset() <= ledger.size());
  TrainSpec spec;
  spec.batch = 4;
  spec.microbatches = 3;
  spec.seed = 7;
  for (const int64_t steps : {0, 1, 3}) {
    const auto found = audit(bytes, spec, steps, 10, "fuzz");
    if (found.ok()) FS_CHECK(found->samples == 4 * steps);
  }
}

/// The bodies in `data`, each behind a length byte, as records whose checksums hold.
std::string framed(std::span<const uint8_t> data) {
  std::string out(kLedgerMagic);
  while (!data.empty()) {
    const size_t length = std::min<size_t>(data[0], data.size() - 1);
    const auto body = data.subspan(1, length);
    const uint32_t head[2] = {static_cast<uint32_t>(length),
                              static_cast<uint32_t>(hash64(std::as_bytes(body)))};
    out.append(reinterpret_cast<const char*>(head), sizeof head);
    out.append(reinterpret_cast<const char*>(body.data()), body.size());
    data = data.subspan(1 + length);
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check({reinterpret_cast<const char*>(data), size});
  check(framed({data, size}));
  return 0;
}
