#include "model/tokenizer/normalizer.h"

#include <fmt/format.h>

#include "model/tokenizer/character_class.h"

namespace fastserve {
namespace {

std::string_view strip(std::string_view text, bool left, bool right) {
  if (left) text.remove_prefix(leading_spaces(text));
  if (right) text.remove_suffix(trailing_spaces(text));
  return text;
}

}  // namespace

Result<Normalizer> Normalizer::parse(const Json* spec, const std::string& where) {
  Normalizer normalizer;
  if (spec != nullptr) FS_TRY(normalizer.add({*spec, where}));
  return normalizer;
}

Status Normalizer::add(const Section& section) {
  FS_ASSIGN(const std::string type, section.required_text("type"));
  if (type == "Sequence") {
    FS_ASSIGN(const Json::Array* list, section.required_list("normalizers"));
    for (const Json& item : *list) FS_TRY(add({item, section.where}));
  } else if (type == "NFC") {
    steps_.push_back(Form{NormalForm::kC});
  } else if (type == "NFD") {
    steps_.push_back(Form{NormalForm::kD});
  } else if (type == "NFKC") {
    steps_.push_back(Form{NormalForm::kKC});
  } else if (type == "NFKD") {
    steps_.push_back(Form{NormalForm::kKD});
  } else if (type == "Lowercase") {
    steps_.push_back(Lowercase{});
  } else if (type == "Prepend") {
    FS_ASSIGN(std::string prefix, section.required_text("prepend"));
    steps_.push_back(Prepend{std::move(prefix)});
  } else if (type == "Replace") {
    const Section named{section.json, section.where + ": Replace"};
    FS_ASSIGN(Pattern pattern, Pattern::parse(named));
    FS_ASSIGN(std::string content, named.required_text("content"));
    steps_.push_back(Replace{std::move(pattern), std::move(content)});
  } else if (type == "Strip") {
    FS_ASSIGN(const bool left, section.flag("strip_left", true));
    FS_ASSIGN(const bool right, section.flag("strip_right", true));
    steps_.push_back(Strip{left, right});
  } else {
    return section.unsupported(fmt::format("the normalizer \"{}\" is not supported", type));
  }
  return {};
}

Result<std::string> Normalizer::apply(const Step& step, std::string text) {
  if (const auto* form = std::get_if<Form>(&step)) return normalize_unicode(text, form->form);
  if (std::holds_alternative<Lowercase>(step)) return lowercase_unicode(text);
  if (const auto* prepend = std::get_if<Prepend>(&step))
    return text.empty() ? text : prepend->prefix + text;
  if (const auto* replace = std::get_if<Replace>(&step))
    return replace->pattern.replace(text, replace->content);
  const auto& sides = std::get<Strip>(step);
  return std::string(strip(text, sides.left, sides.right));
}

Result<std::string> Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    FS_ASSIGN(out, apply(step, std::move(out)));
  }
  return out;
}

}  // namespace fastserve
