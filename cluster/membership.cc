#include "cluster/membership.h"

#include <fmt/format.h>

#include <algorithm>

#include "cluster/access_role.h"
#include "cluster/tokens.h"

namespace fastserve {
namespace {

constexpr int64_t kShortest = 60, kLongest = 3650 * Membership::kDay;
constexpr int64_t kKeptAfterExpiry = 30 * Membership::kDay;  // in lists, for who wonders
constexpr size_t kIdDigits = 8, kLongestLabel = 128;

Error damaged(std::string what) {
  return {ErrorCode::kCorrupt, std::move(what), "the cluster's state",
          "restore the cluster's folder from a backup, all of it from the same time"};
}

std::string how_to_make(bool joins) {
  return joins ? "make one where the coordinator runs: fsctl cluster token create --kind join"
               : "make one where the coordinator runs: fsctl cluster token create --kind "
                 "read|run|admin";
}

Status check_label(const std::string& label) {
  const bool printable = std::all_of(label.begin(), label.end(), [](char c) {
    return static_cast<unsigned char>(c) >= ' ' && c != 127;
  });
  if (printable && label.size() <= kLongestLabel) return {};
  return Error{ErrorCode::kInvalidArgument, "is no label", "label",
               fmt::format("use up to {} printable characters", kLongestLabel)};
}

}  // namespace

Status Membership::create(StateStore& state, const CertificateAuthority& authority) {
  FS_ASSIGN(const auto there, state.get(ClusterRecord::kKey));
  if (there)
    return Error{ErrorCode::kAlreadyExists, "holds a cluster", "the cluster's state",
                 "use another folder; removing this one ends its cluster"};
  ClusterRecord record;
  record.cluster = authority.cluster();
  return state.write({{ClusterRecord::kKey, record.encode()}});
}

Result<std::unique_ptr<Membership>> Membership::open(StateStore& state, const Clock& clock,
                                                     const CertificateAuthority& authority) {
  FS_ASSIGN(std::string print, fastserve::fingerprint(authority.certificate()));
  std::unique_ptr<Membership> made(new Membership(state, clock, authority, std::move(print)));
  FS_TRY(made->load());
  return made;
}

Status Membership::load() {
  FS_ASSIGN(const auto text, state_.get(ClusterRecord::kKey));
  if (!text) return damaged("holds no cluster");
  FS_ASSIGN(ClusterRecord record, ClusterRecord::decode(*text));
  if (record.cluster != authority_.cluster())
    return damaged(fmt::format("is of cluster {}, and the authority of cluster {}", record.cluster,
                               authority_.cluster()));
  FS_ASSIGN(const auto tokens, state_.list(TokenRecord::kPrefix));
  for (const auto& [key, value] : tokens) {
    FS_ASSIGN(TokenRecord token, TokenRecord::decode(value, key));
    tokens_.emplace(token.id, std::move(token));
  }
  FS_ASSIGN(const auto nodes, state_.list(MemberRecord::kPrefix));
  for (const auto& [key, value] : nodes) {
    FS_ASSIGN(MemberRecord node, MemberRecord::decode(value, key));
    // Each gets its time to come back after the coordinator was away.
    heard_[node.name] = clock_.now();
    nodes_.emplace(node.name, std::move(node));
  }
  last_opened_unix_ = record.opened_unix;
  record.opened_unix = clock_.unix_seconds();
  record.epoch =
      std::max(record.epoch + 1, static_cast<uint64_t>(std::max<int64_t>(record.opened_unix, 0)));
  FS_TRY(state_.write({{ClusterRecord::kKey, record.encode()}}));
  epoch_ = record.epoch;
  return {};
}

// Tokens ------------------------------------------------------------------------------------------

Result<std::string> Membership::make_join_token(int64_t lifetime_seconds, int64_t uses,
                                                const std::string& label) {
  if (uses < 0)
    return Error{ErrorCode::kInvalidArgument, "cannot be negative", "uses",
                 "say how many nodes may join by the token; 0: any number"};
  TokenRecord record;
  record.joins = true;
  record.label = label;
  record.uses_left = uses == 0 ? -1 : uses;
  return make(std::move(record), lifetime_seconds == 0 ? kJoinSeconds : lifetime_seconds);
}

Result<std::string> Membership::make_access_token(AccessRole role, int64_t lifetime_seconds,
                                                  const std::string& label) {
  TokenRecord record;
  record.role = role;
  record.label = label;
  return make(std::move(record), lifetime_seconds == 0 ? kAccessSeconds : lifetime_seconds);
}

Result<std::string> Membership::make(TokenRecord record, int64_t lifetime_seconds) {
  if (lifetime_seconds < kShortest || lifetime_seconds > kLongest)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} seconds are too {}", lifetime_seconds,
                             lifetime_seconds < kShortest ? "short" : "long"),
                 "lifetime", "give a token between a minute and ten years"};
  FS_TRY(check_label(record.label));
  const std::lock_guard lock(mutex_);
  Token token;
  do {
    token = make_token(record.joins ? Token::Kind::kJoin : Token::Kind::kAccess, fingerprint_);
    record.hash = secret_hash(token.secret);
    record.id = record.hash.substr(0, kIdDigits);
  } while (tokens_.contains(record.id));
  record.created_unix = time_.unix_seconds();
  record.expires_unix = record.created_unix + lifetime_seconds;
  Changes changes{{record.key(), record.encode()}};
  std::vector<std::string> dropped;
  for (const auto& [id, old] : tokens_) {
    if (old.expires_unix + kKeptAfterExpiry > record.created_unix) continue;
    changes[old.key()] = std::nullopt;
    dropped.push_back(id);
  }
  FS_TRY(state_.write(changes));
  for (const std::string& id : dropped) tokens_.erase(id);
  tokens_.emplace(record.id, std::move(record));
  return token.text();
}

