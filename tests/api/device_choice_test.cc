#include "api/device_choice.h"

#include <doctest/doctest.h>

#include "api/device_word.h"
#include "gpu/emulated_device.h"

namespace fastserve {

TEST_CASE("cuda names the first card that is fit, one by its number, several, or all alike") {
  const auto first = parse_cuda_word("cuda");
  REQUIRE(first);
  CHECK_FALSE(first->all);
  CHECK(first->indices.empty());
  CHECK(parse_cuda_word("cuda:all")->all);
  CHECK(parse_cuda_word("cuda:3")->indices == std::vector<int>{3});
  CHECK(parse_cuda_word("cuda:0,2")->indices == std::vector<int>{0, 2});
  std::string many = "cuda:0";
  for (int i = 1; i < 64; i++) many += "," + std::to_string(i);
  CHECK(parse_cuda_word(many)->indices.size() == 64);
  for (const std::string& word :
       {std::string("cuda:"), std::string("cuda:0,"), std::string("cuda:,0"),
        std::string("cuda:0,0"), std::string("cuda:-1"), std::string("cuda:a"),
        std::string("cuda0"), std::string("cuda:all,0"), std::string("cuda:99999999999"),
        std::string("cuda:0, 1"), many + ",64"}) {
    CAPTURE(word);
    CHECK_FALSE(parse_cuda_word(word));
    const Status refused = check_device_name(word);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().hint.find("cuda:all") != std::string::npos);
  }
}

TEST_CASE("emulated cards are so many, of so many bytes") {
  CHECK(parse_emulated_word("emulated")->cards == 1);
  CHECK(parse_emulated_word("emulated:4096")->bytes == 4096);
  CHECK(parse_emulated_word("emulated:3x")->cards == 3);
  CHECK(parse_emulated_word("emulated:3x")->bytes == 0);
  CHECK(parse_emulated_word("emulated:2x4096")->cards == 2);
  CHECK(parse_emulated_word("emulated:2x4096")->bytes == 4096);
  for (const char* word : {"emulated:", "emulated:0", "emulated:x", "emulated:0x", "emulated:9x",
                           "emulated:2x0", "emulated:2x4x", "emulated:-1", "emulate"}) {
    CAPTURE(word);
    CHECK_FALSE(parse_emulated_word(word));
  }
}

TEST_CASE("several cards are all there to train on, and refused for what works on one") {
  if (!has_emulated_device()) return;
  const auto both = choose_device("emulated:2x1000000", Isa::kPortable, 1, {});
  REQUIRE_MESSAGE(both.ok(), both.error().message());
  CHECK(both->name == "emulated:2x1000000");
  CHECK(both->line() == "device 2 x gpu emulated, 4 multiprocessors");
  CHECK(both->own_memory());
  REQUIRE(both->more.size() == 1);
  const auto first = both->make(1), second = both->more.front()(1);
  REQUIRE((first.ok() && second.ok()));
  CHECK((*first)->numerics_id() == (*second)->numerics_id());
  Device* const devices[] = {first->get(), second->get()};
  CHECK(both->link(devices).ok());
  const Status refused = both->one_for("serving");
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("names 2 cards, and serving works on one") !=
        std::string::npos);
  const auto one = choose_device("emulated", Isa::kPortable, 1, {});
  REQUIRE(one.ok());
  CHECK(one->more.empty());
  CHECK(one->one_for("serving").ok());
}

}  // namespace fastserve
