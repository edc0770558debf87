// Names, versions and tags: everything that moves without touching content.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "store/disk_store.h"
#include "store/names.h"

namespace fastserve {
namespace {

uint64_t parse_version(std::string_view text) {
  uint64_t version = 0;
  std::from_chars(text.data(), text.data() + text.size(), version);
  return version;
}

std::string joined(const std::vector<uint64_t>& versions) {
  std::string text;
  for (size_t i = versions.size() > 8 ? versions.size() - 8 : 0; i < versions.size(); i++)
    text += fmt::format("{}{}", text.empty() ? "" : ", ", versions[i]);
  return text;
}

}  // namespace

Result<std::optional<NameRecord>> DiskStore::find_name(const std::string& name) const {
  FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(name_key(name)));
  if (!bytes) return std::optional<NameRecord>();
  FS_ASSIGN(const NameRecord record, NameRecord::decode(*bytes, name_key(name)));
  return std::optional<NameRecord>(record);
}

Result<std::vector<std::string>> DiskStore::names() const {
  FS_ASSIGN(const auto records, catalogue_->scan("name/"));
  std::vector<std::string> names;
  for (const auto& [key, bytes] : records) {
    FS_ASSIGN(const NameRecord record, NameRecord::decode(bytes, key));
    if (record.current != 0) names.push_back(key.substr(key.find('/') + 1));
  }
  return names;
}

Result<NameRecord> DiskStore::need_name(const std::string& name) const {
  FS_TRY(check_name(name));
  FS_ASSIGN(const std::optional<NameRecord> record, find_name(name));
  if (record && record->current != 0) return *record;
  FS_ASSIGN(const std::vector<std::string> all, names());
  return Error{ErrorCode::kNotFound, "there is no model of this name", name,
               near_names_hint(name, all)};
}

Result<std::vector<uint64_t>> DiskStore::versions(const std::string& name) const {
  FS_ASSIGN(const auto records, catalogue_->scan(fmt::format("version/{}/", name)));
  std::vector<uint64_t> versions;
  for (const auto& [key, bytes] : records) {
    FS_ASSIGN(const uint64_t version, version_of_key(key));
    versions.push_back(version);
  }
  return versions;
}

Result<std::map<std::string, uint64_t>> DiskStore::tags(const std::string& name) const {
  const std::string prefix = fmt::format("tag/{}/", name);
  FS_ASSIGN(const auto records, catalogue_->scan(prefix));
  std::map<std::string, uint64_t> tags;
  for (const auto& [key, bytes] : records) tags[key.substr(prefix.size())] = parse_version(bytes);
  return tags;
}

Result<ModelRef> DiskStore::resolve(const ModelRef& ref) const {
  FS_ASSIGN(const NameRecord record, need_name(ref.name));
  ModelRef resolved{ref.name, ref.version, ""};
  if (!ref.tag.empty()) {
    FS_ASSIGN(const auto tagged, tags(ref.name));
    const auto found = tagged.find(ref.tag);
    if (found == tagged.end()) {
      std::vector<std::string> known;
      for (const auto& [tag, version] : tagged) known.push_back(tag);
      return Error{ErrorCode::kNotFound, fmt::format("has no tag \"{}\"", ref.tag), ref.name,
                   known.empty() ? "it has no tags" : near_names_hint(ref.tag, known)};
    }
    resolved.version = found->second;
  }
  if (resolved.version == 0) resolved.version = record.current;
  FS_ASSIGN(const auto version, catalogue_->get(version_key(ref.name, resolved.version)));
  if (version) return resolved;
  FS_ASSIGN(const std::vector<uint64_t> known, versions(ref.name));
  return Error{
      ErrorCode::kNotFound, "there is no such version", resolved.text(),
      fmt::format("{} has version{} {}", ref.name, known.size() == 1 ? "" : "s", joined(known))};
}

bool DiskStore::leased(const std::string& key) const {
  const auto lease = leases_.find(key);
  return lease != leases_.end() && !lease->second.expired();
}

Result<uint64_t> DiskStore::unique_bytes(const Manifest& manifest) const {
  uint64_t bytes = 0;
  std::set<Hash128> pieces;
  for (const ManifestEntry& entry : manifest.entries)
    pieces.insert(entry.pieces.begin(), entry.pieces.end());
  for (const Hash128& hash : pieces) {
    FS_ASSIGN(const PieceRecord piece, need_piece(hash));
    if (piece.versions == 1) bytes += piece.bytes;
  }
  return bytes;
}

