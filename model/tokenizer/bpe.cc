#include "model/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

constexpr size_t kCutAbove = 16;  ///< shorter pieces are merged whole

/// The only leaf that a token starts or ends with; kNone before one is known.
constexpr int32_t kNone = -1, kSeveral = -2;

/// Notes that one of a token's ends is the leaf `found`; true when that is news.
bool widen(int32_t& known, int32_t found) {
  if (found == kNone || known == found || known == kSeveral) return false;
  known = known == kNone ? found : kSeveral;
  return true;
}

Status refuse_if_set(const Section& model, std::string_view key) {
  FS_ASSIGN(const std::string value, model.text(key, ""));
  if (value.empty()) return {};
  return model.unsupported(fmt::format("\"{}\": \"{}\" is not supported", key, value));
}

Result<UnknownPolicy> parse_policy(const Section& model) {
  UnknownPolicy policy;
  FS_ASSIGN(policy.byte_fallback, model.flag("byte_fallback", false));
  FS_ASSIGN(policy.fuse_unk, model.flag("fuse_unk", false));
  if (model.json.find_set("unk_token") != nullptr) {
    FS_ASSIGN(policy.unk_token, model.text("unk_token", ""));
  }
  return policy;
}

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, UnknownPolicy policy)
    : vocabulary_(std::move(vocabulary)), leaves_(vocabulary_, std::move(policy)) {}

Result<Bpe> Bpe::parse(const Section& model) {
  if (!model.json.is_object()) return model.corrupt("is not an object");
  FS_ASSIGN(const std::string type, model.text("type", "BPE"));  // old files leave it out
  if (type != "BPE")
    return model.unsupported(fmt::format("the model type \"{}\" is not supported", type));
  FS_TRY(refuse_if_set(model, "continuing_subword_prefix"));
  FS_TRY(refuse_if_set(model, "end_of_word_suffix"));
  if (const Json* dropout = model.json.find_set("dropout");
      dropout != nullptr && !(dropout->is_number() && dropout->as_double() == 0))
    return model.unsupported("\"dropout\" is not supported: encoding would be random");
  const Json* tokens = model.json.find_set("vocab");
  if (tokens == nullptr) return model.corrupt("has no \"vocab\"");
  FS_ASSIGN(Vocabulary vocabulary, Vocabulary::parse({*tokens, model.where + ": vocab"}));
  FS_ASSIGN(UnknownPolicy policy, parse_policy(model));
  Bpe bpe(std::move(vocabulary), std::move(policy));
  FS_TRY(bpe.add_merges(model));
  FS_ASSIGN(bpe.ignore_merges_, model.flag("ignore_merges", false));
  if (bpe.ignore_merges_) bpe.index_whole_words();
  return bpe;
}

Status Bpe::add_merges(const Section& model) {
  FS_ASSIGN(const Json::Array* list, model.required_list("merges"));
  merges_ = PairTable<Merge>(list->size());
  std::vector<std::array<int32_t, 3>> merges;
  merges.reserve(list->size());
  uint32_t rank = 0;
  for (const Json& item : *list) {
    std::string_view left, right;
    if (item.is_string()) {
      const std::string_view line = item.as_string();
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos)
        return model.corrupt(fmt::format("merge {}, \"{}\", is not two tokens", rank, line));
      left = line.substr(0, space), right = line.substr(space + 1);
    } else if (item.is_array() && item.as_array().size() == 2 && item.as_array()[0].is_string() &&
               item.as_array()[1].is_string()) {
      left = item.as_array()[0].as_string(), right = item.as_array()[1].as_string();
    } else {
      return model.corrupt(fmt::format("merge {} is not two tokens", rank));
    }
    FS_ASSIGN(const auto merge, resolve(model, rank, left, right));
    merges_.set(pair_key(merge[0], merge[1]), {rank, merge[2]});
    merges.push_back(merge);
    rank++;
  }
  find_joints(merges);
  return {};
}

Result<std::array<int32_t, 3>> Bpe::resolve(const Section& model, uint32_t rank,
                                            std::string_view left, std::string_view right) const {
  std::array<int32_t, 3> ids{};
  const std::string whole = std::string(left).append(right);
  const std::array<std::string_view, 3> tokens = {left, right, whole};
  for (size_t i = 0; i < 3; i++) {
    const std::optional<int32_t> id = vocabulary_.id(tokens[i]);
    if (!id)
      return model.corrupt(
          fmt::format("merge {}, \"{}\" + \"{}\", needs the token \"{}\", which "
                      "is not in the vocabulary",
                      rank, left, right, tokens[i]));
    ids[i] = *id;
  }
  return ids;
}

