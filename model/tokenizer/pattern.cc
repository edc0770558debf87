#include "model/tokenizer/pattern.h"

namespace fastserve {

Result<Pattern> Pattern::parse(const Section& section) {
  const Json* spec = section.json.find_set("pattern");
  if (spec == nullptr || !spec->is_object()) return section.corrupt("has no \"pattern\"");
  const Section inner{*spec, section.where + ": pattern"};
  if (spec->find_set("String") != nullptr) {
    FS_ASSIGN(std::string literal, inner.text("String", ""));
    FS_ASSIGN(Regex regex, Regex::literal(literal, inner.where));
    return Pattern(std::move(regex), std::move(literal));
  }
  FS_ASSIGN(const std::string source, inner.required_text("Regex"));
  FS_ASSIGN(Regex regex, Regex::compile(source, inner.where));
  return Pattern(std::move(regex), "");
}

Result<std::string> Pattern::replace(std::string_view text, std::string_view content) const {
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  if (!literal_.empty()) {
    for (size_t hit; (hit = text.find(literal_, done)) != text.npos; done = hit + literal_.size())
      out.append(text.substr(done, hit - done)).append(content);
    return out.append(text.substr(done));
  }
  if (text.empty()) return out;
  Regex::Scan scan(regex_, text);
  for (;;) {
    FS_ASSIGN(const auto match, scan.next());
    if (!match) break;
    out.append(text.substr(done, match->begin - done)).append(content);
    done = match->end;
  }
  return out.append(text.substr(done));
}

}  // namespace fastserve
