// What the other process of remoting_test.cc does.
#include <doctest/doctest.h>

#include <cstdlib>

#include "tests/actors/remoting_fixture.h"

using namespace fastserve;

TEST_CASE("(child) serves by the socket that it was given" * doctest::skip()) {
  const char* socket = std::getenv(ChildNode::kSocket);
  if (socket == nullptr) return;
  Node node;
  REQUIRE(node.adopt(Socket(std::atoi(socket))).ok());
  node.ended.wait_for_ever();
}
