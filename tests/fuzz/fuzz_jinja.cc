// Any text as a chat template: refused, or rendered within its bounds, or refused while rendering.
#include <cstdint>
#include <string_view>

#include "serve/jinja.h"

using namespace fastserve;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Json variables =
      Json::parse(R"({"messages": [{"role": "system", "content": "be brief"},
                                   {"role": "user", "content": "h\u00e9llo"},
                                   {"role": "assistant", "content": "hi", "tool_calls": []}],
                      "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": true,
                      "tools": [{"name": "f", "parameters": {"x": 1.5, "y": [true, null]}}]})",
                  "variables")
          .value();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto made = JinjaTemplate::parse(text, "input");
  if (!made.ok()) {
    FS_CHECK(!made.error().what.empty());
    return 0;
  }
  const auto rendered = made->render(variables);
  FS_CHECK(rendered.ok() || !rendered.error().what.empty());
  return 0;
}
