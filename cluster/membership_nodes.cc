// Membership's nodes: joining, staying and leaving.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "cluster/membership.h"

namespace fastserve {
namespace {

constexpr int kMostLanes = 4096;
constexpr size_t kLongestVersion = 64;
const std::set<std::string> kRoles = {"trainer", "parameter-server", "compressor", "server"};

bool is_name(const std::string& text) {
  return !text.empty() && text.size() <= 64 && text[0] != '-' && text[0] != '.' &&
         text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
             "-_.") == std::string::npos;
}

/// How a text that is none of ours may be shown.
std::string shown(const std::string& text) {
  return is_name(text) ? text : fmt::format("a name of {} bytes", text.size());
}

Error refused(std::string what, std::string where, std::string hint) {
  return {ErrorCode::kInvalidArgument, std::move(what), std::move(where), std::move(hint)};
}

}  // namespace

bool renewal_due(const NodeClaim& claim, int64_t now_unix) {
  return claim.expires_unix - now_unix <= kCertificateSeconds / 3;
}

Status Membership::check_ask(const JoinAsk& ask) const {
  if (!is_name(ask.name))
    return refused("is no name of a node", shown(ask.name),
                   "--name: up to 64 letters, digits, dots, dashes and underscores");
  if (ask.name == kCoordinatorName)
    return refused("is the coordinator's own name", ask.name, "give the node another --name");
  if (ask.roles.empty() || ask.roles.size() > kRoles.size())
    return refused("has no roles", ask.name, "--roles trainer,parameter-server,compressor,server");
  for (const std::string& role : ask.roles)
    if (!kRoles.contains(role))
      return refused("asks for a role that no node has: " + shown(role), ask.name,
                     "--roles trainer,parameter-server,compressor,server");
  if (ask.lanes < 1 || ask.lanes > kMostLanes)
    return refused(fmt::format("offers {} lanes", ask.lanes), ask.name,
                   fmt::format("--lanes: 1 to {}", kMostLanes));
  if (ask.version.size() > kLongestVersion)
    return refused("has a version of too many characters", ask.name, "update the node");
  return {};
}

Status Membership::check_name_free(const MemberRecord& holder, const std::string& key) const {
  if (std::find(holder.keys.begin(), holder.keys.end(), key) != holder.keys.end()) return {};
  const auto heard = heard_.find(holder.name);
  if (heard == heard_.end() || clock_.now() - heard->second >= kNameHeld) return {};
  return Error{ErrorCode::kAlreadyExists, "another node goes by this name", holder.name,
               fmt::format("give this one another --name; if it is the same machine with a new "
                           "disk, wait until the old node has been silent for {} s, or: fsctl node "
                           "remove {}",
                           std::chrono::duration_cast<std::chrono::seconds>(kNameHeld).count(),
                           holder.name)};
}

Result<std::string> Membership::certify(const MemberRecord& node,
                                        const std::string& request_pem) const {
  const NodeClaim claim{cluster(), node.name, node.roles, node.certificate_expires_unix};
  return authority_.sign(request_pem, claim, clock_.unix_seconds());
}

Result<JoinGrant> Membership::join(const JoinAsk& ask, const std::string& our_version) {
  const std::lock_guard lock(mutex_);
  // The token first: a stranger learns nothing of the names there are.
  FS_ASSIGN(TokenRecord* const token, find_token(ask.token, true));
  FS_TRY(check_ask(ask));
  FS_ASSIGN(const std::string key, key_of_request(ask.request));
  if (key.empty()) return Error{ErrorCode::kResourceExhausted, "no memory for a key", ask.name, ""};
  const auto there = nodes_.find(ask.name);
  const bool again = there != nodes_.end() &&
                     std::find(there->second.keys.begin(), there->second.keys.end(), key) !=
                         there->second.keys.end();
  if (there != nodes_.end()) FS_TRY(check_name_free(there->second, key));

  MemberRecord node = again ? there->second : MemberRecord{};
  node.name = ask.name;
  node.roles = ask.roles;
  node.lanes = ask.lanes;
  node.version = ask.version;
  if (!again) node.joined_unix = clock_.unix_seconds();
  node.certificate_expires_unix = clock_.unix_seconds() + kCertificateSeconds;
  node.keys = {key};
  JoinGrant grant{our_version, cluster(), "", authority_.certificate()};
  FS_ASSIGN(grant.certificate, certify(node, ask.request));

  Changes changes{{node.key(), node.encode()}};
  TokenRecord used = *token;
  if (!again && used.uses_left > 0) {
    used.uses_left--;
    changes[used.key()] =
        used.uses_left > 0 ? std::optional(used.encode()) : std::optional<std::string>();
  }
  FS_TRY(state_.write(changes));
  if (used.uses_left == 0)
    tokens_.erase(used.id);
  else
    *token = used;
  heard_[node.name] = clock_.now();
  nodes_[node.name] = std::move(node);
  return grant;
}

