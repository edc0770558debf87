#include "gpu/tables.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace fastserve::gpu {
namespace {

constexpr size_t kLeastBytes = 4096;

}  // namespace

const void* Tables::find(std::span<const std::byte> host) {
  if (host.empty()) return nullptr;
  ++asked_;
  for (Table& table : tables_) {
    if (table.content.size() != host.size() ||
        std::memcmp(table.content.data(), host.data(), host.size()) != 0)
      continue;
    table.asked_for = asked_;
    return table.memory.data();
  }
  Table& table = place_for_another();
  if (table.memory.bytes() < host.size()) {
    table.memory = Memory();  // first, so that both need not fit at once
    Result<Memory> larger =
        Memory::allocate(runtime_, std::max(std::bit_ceil(host.size()), kLeastBytes));
    if (!larger.ok()) {
      runtime_.report(larger.error());
      return nullptr;
    }
    table.memory = std::move(larger).value();
  }
  if (!runtime_.copy_in(table.memory.data(), host.data(), host.size())) return nullptr;
  table.content.assign(host.begin(), host.end());
  table.asked_for = asked_;
  return table.memory.data();
}

/// A new one while there are few, then the one that nobody has asked for for the longest time.
Tables::Table& Tables::place_for_another() {
  if (tables_.size() < most_) return tables_.emplace_back();
  Table& oldest = *std::ranges::min_element(tables_, {}, &Table::asked_for);
  oldest.content.clear();
  ++version_;
  return oldest;
}

}  // namespace fastserve::gpu
