#include "api/cluster_folder.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>

#include "api/private_file.h"
#include "base/json.h"

namespace fastserve {
namespace {

constexpr int64_t kFormat = 1;
constexpr uint64_t kLimit = 256 << 10;
constexpr const char* kSettings = "settings.json";
constexpr const char* kRunning = "running.json";
constexpr const char* kAdminToken = "admin-token";
constexpr const char* kOwnLabel = "admin-token on the coordinator's host";

Result<Json> read_document(const Path& path) {
  FS_ASSIGN(const std::string text, read_file(path, kLimit));
  FS_ASSIGN(Json json, Json::parse(text, path.string()));
  FS_ASSIGN(const int64_t format, json.int_or("format", 0));
  if (format == kFormat) return json;
  return Error{ErrorCode::kUnsupported,
               fmt::format("has format {}, this build reads {}", format, kFormat), path.string(),
               "use the version of fsctl that made it"};
}

Error with_path(Error error, const Path& path) {
  error.where = error.where.empty() ? path.string() : path.string() + ", " + error.where;
  return error;
}

Result<ClusterSettings> settings_from(const Json& json) {
  ClusterSettings settings;
  FS_ASSIGN(settings.cluster, json.string_or("cluster", ""));
  FS_ASSIGN(settings.address, json.string_or("address", ""));
  FS_ASSIGN(const int64_t port, json.int_or("port", 0));
  FS_ASSIGN(settings.advertise, json.string_or("advertise", ""));
  if (settings.cluster.empty() || settings.address.empty() || settings.advertise.empty() ||
      port < 1 || port > 65535)
    return Error{ErrorCode::kCorrupt, "lacks a cluster, an address or a port", "", ""};
  settings.port = static_cast<int>(port);
  return settings;
}

Json to_json(const ClusterSettings& settings) {
  return Json::object({{"format", kFormat},
                       {"cluster", settings.cluster},
                       {"address", settings.address},
                       {"port", settings.port},
                       {"advertise", settings.advertise}});
}

Error no_cluster(const Path& folder) {
  return {ErrorCode::kNotFound, "holds no cluster", folder.string(),
          "fsctl cluster init makes one; with --store name the folder that has it"};
}

/// Folders of clusters whose making was cut short. One that is being made is seconds old.
void remove_half_made(const Path& root) {
  std::error_code error;
  const auto long_ago = std::filesystem::file_time_type::clock::now() - std::chrono::hours(1);
  for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
    if (!entry.path().filename().string().starts_with("cluster.init-")) continue;
    const auto made = std::filesystem::last_write_time(entry.path(), error);
    if (!error && made < long_ago) std::filesystem::remove_all(entry.path(), error);
  }
}

/// Where a host reaches what listens at `address`.
std::string own_host(const std::string& address) {
  if (address == "0.0.0.0" || address == "localhost") return "127.0.0.1";
  return address == "::" ? "::1" : address;
}

}  // namespace

Result<ClusterSettings> read_cluster_settings(const Path& root) {
  const Path path = ClusterFolder::path_in(root) / kSettings;
  auto json = read_document(path);
  if (!json.ok() && json.error().code == ErrorCode::kNotFound)
    return no_cluster(ClusterFolder::path_in(root));
  if (!json.ok()) return json.error();
  auto settings = settings_from(*json);
  if (!settings.ok()) return with_path(std::move(settings).error(), path);
  return settings;
}

Result<std::unique_ptr<ClusterFolder>> ClusterFolder::open(const Path& root) {
  const Path folder = path_in(root);
  FS_ASSIGN(ClusterSettings settings, read_cluster_settings(root));
  auto lock = FileLock::acquire(folder / "lock");
  if (!lock.ok()) {
    Error error = std::move(lock).error();
    if (error.code == ErrorCode::kUnavailable)
      error.hint = "one coordinator at a time may work on a cluster: stop that process first";
    return error;
  }
  FS_ASSIGN(auto authority, CertificateAuthority::load(folder / "authority"));
  if (authority.cluster() != settings.cluster)
    return Error{ErrorCode::kCorrupt, "the authority is another cluster's than the settings",
                 folder.string(), "restore this folder from a backup, all of it from one time"};
  FS_ASSIGN(auto state, open_state_store(folder / "state"));
  return std::unique_ptr<ClusterFolder>(new ClusterFolder(
      folder, std::move(*lock), std::move(settings), std::move(authority), std::move(state)));
}

Result<Identity> ClusterFolder::make_identity(int64_t now_unix) const {
  FS_ASSIGN(KeyAndRequest made, make_key_and_request());
  const NodeClaim claim{
      authority_.cluster(), kCoordinatorName, {"coordinator"}, now_unix + kCertificateSeconds};
  FS_ASSIGN(std::string certificate, authority_.sign(made.request, claim, now_unix));
  return Identity{std::move(certificate), std::move(made.key), authority_.certificate()};
}

Status write_admin_token(const Path& folder, Membership& members) {
  for (const TokenRecord& token : members.tokens())
    if (token.label == kOwnLabel) FS_TRY(members.revoke_token(token.id));
  FS_ASSIGN(const std::string token, members.make_access_token(AccessRole::kAdmin, 0, kOwnLabel));
  return write_private_file(folder / kAdminToken, token + "\n");
}

Status ClusterFolder::announce(Membership& members, const std::string& address, int port) {
  FS_TRY(write_admin_token(folder_, members));
  const Json running =
      Json::object({{"format", kFormat}, {"host", own_host(address)}, {"port", port}});
  return write_private_file(folder_ / kRunning, running.dump(2) + "\n");
}

void ClusterFolder::withdraw() { ::unlink((folder_ / kRunning).c_str()); }

