// Chat templates: the part of Jinja 2 that they are written in.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace fastserve {

/// One template, rendered as Hugging Face's environment does it: trim_blocks, lstrip_blocks, loop
/// controls, no escaping of HTML, tojson in Python's spelling, raise_exception().
///
/// Knows: expressions with their operators, slices, filters and tests; if, for (with a condition
/// and else), set, macro, raw, break, continue and generation blocks; namespaces; the methods of
/// str, dict and list that change nothing. Refuses the rest by name (kUnsupported): include,
/// import, extends, block, call, filter blocks.
///
/// A template is a stranger's program: steps, depth and output are bounded, and it reaches nothing
/// but the variables it is given.
///
/// Threads: const calls from any thread.
class JinjaTemplate {
 public:
  /// `where` names the template in errors, which give the line.
  static Result<JinjaTemplate> parse(std::string_view text, const std::string& where);
  JinjaTemplate(JinjaTemplate&&) noexcept;
  JinjaTemplate& operator=(JinjaTemplate&&) noexcept;
  ~JinjaTemplate();

  /// `variables` is an object. kInvalidArgument with the template's own words when it calls
  /// raise_exception, and when it does what Jinja would refuse.
  Result<std::string> render(const Json& variables) const;

 private:
  struct Program;
  explicit JinjaTemplate(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace fastserve
