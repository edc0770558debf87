#include "train/checkpoint_pieces.h"

#include <fmt/format.h>

#include <algorithm>

namespace fastserve {
namespace {

constexpr size_t kMostPieces = 1 << 16, kMostHolders = 16, kLongestName = 256;

Error bad_set(std::string what, const std::string& where) {
  return {ErrorCode::kCorrupt, std::move(what), where, "an older checkpoint is used instead"};
}

Result<uint64_t> whole_number(const Json& json, const char* key, const std::string& where) {
  FS_ASSIGN(const int64_t value, json.int_or(key, -1));
  if (value < 0) return bad_set(fmt::format("has no `{}`", key), where);
  return static_cast<uint64_t>(value);
}

Result<PieceSet::Piece> read_piece(const Json& json, const std::string& where) {
  PieceSet::Piece piece;
  FS_ASSIGN(piece.begin, whole_number(json, "begin", where));
  FS_ASSIGN(piece.end, whole_number(json, "end", where));
  FS_ASSIGN(piece.hash, json.string_or("xxh3_128", ""));
  if (piece.hash.size() != 32) return bad_set("has a piece without a checksum", where);
  const Json* holders = json.find("nodes");
  if (holders == nullptr || !holders->is_array() || holders->as_array().empty() ||
      holders->as_array().size() > kMostHolders)
    return bad_set("has a piece that no node holds", where);
  for (const Json& holder : holders->as_array()) {
    if (!holder.is_string() || holder.as_string().empty() ||
        holder.as_string().size() > kLongestName)
      return bad_set("has a piece whose node has no name", where);
    piece.holders.push_back(holder.as_string());
  }
  return piece;
}

}  // namespace

Json PieceSet::to_json() const {
  Json::Array all;
  for (const Piece& piece : pieces)
    all.push_back(Json::object({{"begin", piece.begin},
                                {"end", piece.end},
                                {"xxh3_128", piece.hash},
                                {"nodes", Json::array_of(piece.holders)}}));
  // As text: a JSON number may lose some of 64 bits.
  return Json::object({{"incarnation", fmt::format("{:016x}", incarnation)},
                       {"step", step},
                       {"best", best},
                       {"pieces", Json(std::move(all))}});
}

Result<PieceSet> PieceSet::from_json(const Json& json, const std::string& where) {
  PieceSet set;
  FS_ASSIGN(const std::string incarnation, json.string_or("incarnation", ""));
  if (incarnation.size() != 16 ||
      incarnation.find_first_not_of("0123456789abcdef") != std::string::npos)
    return bad_set("does not say which incarnation wrote its pieces", where);
  set.incarnation = std::strtoull(incarnation.c_str(), nullptr, 16);
  FS_ASSIGN(const uint64_t step, whole_number(json, "step", where));
  set.step = static_cast<int64_t>(step);
  FS_ASSIGN(set.best, json.bool_or("best", false));
  const Json* pieces = json.find("pieces");
  if (pieces == nullptr || !pieces->is_array() || pieces->as_array().empty() ||
      pieces->as_array().size() > kMostPieces)
    return bad_set("has no pieces", where);
  for (const Json& described : pieces->as_array()) {
    FS_ASSIGN(Piece piece, read_piece(described, where));
    if (piece.begin != set.elements() || piece.end <= piece.begin)
      return bad_set(fmt::format("has pieces that do not join at element {}", set.elements()),
                     where);
    set.pieces.push_back(std::move(piece));
  }
  return set;
}

void PieceCollection::add(const PieceReport& report) {
  if (!is_of(report.piece) || error_) return;
  if (report.error) {
    error_ = report.error;
    return;
  }
  Known& known = pieces_[report.piece.begin];
  const bool first = known.end == 0;
  if (first) known.end = report.piece.end;
  const auto other = std::ranges::find_if(
      known.hashes, [&](const auto& entry) { return entry.second != report.hash; });
  if (known.end != report.piece.end || other != known.hashes.end()) {
    error_ = Error{
        ErrorCode::kCorrupt,
        fmt::format("kept other bytes of elements {} to {} than node {}", report.piece.begin,
                    report.piece.end, other != known.hashes.end() ? other->first : known.owner),
        "node " + report.node, ""};
    return;
  }
  known.hashes[report.node] = report.hash;
  if (!report.owner) return;
  known.owner = report.node;
  known.copied_to = report.copied_to;
}

bool PieceCollection::whole(const Known& piece) const {
  return !piece.owner.empty() &&
         (piece.copied_to.empty() || piece.hashes.contains(piece.copied_to));
}

bool PieceCollection::complete() const {
  uint64_t at = 0;
  for (const auto& [begin, piece] : pieces_) {
    if (begin != at || !whole(piece)) return false;
    at = piece.end;
  }
  return at == elements_ && !error_;
}

bool PieceCollection::has(uint64_t begin, const std::string& node) const {
  const auto piece = pieces_.find(begin);
  return piece != pieces_.end() && piece->second.hashes.contains(node);
}

std::set<std::string> PieceCollection::copies_missing() const {
  std::set<std::string> nodes;
  for (const auto& [begin, piece] : pieces_)
    if (!piece.owner.empty() && !whole(piece)) nodes.insert(piece.copied_to);
  return nodes;
}

PieceSet PieceCollection::set(bool best) const {
  PieceSet set{incarnation_, step_, best, {}};
  for (const auto& [begin, piece] : pieces_) {
    PieceSet::Piece entry{begin, piece.end, piece.hashes.at(piece.owner), {piece.owner}};
    if (!piece.copied_to.empty()) entry.holders.push_back(piece.copied_to);
    set.pieces.push_back(std::move(entry));
  }
  return set;
}

PieceCollection& PieceCollector::collection(Name name) {
  constexpr size_t kMost = 4;  // one is at work, and reports of another may come late
  const auto at = all_.try_emplace(name, name.first, name.second, elements_).first;
  while (all_.size() > kMost)
    all_.erase(all_.begin() == at ? std::next(all_.begin()) : all_.begin());
  return at->second;
}

void PieceCollector::add(const PieceReport& report) {
  if (report.piece.job == job_)
    collection({report.piece.incarnation, report.piece.step}).add(report);
}

void PieceCollector::give_up_lost() {
  if (!wanted_) return;
  PieceCollection& pieces = collection(*wanted_);
  for (const std::string& node : pieces.copies_missing())
    if (lost_.contains(node))
      pieces.add({{job_, wanted_->first, wanted_->second, 0, 0},
                  node,
                  false,
                  "",
                  "",
                  Error{ErrorCode::kUnavailable, "was lost before it had its copies on its disk",
                        "node " + node, ""}});
}

std::set<std::string> PieceCollector::missing() {
  std::set<std::string> nodes;
  if (!wanted_) return nodes;
  const PieceCollection& pieces = collection(*wanted_);
  for (const auto& [begin, node] : expected_)
    if (!pieces.has(begin, node)) nodes.insert(node);
  return nodes;
}

std::optional<Result<PieceSet>> PieceCollector::take_ended(bool best) {
  if (!wanted_) return std::nullopt;
  const PieceCollection& pieces = collection(*wanted_);
  if (!pieces.complete() && !pieces.error()) return std::nullopt;
  wanted_.reset();
  lost_.clear();
  if (pieces.error()) return Result<PieceSet>(*pieces.error());
  return Result<PieceSet>(pieces.set(best));
}

std::vector<std::string> copy_places(const std::vector<std::string>& owners, int copies) {
  std::vector<std::string> places(owners.size());
  const std::set<std::string> nodes(owners.begin(), owners.end());
  if (copies < 2 || nodes.size() < 2) return places;
  for (size_t i = 0; i < owners.size(); i++) {
    const auto next = nodes.upper_bound(owners[i]);
    places[i] = next != nodes.end() ? *next : *nodes.begin();
  }
  return places;
}

void PieceHoldings::connected(const std::string& node, const std::vector<PieceName>& pieces) {
  nodes_[node] = {pieces.begin(), pieces.end()};
}

std::vector<std::string> PieceHoldings::holders(const PieceName& piece,
                                                const std::vector<std::string>& first) const {
  std::vector<std::string> found;
  const auto look = [&](const std::string& node) {
    const auto it = nodes_.find(node);
    if (it == nodes_.end() || !it->second.contains(piece) || damaged_.contains({node, piece}))
      return;
    if (std::ranges::find(found, node) == found.end()) found.push_back(node);
  };
  for (const std::string& node : first) look(node);
  for (const auto& [node, pieces] : nodes_) look(node);
  return found;
}

PieceVerdict judge(const std::string& job, const PieceSet& set, const PieceHoldings& holdings) {
  PieceVerdict verdict;
  for (size_t i = 0; i < set.pieces.size(); i++) {
    const PieceSet::Piece& piece = set.pieces[i];
    if (!holdings.holders(set.name(job, i), piece.holders).empty()) continue;
    bool may_come = false;
    for (const std::string& node : piece.holders) {
      if (holdings.is_connected(node)) continue;
      may_come = true;
      verdict.away.insert(node);
    }
    if (may_come) continue;
    verdict.kind = PieceVerdict::Kind::kLost;
    verdict.lost =
        fmt::format("elements {} to {} of node{} {}", piece.begin, piece.end,
                    piece.holders.size() > 1 ? "s" : "", fmt::join(piece.holders, " and "));
    return verdict;
  }
  if (!verdict.away.empty()) verdict.kind = PieceVerdict::Kind::kAway;
  return verdict;
}

CheckpointChoice choose_checkpoint(const std::vector<PieceVerdict>& verdicts, bool patient) {
  using Kind = PieceVerdict::Kind;
  CheckpointChoice choice;
  for (size_t i = 0; i < verdicts.size(); i++) {
    const bool waiting = choice.kind == CheckpointChoice::Kind::kWait;
    if (verdicts[i].kind == Kind::kWhole && !(waiting && patient))
      return {CheckpointChoice::Kind::kTake, i, {}};
    if (verdicts[i].kind != Kind::kAway || waiting) continue;
    choice.kind = CheckpointChoice::Kind::kWait;
    choice.away = verdicts[i].away;
  }
  return choice;
}

}  // namespace fastserve
