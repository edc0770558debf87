// A connected byte stream that never blocks: plain TCP here, TLS in net/tls.h.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "net/socket.h"

namespace fastserve {

/// What a read or write came to. With no bytes moved and not closed, wait for what `wants` says.
struct Moved {
  enum class Wants : uint8_t { kNothing, kReadable, kWritable };
  size_t bytes = 0;
  Wants wants = Wants::kNothing;
  bool closed = false;  ///< reads: the peer ended the stream, in good order
};

/// Owns:    its socket.
/// Threads: one caller. Before it waits for the socket to be readable it reads until nothing comes:
///          bytes may have been received that poll() does not tell of.
/// Errors:  kUnavailable when the connection is broken; after it, or once closed, only destroy it.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual Result<Moved> read(std::span<std::byte> into) = 0;
  /// Takes from the front; how many bytes, the answer says. A write that moved nothing is to be
  /// repeated with the same bytes first.
  virtual Result<Moved> write(std::span<const std::span<const std::byte>> parts) = 0;
  /// Whether bytes that were changed on their way end the stream, and are never read.
  virtual bool detects_change() const { return false; }
  /// Tells the peer that no more comes. Best effort.
  virtual void shut_down() = 0;
  virtual int fd() const = 0;
  /// Whom the stream leads to: an endpoint, and with TLS the name that its certificate proves.
  virtual const std::string& peer() const = 0;
};

/// Ends a stream that another thread has, as a broken network would.
///
/// Owns:    a descriptor beside the stream's own: the connection is not closed before this is gone.
/// Threads: any.
class StreamCut {
 public:
  StreamCut() = default;
  explicit StreamCut(const Stream& stream);
  void cut() const;

 private:
  Fd fd_;
};

/// Nobody has proven who they are: for trusted networks, by the user's explicit choice, and tests.
std::unique_ptr<Stream> plain_stream(Socket socket, std::string peer);

}  // namespace fastserve