void Bpe::find_joints(std::span<const std::array<int32_t, 3>> merges) {
  const auto size = static_cast<size_t>(vocabulary_.end());
  std::vector<int32_t> first(size, kNone), last(size, kNone);
  for (const int32_t id : leaves_.all()) first[static_cast<size_t>(id)] = id;
  last = first;
  // Merges come after the merges they build on, so a second pass finds nothing new as a rule.
  constexpr int kMostPasses = 8;
  bool changed = true;
  for (int pass = 0; changed && pass < kMostPasses; pass++) {
    changed = false;
    for (const auto& [left, right, whole] : merges) {
      const auto at = static_cast<size_t>(whole);
      changed |= widen(first[at], first[static_cast<size_t>(left)]);
      changed |= widen(last[at], last[static_cast<size_t>(right)]);
    }
  }
  cuts_ = !changed;
  for (const auto& [left, right, whole] : merges) {
    const int32_t before = last[static_cast<size_t>(left)];
    const int32_t behind = first[static_cast<size_t>(right)];
    if (before == kSeveral || behind == kSeveral) cuts_ = false;
    if (before >= 0 && behind >= 0) joints_.set(pair_key(before, behind), 1);
  }
}

void Bpe::index_whole_words() {
  byte_words_ = std::make_unique<WordIndex>();
  byte_words_->texts.reserve(vocabulary_.size());  // the index holds views
  byte_words_->ids.reserve(vocabulary_.size());
  for (int32_t id = 0; id < vocabulary_.end(); id++) {
    if (!vocabulary_.has(id)) continue;
    std::optional<std::string> bytes = unspell_bytes(vocabulary_.text(id));
    if (!bytes) continue;
    byte_words_->texts.push_back(*std::move(bytes));
    byte_words_->ids.emplace(byte_words_->texts.back(), id);
  }
}

std::optional<int32_t> Bpe::whole_word(std::string_view piece, bool spelled_as_bytes) const {
  if (!spelled_as_bytes) return vocabulary_.id(piece);
  const auto found = byte_words_->ids.find(piece);
  if (found == byte_words_->ids.end()) return std::nullopt;
  return found->second;
}

Status Bpe::encode(std::string_view piece, bool spelled_as_bytes, Run& run,
                   std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = whole_word(piece, spelled_as_bytes)) {
      out.push_back(*id);
      return {};
    }
  }
  run.leaves_.clear();
  FS_TRY(spelled_as_bytes ? leaves_.append_bytes(piece, run.leaves_)
                          : leaves_.append_characters(piece, run.leaves_));
  const std::span<const int32_t> leaves = run.leaves_;
  size_t begin = 0;
  if (cuts_ && leaves.size() > kCutAbove) {
    for (size_t i = 1; i < leaves.size(); i++) {
      if (joints_.contains(pair_key(leaves[i - 1], leaves[i]))) continue;
      merge_chunk(leaves.subspan(begin, i - begin), run, out);
      begin = i;
    }
  }
  merge_chunk(leaves.subspan(begin), run, out);
  return {};
}

void Bpe::merge_chunk(std::span<const int32_t> leaves, Run& run, std::vector<int32_t>& out) const {
  if (leaves.size() < 2) {
    out.insert(out.end(), leaves.begin(), leaves.end());
    return;
  }
  if (const auto known = run.cache_.find(leaves)) {
    out.insert(out.end(), known->begin(), known->end());
    return;
  }
  merge_all(leaves, run);
  const size_t before = out.size();
  for (const Run::Symbol& symbol : run.symbols_)
    if (symbol.id >= 0) out.push_back(symbol.id);
  run.cache_.insert(leaves, std::span(out).subspan(before));
}

bool Bpe::consider(const Run::Symbol& left, size_t position, const Run::Symbol& right,
                   Run& run) const {
  const Merge* merge = merges_.find(pair_key(left.id, right.id));
  if (merge == nullptr) return false;
  run.heap_.push_back({uint64_t{merge->rank} << 32 | position, merge->id});
  return true;
}

void Bpe::merge_all(std::span<const int32_t> leaves, Run& run) const {
  const auto later = [](const Run::Candidate& a, const Run::Candidate& b) {
    return a.order > b.order;
  };
  auto& symbols = run.symbols_;
  auto& heap = run.heap_;
  symbols.clear();
  heap.clear();
  const auto count = static_cast<int32_t>(leaves.size());
  for (int32_t i = 0; i < count; i++)
    symbols.push_back({leaves[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  for (size_t i = 0; i + 1 < symbols.size(); i++) consider(symbols[i], i, symbols[i + 1], run);
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Run::Candidate best = heap.back();
    heap.pop_back();
    const size_t at = best.order & 0xFFFFFFFF;
    Run::Symbol& left = symbols[at];
    if (left.id < 0 || left.next < 0) continue;
    Run::Symbol& right = symbols[static_cast<size_t>(left.next)];
    const Merge* merge = merges_.find(pair_key(left.id, right.id));
    if (merge == nullptr || merge->id != best.id) continue;  // an older pair stood here

    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) {
      Run::Symbol& behind = symbols[static_cast<size_t>(left.next)];
      behind.previous = static_cast<int32_t>(at);
      if (consider(left, at, behind, run)) std::push_heap(heap.begin(), heap.end(), later);
    }
    if (left.previous >= 0) {
      const auto before = static_cast<size_t>(left.previous);
      if (consider(symbols[before], before, left, run))
        std::push_heap(heap.begin(), heap.end(), later);
    }
  }
}

}  // namespace fastserve