Result<ModelInfo> DiskStore::info(const ModelRef& resolved) const {
  const std::string key = version_key(resolved.name, resolved.version);
  FS_ASSIGN(const std::optional<std::string> about, catalogue_->get(key));
  FS_ASSIGN(VersionRecord version, VersionRecord::decode(about.value_or(""), key));
  const std::string manifest_name = manifest_key(resolved.name, resolved.version);
  FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(manifest_name));
  FS_ASSIGN(const Manifest manifest, Manifest::decode(bytes.value_or(""), manifest_name));
  FS_ASSIGN(const NameRecord name, need_name(resolved.name));
  FS_ASSIGN(const auto tagged, tags(resolved.name));
  ModelInfo info;
  info.ref = resolved;
  info.created_unix = version.created_unix;
  info.bytes = version.bytes;
  FS_ASSIGN(info.unique_bytes, unique_bytes(manifest));
  for (const auto& [tag, tag_version] : tagged)
    if (tag_version == resolved.version) info.tags.push_back(tag);
  info.current = name.current == resolved.version;
  info.lineage = std::move(version.lineage);
  info.architecture = std::move(version.architecture);
  info.weight_format = std::move(version.weight_format);
  info.parameters = version.parameters;
  return info;
}

Result<ModelInfo> DiskStore::show(const ModelRef& ref) const {
  const std::lock_guard lock(names_);
  FS_ASSIGN(const ModelRef resolved, resolve(ref));
  return info(resolved);
}

Result<std::vector<ModelInfo>> DiskStore::list() const {
  const std::lock_guard lock(names_);
  std::vector<ModelInfo> infos;
  FS_ASSIGN(const std::vector<std::string> all, names());
  for (const std::string& name : all) {
    FS_ASSIGN(const std::vector<uint64_t> known, versions(name));
    for (const uint64_t version : known) {
      FS_ASSIGN(ModelInfo one, info({name, version, ""}));
      infos.push_back(std::move(one));
    }
  }
  return infos;
}

Status DiskStore::point(const ModelRef& ref) {
  const std::lock_guard lock(names_);
  FS_ASSIGN(const ModelRef resolved, resolve(ref));
  FS_ASSIGN(NameRecord record, need_name(ref.name));
  record.current = resolved.version;
  return catalogue_->commit({{name_key(ref.name), record.encode()}});
}

Status DiskStore::tag(const ModelRef& ref, const std::string& tag) {
  FS_TRY(check_tag(tag));
  const std::lock_guard lock(names_);
  FS_ASSIGN(const ModelRef resolved, resolve(ref));
  return catalogue_->commit({{tag_key(ref.name, tag), std::to_string(resolved.version)}});
}

Status DiskStore::untag(const std::string& name, const std::string& tag) {
  const std::lock_guard lock(names_);
  FS_TRY(resolve({name, 0, tag}));
  return catalogue_->commit({{tag_key(name, tag), std::nullopt}});
}

/// Lineage follows a rename: what was made from a version of `from` says `to`.
Status DiskStore::rename_parents(const std::string& from, const std::string& to,
                                 Changes& changes) const {
  const std::string wanted = from + "@";
  FS_ASSIGN(const auto records, catalogue_->scan("version/"));
  for (const auto& [key, bytes] : records) {
    FS_ASSIGN(VersionRecord version, VersionRecord::decode(bytes, key));
    if (!version.lineage.parent.starts_with(wanted)) continue;
    version.lineage.parent.replace(0, from.size(), to);
    // A version of `from` itself is on its way to a key of `to`.
    const std::string own = fmt::format("version/{}/", from);
    changes[key.starts_with(own) ? version_key(to, *version_of_key(key)) : key] = version.encode();
  }
  return {};
}

Status DiskStore::rename(const std::string& from, const std::string& to) {
  FS_TRY(check_name(to));
  const std::lock_guard lock(names_);
  FS_ASSIGN(const NameRecord record, need_name(from));
  FS_ASSIGN(const std::optional<NameRecord> taken, find_name(to));
  if (taken && taken->current != 0)
    return Error{ErrorCode::kAlreadyExists, "is the name of another model", to,
                 "choose another name, or remove that model first"};
  Changes changes;
  const uint64_t highest = std::max(record.highest, taken.value_or(NameRecord{}).highest);
  changes[name_key(to)] = NameRecord{record.current, highest}.encode();
  // Its numbers are not given again: name@version means one model for ever.
  changes[name_key(from)] = NameRecord{0, record.highest}.encode();
  FS_ASSIGN(const std::vector<uint64_t> known, versions(from));
  std::map<std::string, std::weak_ptr<Lease>> moved;
  for (const uint64_t version : known) {
    for (const auto& key : {version_key, manifest_key}) {
      FS_ASSIGN(const std::optional<std::string> bytes, catalogue_->get(key(from, version)));
      changes[key(to, version)] = bytes;
      changes[key(from, version)] = std::nullopt;
    }
    if (const auto lease = leases_.find(manifest_key(from, version)); lease != leases_.end())
      moved[manifest_key(to, version)] = lease->second;
  }
  FS_ASSIGN(const auto tagged, tags(from));
  for (const auto& [tag, version] : tagged) {
    changes[tag_key(to, tag)] = std::to_string(version);
    changes[tag_key(from, tag)] = std::nullopt;
  }
  FS_TRY(rename_parents(from, to, changes));
  FS_TRY(catalogue_->commit(changes));
  leases_.merge(moved);
  for (const uint64_t version : known) leases_.erase(manifest_key(from, version));
  return {};
}

}  // namespace fastserve