Result<TokenRecord*> Membership::find_token(const std::string& text, bool joins) {
  FS_ASSIGN(const Token token,
            parse_token(text, joins ? Token::Kind::kJoin : Token::Kind::kAccess));
  const auto refused = [&](std::string what) {
    return Error{ErrorCode::kInvalidArgument, std::move(what), "the token", how_to_make(joins)};
  };
  if (!equal_in_constant_time(token.authority, fingerprint_))
    return refused("is of another cluster");
  const std::string hash = secret_hash(token.secret);
  TokenRecord* found = nullptr;
  for (auto& [id, record] : tokens_)
    if (equal_in_constant_time(record.hash, hash) && record.joins == joins) found = &record;
  if (found == nullptr) return refused("is not known here: it was revoked or used up");
  if (found->expires_unix <= time_.unix_seconds())
    return refused(fmt::format("has expired ({})", found->id));
  return found;
}

Result<Membership::Access> Membership::access(const std::string& token) {
  const std::lock_guard lock(mutex_);
  FS_ASSIGN(const TokenRecord* record, find_token(token, false));
  return Access{record->role, record->id, record->label};
}

std::vector<TokenRecord> Membership::tokens() const {
  const std::lock_guard lock(mutex_);
  std::vector<TokenRecord> all;
  for (const auto& [id, record] : tokens_) all.push_back(record);
  std::stable_sort(all.begin(), all.end(), [](const TokenRecord& a, const TokenRecord& b) {
    return a.created_unix < b.created_unix;
  });
  return all;
}

Status Membership::revoke_token(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = tokens_.find(id);
  if (found == tokens_.end())
    return Error{ErrorCode::kNotFound, "no such token", id,
                 "fsctl cluster token list shows those there are"};
  FS_TRY(state_.write({{found->second.key(), std::nullopt}}));
  tokens_.erase(found);
  return {};
}

// Clocks ------------------------------------------------------------------------------------------

std::string Membership::clock_note() {
  constexpr int64_t kNoticed = 60;
  const std::lock_guard lock(mutex_);
  const int64_t now = time_.unix_seconds();
  if (time_.behind() > kNoticed)
    return fmt::format(
        "the coordinator's clock was set back by {} s; tokens expire by the time it "
        "showed before",
        time_.behind());
  if (last_opened_unix_ > now + kNoticed)
    return fmt::format(
        "the coordinator's clock is {} s behind what it was when the coordinator "
        "was last started",
        last_opened_unix_ - now);
  return {};
}

}  // namespace fastserve
