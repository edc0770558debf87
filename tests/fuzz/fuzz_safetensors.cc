// Any bytes as a safetensors file: refused, or every tensor lies inside the bytes and can be read.
#include <cstdint>
#include <span>

#include "model/safetensors.h"

using namespace fastserve;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = SafetensorsFile::parse(bytes, "input");
  if (!file.ok()) {
    FS_CHECK(!file.error().what.empty() && !file.error().where.empty());
    return 0;
  }
  size_t held = 0;
  for (const std::string& name : (*file)->names()) {
    const auto view = (*file)->tensor(name);
    FS_CHECK(view.ok());
    FS_CHECK(static_cast<size_t>(view->elements()) * dtype_bytes(view->dtype) ==
             view->bytes.size());
    held += view->bytes.size();
    FS_CHECK(held <= size);
    FS_CHECK(view->to_floats().size() == static_cast<size_t>(view->elements()));
  }
  return 0;
}
