// What CAF nodes say, byte by byte.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "net/basp_guard.h"

namespace fastserve::basp {

using Bytes = std::vector<std::byte>;

inline Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline Bytes bytes_of(std::initializer_list<int> values) {
  Bytes bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

inline Bytes number(uint64_t value, size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; i++) bytes[i] = static_cast<std::byte>(value >> 8 * (size - 1 - i));
  return bytes;
}

inline Bytes text(std::string_view text) {
  Bytes bytes;
  size_t size = text.size();
  for (; size > 0x7F; size >>= 7) bytes.push_back(static_cast<std::byte>(size | 0x80));
  bytes.push_back(static_cast<std::byte>(size));
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

constexpr BaspGuard::NodeId node_id(int n) {
  BaspGuard::NodeId id{};
  id[3] = static_cast<std::byte>(n);
  id[23] = static_cast<std::byte>(n);
  return id;
}
inline constexpr BaspGuard::NodeId kSelf = node_id(1), kPeer = node_id(2), kThird = node_id(3);

/// The atom "default", and the id.
inline Bytes node(const BaspGuard::NodeId& id) {
  uint64_t atom = 0xF;
  for (const char c : std::string_view("default"))
    atom = atom << 6 | (static_cast<uint64_t>(c - 'a') + 38);
  return number(atom, 8) + Bytes(id.begin(), id.end());
}

inline Bytes header(uint8_t operation, uint8_t flags, uint32_t length, uint64_t data,
                    uint64_t source, uint64_t destination) {
  return bytes_of({operation, 0, 0, flags}) + number(length, 4) + number(data, 8) +
         number(source, 8) + number(destination, 8);
}

inline constexpr uint8_t kSelect = 2;
inline Bytes hello(uint8_t flags = 0, const BaspGuard::NodeId& id = kPeer) {
  return header(1, flags, 32, 0, 0, 0) + node(id);
}
/// No application ids, actor 9, no signatures.
inline Bytes answer(uint64_t version = BaspGuard::kVersion) {
  const Bytes body = node(kPeer) + bytes_of({0}) + number(9, 8) + bytes_of({0});
  return header(0, 0, static_cast<uint32_t>(body.size()), version, 0, 0) + body;
}
inline Bytes raw_message(const Bytes& body, uint64_t number = 1) {
  return header(2, 0, static_cast<uint32_t>(body.size()), number, 5, 6) + body;
}
inline Bytes message(std::string_view types, const Bytes& values = {}) {
  return raw_message(bytes_of({0, 0, 0}) + text(types) + values);
}
/// Code 3 of category 4.
inline Bytes error(std::string_view types, const Bytes& values) {
  return bytes_of({3}) + number(4, 8) + bytes_of({0, 0}) + text(types) + values;
}
/// An answer's number has the highest bit set.
inline Bytes plain_error(std::string_view types = "@<>", const Bytes& values = {},
                         uint64_t number = uint64_t{1} << 63 | 1) {
  return raw_message(bytes_of({0, 0, 0}) + text("@<>+@error") + error(types, values), number);
}
inline Bytes monitor(const BaspGuard::NodeId& from = kPeer, const BaspGuard::NodeId& of = kSelf) {
  return header(4, 0, 64, 0, 0, 6) + node(from) + node(of);
}
inline Bytes down(const BaspGuard::NodeId& from = kPeer, std::string_view types = "@<>") {
  const Bytes body = node(from) + node(kSelf) + error(types, {});
  return header(5, 0, static_cast<uint32_t>(body.size()), 0, 5, 0) + body;
}
inline Bytes heartbeat() { return header(6, 0, 0, 0, 0, 0); }

}  // namespace fastserve::basp
