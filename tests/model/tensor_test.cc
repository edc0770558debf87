#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "model/safetensors.h"
#include "tests/model/reference_files.h"

using namespace fastserve;

TEST_CASE("reading halves in bulk gives the bits of converting them one by one") {
  Tensor halves{DType::kF16, {0x10000}, std::vector<std::byte>(0x20000)};
  Tensor brains{DType::kBF16, {0x10000}, std::vector<std::byte>(0x20000)};
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(halves.bytes.data() + 2 * bits, &half, 2);
    std::memcpy(brains.bytes.data() + 2 * bits, &half, 2);
  }
  const std::vector<float> f16 = halves.view().to_floats(), bf16 = brains.view().to_floats();
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    wrong += std::bit_cast<uint32_t>(f16[bits]) != std::bit_cast<uint32_t>(to_float(Float16{half}));
    wrong +=
        std::bit_cast<uint32_t>(bf16[bits]) != std::bit_cast<uint32_t>(to_float(BFloat16{half}));
  }
  CHECK(wrong == 0);
}

TEST_CASE("a part of a tensor of any type reads as floats") {
  Tensor tensor{DType::kI16, {4}, std::vector<std::byte>(8)};
  const int16_t values[] = {-300, 7, 0, 32767};
  std::memcpy(tensor.bytes.data(), values, sizeof values);
  std::vector<float> out(2);
  tensor.view().read_floats(1, out);
  CHECK(out == std::vector<float>{7, 0});
  CHECK(tensor.view().shape_text() == "[4]");
  const std::vector<float> rounded =
      Tensor::from_floats({2}, std::vector<float>{1.00390625f, -2.5f}, DType::kBF16)
          .view()
          .to_floats();
  CHECK(rounded == std::vector<float>{1.0f, -2.5f});
}

TEST_CASE(
    "a written safetensors file reads back the same, metadata and scalars and empty tensors too") {
  const TemporaryFolder folder;
  TensorMap tensors;
  tensors.add("b", Tensor::from_floats({2, 3}, std::vector<float>{1, 2, 3, 4, 5, 6}));
  tensors.add(
      "a", Tensor{DType::kI8, {3}, std::vector<std::byte>(3, std::byte{7})});  // unaligns the next
  tensors.add("scalar", Tensor::from_floats({}, std::vector<float>{9}));
  tensors.add("empty", Tensor{DType::kF16, {0, 4}, {}});
  REQUIRE(write_safetensors(folder / "x.safetensors", tensors, {{"format", "pt"}}).ok());
  CHECK(!std::filesystem::exists(folder / "x.safetensors.tmp"));
  const auto file = SafetensorsFile::open(folder / "x.safetensors");
  REQUIRE(file.ok());
  CHECK((*file)->metadata().at("format") == "pt");
  CHECK((*file)->names() == std::vector<std::string>{"a", "b", "empty", "scalar"});
  for (const std::string& name : tensors.names()) {
    const TensorView was = *tensors.tensor(name), is = *(*file)->tensor(name);
    CHECK(was.dtype == is.dtype);
    CHECK(was.shape == is.shape);
    CHECK(was.to_floats() == is.to_floats());
  }
  CHECK((*file)->tensor("c").error().code == ErrorCode::kNotFound);
  CHECK((*file)->tensor("c").error().where == (folder / "x.safetensors").string());
}