Result<RunningCoordinator> running_coordinator(const Path& root) {
  const Path folder = ClusterFolder::path_in(root);
  FS_ASSIGN(const Json json, read_document(folder / kRunning));
  RunningCoordinator running;
  FS_ASSIGN(running.host, json.string_or("host", ""));
  FS_ASSIGN(const int64_t port, json.int_or("port", 0));
  running.port = static_cast<int>(port);
  FS_ASSIGN(running.token, read_file(folder / kAdminToken, 4096));
  while (running.token.ends_with('\n')) running.token.pop_back();
  return running;
}

Result<std::vector<TokenRecord>> list_cluster_tokens(const Path& root) {
  FS_TRY(read_cluster_settings(root));
  FS_ASSIGN(const auto state, glance_at_state_store(ClusterFolder::path_in(root) / "state"));
  FS_ASSIGN(const auto records, state->list(TokenRecord::kPrefix));
  std::vector<TokenRecord> tokens;
  for (const auto& [key, value] : records) {
    FS_ASSIGN(TokenRecord token, TokenRecord::decode(value, key));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

Status make_cluster_folder(const Path& root, const ClusterSettings& settings,
                           const std::function<Status(const Path& folder)>& fill) {
  const Path folder = ClusterFolder::path_in(root);
  const Error taken{ErrorCode::kAlreadyExists, "holds a cluster", folder.string(),
                    "fsctl cluster start runs it; to make another, use another --store"};
  std::error_code error;
  if (std::filesystem::exists(folder / kSettings, error)) return taken;
  FS_TRY(make_directories(root));
  remove_half_made(root);
  std::string half_made = (root / "cluster.init-XXXXXX").string();
  if (::mkdtemp(half_made.data()) == nullptr) return errno_error("cannot create a folder", root);
  const Status made = [&]() -> Status {
    FS_TRY(fill(half_made));
    FS_TRY(write_private_file(Path(half_made) / kSettings, to_json(settings).dump(2) + "\n"));
    if (::rename(half_made.c_str(), folder.c_str()) == 0) return sync_directory(root);
    if (errno == ENOTEMPTY || errno == EEXIST) return taken;
    return errno_error("cannot rename into", folder);
  }();
  if (!made.ok()) std::filesystem::remove_all(half_made, error);
  return made;
}

// The node's folder -------------------------------------------------------------------------------

Result<std::unique_ptr<NodeFolder>> NodeFolder::open(const Path& root) {
  const Path folder = path_in(root);
  FS_TRY(make_private_folder(folder));
  auto lock = FileLock::acquire(folder / "lock");
  if (!lock.ok()) {
    Error error = std::move(lock).error();
    if (error.code == ErrorCode::kUnavailable)
      error.hint = "a node runs from this folder: stop it, or give this one another --store";
    return error;
  }
  std::unique_ptr<NodeFolder> opened(new NodeFolder(folder, std::move(*lock)));
  FS_TRY(opened->load());
  return opened;
}

Status NodeFolder::load() {
  const Path path = folder_ / "node.json";
  auto json = read_document(path);
  if (!json.ok() && json.error().code == ErrorCode::kNotFound) return {};
  if (!json.ok()) return json.error();
  const auto read = [&]() -> Status {
    KeyAndRequest key;
    FS_ASSIGN(key.key, json->string_or("key", ""));
    FS_ASSIGN(key.request, json->string_or("request", ""));
    key_ = std::move(key);
    NodeMembership joined;
    FS_ASSIGN(joined.identity.certificate, json->string_or("certificate", ""));
    if (joined.identity.certificate.empty()) return {};
    joined.identity.key = key_->key;
    FS_ASSIGN(joined.identity.authority, json->string_or("authority", ""));
    FS_ASSIGN(joined.cluster, json->string_or("cluster", ""));
    FS_ASSIGN(joined.coordinator, json->string_or("coordinator", ""));
    FS_ASSIGN(joined.name, json->string_or("name", ""));
    if (const Json* roles = json->find_set("roles"); roles != nullptr && roles->is_array())
      for (const Json& role : roles->as_array())
        if (role.is_string()) joined.roles.push_back(role.as_string());
    FS_ASSIGN(const NodeClaim claim, read_claim(joined.identity.certificate));
    if (claim.node != joined.name || claim.cluster != joined.cluster)
      return Error{ErrorCode::kCorrupt, "the certificate is another node's", "", ""};
    membership_ = std::move(joined);
    return {};
  }();
  if (read.ok()) return {};
  Error error = with_path(read.error(), path);
  error.code = ErrorCode::kCorrupt;
  error.hint = "remove the file and let the node join again, with a token";
  return error;
}

Status NodeFolder::write() const {
  Json json = Json::object({{"format", kFormat}, {"key", key_->key}, {"request", key_->request}});
  if (membership_) {
    json.set("certificate", membership_->identity.certificate);
    json.set("authority", membership_->identity.authority);
    json.set("cluster", membership_->cluster);
    json.set("coordinator", membership_->coordinator);
    json.set("name", membership_->name);
    json.set("roles", Json::array_of(membership_->roles));
  }
  return write_private_file(folder_ / "node.json", json.dump(2) + "\n");
}

Result<KeyAndRequest> NodeFolder::join_key() {
  if (!key_) {
    FS_ASSIGN(key_, make_key_and_request());
    if (Status written = write(); !written.ok()) {
      key_.reset();
      return std::move(written).error();
    }
  }
  return *key_;
}

Status NodeFolder::keep(const NodeMembership& membership, const std::string& request) {
  const auto membership_before = membership_;
  const auto key_before = key_;
  membership_ = membership;
  key_ = KeyAndRequest{membership.identity.key, request};
  Status written = write();
  if (!written.ok()) {
    membership_ = membership_before;
    key_ = key_before;
  }
  return written;
}

}  // namespace fastserve
