// Chat templates against recorded renderings.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// The cases of one template.
struct ChatTemplateCheck {
  std::string name;  ///< the template's file
  size_t cases = 0, differing = 0;
  std::string first_difference;  ///< id, expected and found
};

/// Renders one line of a cases.jsonl with the template that it names in `directory`: messages,
/// tools, documents, add_generation_prompt and what "kwargs" holds.
Result<std::string> render_chat_case(const Path& directory, const Json& line);

/// All cases of `directory`/cases.jsonl: the exact text ("expected"), or an error ("error"), which
/// must say the template's own words where "error_kind" is raise_exception.
Result<std::vector<ChatTemplateCheck>> check_chat_templates(const Path& directory);

}  // namespace fastserve
