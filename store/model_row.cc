#include "store/model_row.h"

namespace fastserve {

Json model_row(const ModelInfo& m) {
  return Json::object({{"name", m.ref.name},
                       {"version", m.ref.version},
                       {"current", m.current},
                       {"tags", Json::array_of(m.tags)},
                       {"created_unix", m.created_unix},
                       {"bytes", m.bytes},
                       {"unique_bytes", m.unique_bytes},
                       {"architecture", m.architecture},
                       {"weight_format", m.weight_format},
                       {"parameters", m.parameters},
                       {"made_by", m.lineage.made_by},
                       {"parent", m.lineage.parent},
                       {"details", m.lineage.details}});
}

Result<ModelInfo> read_model_row(const Json& row) {
  ModelInfo m;
  if (!row.is_object())
    return Error{ErrorCode::kCorrupt, "is no model", "the list of models",
                 "the coordinator may be of another version"};
  const auto number = [&](const char* key, uint64_t& value) -> Status {
    FS_ASSIGN(const int64_t read, row.int_or(key, 0));
    value = static_cast<uint64_t>(read);
    return {};
  };
  FS_ASSIGN(m.ref.name, row.string_or("name", ""));
  FS_TRY(number("version", m.ref.version));
  FS_ASSIGN(m.current, row.bool_or("current", false));
  if (const Json* tags = row.find_set("tags"); tags != nullptr && tags->is_array())
    for (const Json& tag : tags->as_array())
      if (tag.is_string()) m.tags.push_back(tag.as_string());
  FS_ASSIGN(m.created_unix, row.int_or("created_unix", 0));
  FS_TRY(number("bytes", m.bytes));
  FS_TRY(number("unique_bytes", m.unique_bytes));
  FS_ASSIGN(m.architecture, row.string_or("architecture", ""));
  FS_ASSIGN(m.weight_format, row.string_or("weight_format", ""));
  FS_ASSIGN(m.parameters, row.int_or("parameters", 0));
  FS_ASSIGN(m.lineage.made_by, row.string_or("made_by", ""));
  FS_ASSIGN(m.lineage.parent, row.string_or("parent", ""));
  if (const Json* details = row.find("details")) m.lineage.details = *details;
  return m;
}

}  // namespace fastserve
