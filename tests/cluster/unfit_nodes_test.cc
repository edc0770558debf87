#include "cluster/unfit_nodes.h"

#include <doctest/doctest.h>

using namespace fastserve;
using std::chrono::seconds;

namespace {

/// Whom to do without.
std::string without(const UnfitNodes& unfit, const std::vector<std::string>& nodes,
                    Nanoseconds now) {
  std::string names;
  for (const auto& [name, why] : unfit.leave_out(nodes, now)) names += name;
  return names;
}

}  // namespace

TEST_CASE("of two nodes that cannot reach each other the less wanted one is done without") {
  UnfitNodes unfit;
  CHECK(without(unfit, {"a", "b", "c"}, seconds(1)) == "");
  unfit.apart("b", "a", seconds(1));
  CHECK(unfit.leave_out({"a", "b", "c"}, seconds(2)).at("a") ==
        "it and node b cannot reach each other");
  CHECK(without(unfit, {"a", "b", "c"}, seconds(2)) == "a");
  CHECK(without(unfit, {"b", "a", "c"}, seconds(2)) == "b");
  CHECK(without(unfit, {"c", "b"}, seconds(2)) == "");  // a is not there anyway
}

TEST_CASE("a node that nobody reaches is the one to do without, however wanted") {
  UnfitNodes unfit;
  unfit.apart("a", "z", seconds(1));
  unfit.apart("b", "z", seconds(1));
  CHECK(without(unfit, {"a", "b", "z"}, seconds(2)) == "z");
}

TEST_CASE("a node is not at fault for what it was told, nor for having been stopped") {
  using enum ErrorCode;
  for (const ErrorCode own : {kIo, kResourceExhausted, kUnavailable, kUnsupported, kInternal})
    CHECK(UnfitNodes::of_its_own(own));
  for (const ErrorCode other : {kInvalidArgument, kCorrupt, kCancelled})
    CHECK_FALSE(UnfitNodes::of_its_own(other));
}

TEST_CASE("a node that failed at its part is done without, and nobody for being apart from it") {
  UnfitNodes unfit;
  unfit.failed("b", "its disk is full", seconds(1));
  unfit.apart("a", "b", seconds(1));
  CHECK(unfit.leave_out({"a", "b"}, seconds(2)) ==
        std::map<std::string, std::string>{{"b", "its disk is full"}});
}

TEST_CASE("nodes that could not take part are tried again after a while that grows") {
  UnfitNodes unfit;
  Nanoseconds now = seconds(100);
  for (const Nanoseconds hold : {seconds(15), seconds(30), seconds(60), seconds(120), seconds(240),
                                 seconds(300), seconds(300)}) {
    unfit.apart("a", "b", now);
    unfit.apart("b", "a", now + seconds(1));  // both say so: once
    unfit.failed("c", "its disk is full", now);
    CHECK(without(unfit, {"a", "b", "c"}, now + hold - seconds(1)) == "ac");
    CHECK(without(unfit, {"a", "b", "c"}, now + hold) == "");
    now += hold;
  }
}

TEST_CASE("a node that connects anew is not judged by what it was like before") {
  UnfitNodes unfit;
  unfit.apart("a", "b", seconds(1));
  unfit.apart("b", "c", seconds(1));
  unfit.failed("a", "its disk is full", seconds(1));
  unfit.forget("a");
  CHECK(without(unfit, {"a", "b", "c"}, seconds(2)) == "b");
}