Status Membership::admitted(const NodeClaim& claim) {
  const std::lock_guard lock(mutex_);
  return admit(claim);
}

Status Membership::admit(const NodeClaim& claim) {
  if (claim.cluster != cluster())
    return refused("is of another cluster", claim.node, "let the node join this one");
  const auto found = nodes_.find(claim.node);
  if (found == nodes_.end())
    return refused("is not among the cluster's nodes: it was removed", claim.node,
                   "let it join again, or end it");
  MemberRecord& node = found->second;
  const auto key = std::find(node.keys.begin(), node.keys.end(), claim.key);
  if (claim.key.empty() || key == node.keys.end())
    return refused("another node has joined by this name", claim.node,
                   "let this one join again by another --name, or end it");
  heard_[claim.node] = clock_.now();
  if (key == node.keys.begin() && node.keys.size() > 1) {
    // The node has its next certificate and uses it: the one before it is let in no longer.
    MemberRecord settled = node;
    settled.keys.resize(1);
    // When it cannot be written now, the next connection tries again.
    if (state_.write({{settled.key(), settled.encode()}}).ok()) node = std::move(settled);
  }
  return {};
}

Result<std::string> Membership::renew(const NodeClaim& claim, const std::string& request_pem) {
  const std::lock_guard lock(mutex_);
  FS_TRY(admit(claim));
  FS_ASSIGN(MemberRecord* const node, find_node(claim.node));
  FS_ASSIGN(const std::string key, key_of_request(request_pem));
  if (key.empty()) return Error{ErrorCode::kResourceExhausted, "no memory for a key", "", ""};
  MemberRecord next = *node;
  next.certificate_expires_unix = clock_.unix_seconds() + kCertificateSeconds;
  next.keys = {key};
  if (key != claim.key) next.keys.push_back(claim.key);
  FS_ASSIGN(std::string certificate, certify(next, request_pem));
  FS_TRY(change(next));
  return certificate;
}

void Membership::heard(const std::string& node) {
  const std::lock_guard lock(mutex_);
  if (nodes_.contains(node)) heard_[node] = clock_.now();
}

std::vector<MemberRecord> Membership::nodes() const {
  const std::lock_guard lock(mutex_);
  std::vector<MemberRecord> all;
  for (const auto& [name, node] : nodes_) all.push_back(node);
  return all;
}

Result<MemberRecord*> Membership::find_node(const std::string& name) {
  const auto found = nodes_.find(name);
  if (found != nodes_.end()) return &found->second;
  std::string known;
  for (const auto& [other, node] : nodes_) known += (known.empty() ? "" : ", ") + other;
  return Error{ErrorCode::kNotFound, "no such node", shown(name),
               known.empty() ? "no node has joined yet" : "there are: " + known};
}

Status Membership::change(const MemberRecord& node) {
  FS_TRY(state_.write({{node.key(), node.encode()}}));
  nodes_[node.name] = node;
  return {};
}

Status Membership::set_draining(const std::string& node, bool draining) {
  const std::lock_guard lock(mutex_);
  FS_ASSIGN(const MemberRecord* record, find_node(node));
  MemberRecord changed = *record;
  changed.draining = draining;
  return change(changed);
}

Status Membership::remove(const std::string& node) {
  const std::lock_guard lock(mutex_);
  FS_ASSIGN(const MemberRecord* record, find_node(node));
  FS_TRY(state_.write({{record->key(), std::nullopt}}));
  heard_.erase(node);
  nodes_.erase(node);
  return {};
}

}  // namespace fastserve
