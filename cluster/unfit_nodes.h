// Nodes that are connected to the coordinator, and yet cannot take part in its jobs.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace fastserve {

/// Remembers which nodes failed at their part, and between which the network does not carry; says
/// whom to do without.
///
/// Threads:  not thread-safe.
/// Promises: a node is tried again after a while, which doubles each time that it fails again.
class UnfitNodes {
 public:
  static constexpr Nanoseconds kFirst = std::chrono::seconds(15);
  static constexpr Nanoseconds kLongest = std::chrono::minutes(5);

  /// One of them could not reach the other just now.
  void apart(const std::string& a, const std::string& b, Nanoseconds now);
  /// What a node lacks (disk, memory, a GPU) it will lack again when it is asked next. What it was
  /// told and could not be, others would be told, too; and who was stopped has not failed.
  static bool of_its_own(ErrorCode why);
  /// The node could not do its part, for a reason of its own.
  void failed(const std::string& node, const std::string& why, Nanoseconds now);
  /// The node has connected anew, or is gone: what was known of it holds no more.
  void forget(const std::string& node);

  /// Whom of `nodes` to do without, and why: as few as it takes for the others to reach each other.
  /// Of two alike the one that is named first.
  std::map<std::string, std::string> leave_out(const std::vector<std::string>& nodes,
                                               Nanoseconds now) const;

 private:
  struct Trouble {
    Nanoseconds until{0}, hold{0};
    std::string why;
  };
  static void happened(Trouble& trouble, std::string why, Nanoseconds now);

  std::map<std::pair<std::string, std::string>, Trouble> pairs_;  // the lesser name first
  std::map<std::string, Trouble> nodes_;
};

}  // namespace fastserve
