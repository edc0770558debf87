#include "rpc/cluster_stream.h"

namespace fastserve {
namespace {

kj::Exception disconnected(const Error& error) {
  return kj::Exception(kj::Exception::Type::DISCONNECTED, __FILE__, __LINE__,
                       kj::heapString(error.message().c_str()));
}

}  // namespace

kj::Promise<size_t> ClusterStream::tryRead(void* buffer, size_t min_bytes, size_t max_bytes) {
  return read_on(static_cast<std::byte*>(buffer), min_bytes, max_bytes, 0);
}

kj::Promise<size_t> ClusterStream::read_on(std::byte* into, size_t min_bytes, size_t max_bytes,
                                           size_t got) {
  while (true) {
    auto moved = stream_->read({into + got, max_bytes - got});
    if (!moved.ok()) return disconnected(moved.error());
    got += moved->bytes;
    if (moved->closed || got >= min_bytes) return got;
    if (moved->bytes == 0)
      return wait_for(moved->wants).then([this, into, min_bytes, max_bytes, got]() {
        return read_on(into, min_bytes, max_bytes, got);
      });
  }
}

kj::Promise<void> ClusterStream::write(const void* buffer, size_t size) {
  return write_on({{static_cast<const std::byte*>(buffer), size}});
}

kj::Promise<void> ClusterStream::write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) {
  Parts parts;
  for (const auto piece : pieces)
    parts.emplace_back(reinterpret_cast<const std::byte*>(piece.begin()), piece.size());
  return write_on(std::move(parts));
}

kj::Promise<void> ClusterStream::write_on(Parts parts) {
  size_t first = 0;  // of the parts that are not written
  while (true) {
    while (first < parts.size() && parts[first].empty()) first++;
    if (first == parts.size()) return kj::READY_NOW;
    const auto moved = stream_->write(std::span(parts).subspan(first));
    if (!moved.ok()) return disconnected(moved.error());
    if (moved->bytes == 0) {
      parts.erase(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(first));
      return wait_for(moved->wants).then([this, parts = std::move(parts)]() mutable {
        return write_on(std::move(parts));
      });
    }
    for (size_t left = moved->bytes; left > 0;) {
      const size_t here = std::min(left, parts[first].size());
      parts[first] = parts[first].subspan(here);
      left -= here;
      if (parts[first].empty()) first++;
    }
  }
}

kj::Promise<void> ClusterStream::wait_for(Moved::Wants wants) {
  return wants == Moved::Wants::kWritable ? writable_.wait() : readable_.wait();
}

}  // namespace fastserve
