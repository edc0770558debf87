#include "api/compression_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "api/train_material.h"
#include "model/huggingface.h"

namespace fastserve {
namespace {

using Sequences = CompressionText::Sequences;

constexpr size_t kHeldOutTokens = 65536;  // enough for a perplexity to three digits
constexpr size_t kCalibrationTokens = 32768;

/// Up to `limit` tokens in whole sequences of `length`, spread evenly over `tokens`.
Sequences cut(const TokenArray& tokens, size_t length, size_t limit) {
  const size_t there = tokens.size() / length,
               wanted = std::min(there, std::max<size_t>(1, limit / length));
  Sequences sequences;
  for (size_t i = 0; i < wanted; i++) {
    const size_t from = i * there / wanted * length;
    std::vector<int32_t> sequence(length);
    for (size_t t = 0; t < length; t++) sequence[t] = tokens[from + t];
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

/// Where the text comes from, and how it is split.
struct TextSource {
  Path path;
  double fraction = 0.1;    ///< held out; 0: only files named as validation data are
  std::string fingerprint;  ///< of both splits as training saw them; empty: unknown
};

/// The request's text, or what the model was trained on, split as training split it: so that
/// nothing is measured on text that was learned from.
Result<TextSource> text_source(const Path& data, const StoredModel& model) {
  const Json& details = model.lineage.details;
  TextSource source;
  FS_ASSIGN(const std::string recorded, details.string_or("data", ""));
  if (const Json* spec = details.find_set("spec")) {
    FS_ASSIGN(source.fraction, spec->double_or("validation_fraction", source.fraction));
  }
  source.path = data.empty() ? Path(recorded) : data;
  std::error_code error;
  if (source.path.empty() || !std::filesystem::exists(source.path, error)) {
    if (!data.empty())
      return Error{ErrorCode::kNotFound, "is not there", source.path.string(),
                   "give a file or folder of text"};
    return Error{ErrorCode::kInvalidArgument,
                 recorded.empty() ? "has no record of the text it was trained on"
                                  : "was trained on " + recorded + ", which is not there",
                 model.ref.text(), "name text it has not seen with --data"};
  }
  if (std::filesystem::equivalent(source.path, recorded, error) && !error) {
    FS_ASSIGN(source.fingerprint, details.string_or("data_fingerprint", ""));
  } else if (source.fraction <= 0) {
    source.fraction = 0.1;  // other text: training's choice does not bind it
  }
  return source;
}

Result<std::shared_ptr<const Tokenizer>> tokenizer_of(const StoredModel& model) {
  const auto json = model.bundle.documents.find("tokenizer.json");
  if (json == model.bundle.documents.end())
    return Error{ErrorCode::kInvalidArgument, "has no tokenizer.json", model.ref.text(),
                 "import it with its tokenizer"};
  return Tokenizer::from_json(json->second, model.ref.text() + "/tokenizer.json");
}

Status check_same_text(const Dataset& dataset, const TextSource& source, const StoredModel& model) {
  if (source.fingerprint.empty() || source.fingerprint == fingerprint_text(dataset)) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("was trained on {}, which has changed since: the part held out now may "
                           "hold text that was learned from",
                           source.path.string()),
               model.ref.text(), "name text it has not seen with --data, in another folder"};
}

Error malformed(const char* what) {
  return {ErrorCode::kCorrupt, what, "the text to measure on",
          "the coordinator may be of another version"};
}

void put(std::string& out, uint32_t number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void put(std::string& out, const Sequences& sequences) {
  put(out, static_cast<uint32_t>(sequences.size()));
  for (const auto& sequence : sequences) {
    put(out, static_cast<uint32_t>(sequence.size()));
    out.append(reinterpret_cast<const char*>(sequence.data()), sequence.size() * sizeof(int32_t));
  }
}

Result<uint32_t> take_number(std::string_view& rest) {
  uint32_t number = 0;
  if (rest.size() < sizeof number) return malformed("ends in the middle");
  std::memcpy(&number, rest.data(), sizeof number);
  rest.remove_prefix(sizeof number);
  return number;
}

Result<Sequences> take_sequences(std::string_view& rest) {
  FS_ASSIGN(const uint32_t count, take_number(rest));
  if (count > rest.size() / sizeof(uint32_t)) return malformed("has more sequences than bytes");
  Sequences sequences;
  for (uint32_t i = 0; i < count; i++) {
    FS_ASSIGN(const uint32_t length, take_number(rest));
    if (length > rest.size() / sizeof(int32_t)) return malformed("ends in the middle");
    std::vector<int32_t> sequence(length);
    if (length > 0) std::memcpy(sequence.data(), rest.data(), length * sizeof(int32_t));
    rest.remove_prefix(length * sizeof(int32_t));
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

}  // namespace

Json CompressionText::to_json() const {
  size_t tokens = 0;
  for (const auto& sequence : held_out) tokens += sequence.size();
  return Json::object({{"path", path}, {"held_out_tokens", tokens}});
}

std::string CompressionText::encode() const {
  std::string out;
  put(out, static_cast<uint32_t>(path.size()));
  out += path;
  put(out, held_out);
  put(out, calibration);
  return out;
}

Result<CompressionText> CompressionText::decode(std::string_view bytes) {
  CompressionText text;
  FS_ASSIGN(const uint32_t length, take_number(bytes));
  if (length > bytes.size()) return malformed("ends in the middle");
  text.path = bytes.substr(0, length);
  bytes.remove_prefix(length);
  FS_ASSIGN(text.held_out, take_sequences(bytes));
  FS_ASSIGN(text.calibration, take_sequences(bytes));
  if (!bytes.empty()) return malformed("goes on after its end");
  return text;
}

Result<CompressionText> compression_text(const Path& data, const StoredModel& model) {
  constexpr int kLongest = 1024, kShortest = 256;
  FS_ASSIGN(const TextSource source, text_source(data, model));
  FS_ASSIGN(const ModelConfig config, bundle_config(model.bundle));
  FS_ASSIGN(const auto tokenizer, tokenizer_of(model));
  FS_ASSIGN(const Dataset dataset, tokenise_corpus(source.path, *tokenizer, source.fraction, 1));
  FS_TRY(check_same_text(dataset, source, model));
  const size_t there = dataset.validation.size();
  if (there == 0)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("was trained on all of {}: nothing was held out to measure on",
                             source.path.string()),
                 model.ref.text(), "name text it has not seen with --data"};
  const auto longest = static_cast<size_t>(std::min(config.max_positions, kLongest));
  const auto shortest = std::min<size_t>(longest, kShortest);
  if (there < shortest || dataset.train.size() < shortest)
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("leaves {} held-out tokens and {} to calibrate on; each needs {}",
                             there, dataset.train.size(), shortest),
                 source.path.string(), "give more text with --data"};
  return CompressionText{
      source.path.string(), cut(dataset.validation, std::min(longest, there), kHeldOutTokens),
      cut(dataset.train, std::min(longest, dataset.train.size()), kCalibrationTokens)};
}

}  // namespace fastserve
