// The emulated card's memory: out of the host's reach but for launches and copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace fastserve::simt {

/// Pages that only an Access opens. A host that reads or writes them in between crashes, as it
/// would with a card's memory, instead of getting away with it until the first real card.
///
/// Owns:    its pages; what was not freed goes with it.
/// Threads: any. While one thread has access, all have.
class DeviceMemory {
 public:
  /// Address space for `bytes`; pages are taken when they are first allocated.
  explicit DeviceMemory(size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  /// Opens the memory for as long as it lives.
  class Access {
   public:
    explicit Access(DeviceMemory& memory) : memory_(memory) { memory_.open(); }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
    ~Access() { memory_.close(); }

   private:
    DeviceMemory& memory_;
  };

  /// Zeroed and 256-byte aligned; null when there is no such room. Requires bytes > 0.
  void* allocate(size_t bytes);
  /// The size of what was freed, and whether nothing was written past its end.
  struct Freed {
    size_t bytes;
    bool intact;
  };
  Freed free(void* data);
  /// Bytes that are in nobody's hands; one piece may be smaller.
  size_t available() const;
  bool holds(const void* data) const { return data >= base_ && data < base_ + size_; }
  /// Which allocation `data` lies in; never given again after it is freed. 0: in none.
  uint64_t allocation_of(const void* data) const;

 private:
  struct Block {
    size_t bytes;  ///< that were asked for; 0: nobody's
    size_t room;   ///< up to the next block
    uint64_t allocation = 0;
  };
  using Blocks = std::map<size_t, Block>;  // by offset; they cover what was ever handed out

  void open();
  void close();
  void set_protection(size_t from, size_t to, bool reachable);
  Blocks::iterator find_room(size_t room);

  unsigned char* base_ = nullptr;
  const size_t size_;
  mutable std::mutex mutex_;  // guards what follows
  Blocks blocks_;
  size_t end_ = 0;   // of the blocks
  size_t held_ = 0;  // bytes in somebody's hands, with their guards
  int accesses_ = 0;
  uint64_t allocations_ = 0;  // so far
};

}  // namespace fastserve::simt
