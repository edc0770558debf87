#include "train/weight_replica.h"

#include <doctest/doctest.h>

#include "fake_backend.h"

using namespace fastserve;

TEST_CASE("a change of weights that a node was never sent does not stand in for them") {
  FakeBackend backend;
  WeightsGate gate;
  const auto ranges = ParameterShard::ranges(backend, 1);
  gate.divide(ranges.size());
  WeightReplica replica(backend, gate, ranges);
  const WeightCodec codec(WeightsBack::parse("int8-delta").value(), backend.tiles(), {});
  // What the owner does for a node that joins, in the order that a busy one may do it in: its next
  // change goes to everybody there is before the whole goes to the new one.
  std::vector<float> owners = FakeBackend::initial_weights();
  WeightShadow shadow = codec.shadow_of(std::span(owners).subspan(codec.begin(), codec.elements()));
  std::vector<std::byte> change(codec.encoded_bytes()), whole(codec.whole_bytes());
  const auto step = [&] {
    for (float& weight : owners) weight += 0.01f;
    REQUIRE(codec.encode(std::span(owners).subspan(codec.begin(), codec.elements()), shadow, change)
                .ok());
  };
  step();
  codec.encode_whole(shadow, whole);
  CHECK(replica.take_frame(0, {1}, change, codec).ok());
  CHECK_FALSE(replica.whole());
  CHECK(replica.take_frame(0, {1}, whole, codec).ok());
  CHECK(replica.whole() == StepId{1});
  step();
  CHECK(replica.take_frame(0, {2}, change, codec).ok());
  CHECK(replica.whole() == StepId{2});
  const auto held = backend.masters().subspan(codec.begin(), codec.elements());
  CHECK(std::equal(held.begin(), held.end(), shadow.weights.begin(), shadow.weights.end()));
}
