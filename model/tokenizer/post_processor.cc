#include "model/tokenizer/post_processor.h"

#include <fmt/format.h>

namespace fastserve {

Result<PostProcessor> PostProcessor::parse(const Json* spec, const std::string& where) {
  PostProcessor processor;
  if (spec != nullptr) FS_TRY(processor.add({*spec, where}));
  return processor;
}

Status PostProcessor::add(const Section& section) {
  FS_ASSIGN(const std::string type, section.required_text("type"));
  if (type == "Sequence") {
    FS_ASSIGN(const Json::Array* list, section.required_list("processors"));
    for (const Json& item : *list) FS_TRY(add({item, section.where}));
    return {};
  }
  if (type == "ByteLevel") return {};
  const Section named{section.json, section.where + ": " + type};
  const bool is_frame = type == "RobertaProcessing" || type == "BertProcessing";
  if (type != "TemplateProcessing" && !is_frame)
    return section.unsupported(fmt::format("the post-processor \"{}\" is not supported", type));
  if (has_template_)
    return named.unsupported("a second post-processor with tokens is not supported");
  has_template_ = true;
  return is_frame ? add_frame(named) : add_template(named);
}

/// "cls" and "sep" are [token, id].
Status PostProcessor::add_frame(const Section& section) {
  for (const auto& [key, side] : {std::pair{"cls", 0}, std::pair{"sep", 1}}) {
    FS_ASSIGN(const Json::Array* pair, section.required_list(key));
    if (pair->size() != 2 || !(*pair)[1].is_int())
      return section.corrupt(fmt::format("\"{}\" is not a token and its id", key));
    around_[static_cast<size_t>(side)] = {static_cast<int32_t>((*pair)[1].as_int())};
  }
  return {};
}

Result<std::vector<int32_t>> PostProcessor::special_ids(const Section& section,
                                                        const std::string& name) {
  const Json* tokens = section.json.find_set("special_tokens");
  const Json* token = tokens == nullptr ? nullptr : tokens->find_set(name);
  const Json* list = token == nullptr ? nullptr : token->find_set("ids");
  if (list == nullptr || !list->is_array())
    return section.corrupt(fmt::format("\"{}\" is not in \"special_tokens\"", name));
  std::vector<int32_t> ids;
  for (const Json& id : list->as_array()) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > INT32_MAX)
      return section.corrupt(fmt::format("an id of \"{}\" is not a token id", name));
    ids.push_back(static_cast<int32_t>(id.as_int()));
  }
  return ids;
}

Status PostProcessor::add_template(const Section& section) {
  FS_ASSIGN(const Json::Array* single, section.required_list("single"));
  around_ = {{}};
  for (const Json& item : *single) {
    if (const Json* special = item.find_set("SpecialToken")) {
      FS_ASSIGN(const std::string name, Section({*special, section.where}).required_text("id"));
      FS_ASSIGN(const std::vector<int32_t> ids, special_ids(section, name));
      around_.back().insert(around_.back().end(), ids.begin(), ids.end());
    } else if (const Json* sequence = item.find_set("Sequence")) {
      FS_ASSIGN(const std::string name, Section({*sequence, section.where}).required_text("id"));
      if (name != "A") return section.corrupt("\"single\" names a second text");
      around_.emplace_back();
    } else {
      return section.corrupt("\"single\" holds neither SpecialToken nor Sequence");
    }
  }
  return {};
}

std::vector<int32_t> PostProcessor::apply(std::vector<int32_t> ids) const {
  std::vector<int32_t> out = around_[0];
  for (size_t i = 1; i < around_.size(); i++) {
    out.insert(out.end(), ids.begin(), ids.end());
    out.insert(out.end(), around_[i].begin(), around_[i].end());
  }
  return out;
}

}  // namespace fastserve
