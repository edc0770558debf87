#include "api/parity.h"

#include <fmt/format.h>

#include <algorithm>

#include "compress/quant_parity.h"
#include "model/huggingface.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "model/tokenizer/parity.h"
#include "serve/chat_parity.h"
#include "serve/parity.h"

namespace fastserve {
namespace {

using Report = std::function<void(const std::string& subject, const ParityCheck&)>;

/// Letters that a small vocabulary may merge, and one that it may lack.
constexpr const char* kProbe = "abc the aaaab aaaaaaaaaaaaaaaaaaaaaaaa!";

bool has(const Path& directory, const char* file) {
  std::error_code unreadable;
  return std::filesystem::exists(directory / file, unreadable);
}

/// A part that could not be checked at all is a failed check, so that the others still run.
void report_error(const std::string& subject, const Error& error, const Report& report) {
  report(subject, {"can be checked", 1, 0, false, false, error.message()});
}

void check_model_directory(const Path& directory, const std::string& subject, Device& device,
                           const Report& report) {
  auto model = check_model(directory, device, {.bf16 = true});
  if (!model.ok()) return report_error(subject, model.error(), report);
  for (const ParityCheck& check : model->checks) report(subject, check);
  if (!has(directory, "reference.safetensors")) return;
  auto sampling = check_sampling(directory);
  if (!sampling.ok()) return report_error(subject, sampling.error(), report);
  for (const SamplingCheck& c : *sampling)
    report(subject, {c.quantity, c.error, c.tolerance, c.passed, false, c.note});
}

void check_tokenizer_directory(const Path& directory, const std::string& subject,
                               const Report& report) {
  auto result = check_tokenizer_cases(directory);
  if (!result.ok()) return report_error(subject, result.error(), report);
  const std::pair<const char*, ParityCount> kinds[] = {
      {"ids", result->ids},
      {"ids with special tokens added", result->ids_bos},
      {"ids with special tokens as text", result->ids_plain},
      {"decoded", result->decoded},
      {"decoded without special tokens", result->decoded_skip_special},
      {"decoding of given ids", result->decode_cases}};
  for (const auto& [kind, count] : kinds)
    report(subject, {fmt::format("tokenizer: {}, {} cases, differing", kind, count.cases),
                     static_cast<double>(count.mismatches), 0, count.mismatches == 0,
                     count.cases == 0, count.first_mismatch});
}

void check_quantisers(const Path& directory, const std::string& subject, const Report& report) {
  auto checks = check_quantisation(directory);
  if (!checks.ok()) return report_error(subject, checks.error(), report);
  for (const QuantisationCheck& c : *checks)
    report(subject, {c.quantity, c.error, c.tolerance, c.passed, c.skipped,
                     c.skipped ? "listed; this build has no such method" : ""});
}

void check_chats(const Path& directory, const std::string& subject, const Report& report) {
  auto checks = check_chat_templates(directory);
  if (!checks.ok()) return report_error(subject, checks.error(), report);
  for (const ChatTemplateCheck& c : *checks)
    report(subject,
           {fmt::format("chat template {}, {} cases, differing", c.name, c.cases),
            static_cast<double>(c.differing), 0, c.differing == 0, false, c.first_difference});
}

/// Chat templates have cases too, each of which names its template.
bool holds_templates(const Path& directory) {
  std::error_code unreadable;
  if (!has(directory, "cases.jsonl") || has(directory, "tokenizer.json")) return false;
  for (const auto& entry : std::filesystem::directory_iterator(directory, unreadable))
    if (entry.path().extension() == ".jinja") return true;
  return false;
}

/// A tokenizer that loads must also survive a text.
Status load_tokenizer(const Path& path) {
  FS_ASSIGN(const auto tokenizer, Tokenizer::load(path));
  const auto ids = tokenizer->encode(kProbe, {.add_special_tokens = true});
  if (ids.ok()) (void)tokenizer->decode(*ids);  // a text that it cannot spell is no broken file
  return {};
}

/// Loads one entry of a malformed set the way its kind is loaded in earnest.
Status load_entry(const Path& directory, const Path& path, const std::string& kind) {
  if (kind == "tokenizer") return load_tokenizer(path);
  if (kind == "safetensors") {
    auto loaded = SafetensorsFile::open(path);
    return loaded.ok() ? Status() : Status(loaded.error());
  }
  if (kind == "index" || kind == "sharded index") {
    auto loaded = open_safetensors_directory(path);
    return loaded.ok() ? Status() : Status(loaded.error());
  }
  if (kind == "model") {
    auto loaded = read_model_directory(path);
    return loaded.ok() ? Status() : Status(loaded.error());
  }
  // Config cases without weights of their own borrow the set's.
  ModelBundle bundle;
  FS_ASSIGN(bundle.documents["config.json"], read_file(path / "config.json"));
  if (has(path, "model.safetensors")) {
    FS_ASSIGN(bundle.tensors, open_safetensors_directory(path));
  } else {
    FS_ASSIGN(bundle.tensors, SafetensorsFile::open(directory / "config" / "model.safetensors"));
  }
  return check_bundle(bundle);
}

bool is_known(const std::string& kind, const std::string& expected) {
  const auto among = [](const std::string& word, std::initializer_list<const char*> words) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  return among(kind, {"safetensors", "tokenizer", "index", "sharded index", "model", "config"}) &&
         among(expected, {"ok", "clear error", "error or ok"});
}

Status check_malformed(const Path& directory, const std::string& subject, const Report& report) {
  const Path file = directory / "manifest.json";
  FS_ASSIGN(const std::string text, read_file(file));
  FS_ASSIGN(const Json manifest, Json::parse(text, file.string()));
  if (!manifest.is_array())
    return Error{ErrorCode::kCorrupt, "is not a list of cases", file.string(), ""};
  for (const Json& entry : manifest.as_array()) {
    FS_ASSIGN(const std::string path, entry.string_or("path", ""));
    FS_ASSIGN(const std::string kind, entry.string_or("kind", ""));
    FS_ASSIGN(const std::string expected, entry.string_or("expected", ""));
    if (!is_known(kind, expected)) {
      report_error(
          subject + "/" + path,
          {ErrorCode::kUnsupported,
           fmt::format("the kind \"{}\" or the expectation \"{}\" is unknown", kind, expected),
           file.string(), "see the header of api/parity.h"},
          report);
      continue;
    }
    const Status loaded = load_entry(directory, directory / path, kind);
    const bool as_expected = expected == "ok"            ? loaded.ok()
                             : expected == "clear error" ? !loaded.ok()
                                                         : true;
    report(subject + "/" + path,
           {"malformed: expected " + expected, as_expected ? 0.0 : 1.0, 0, as_expected, false,
            loaded.ok() ? "accepted" : loaded.error().message()});
  }
  return {};
}

/// `root` and the folders below it, in order of their names.
std::vector<Path> folders(const Path& root) {
  std::vector<Path> found = {root};
  std::error_code error;
  using Walk = std::filesystem::recursive_directory_iterator;
  const auto options = std::filesystem::directory_options::skip_permission_denied;
  for (Walk at(root, options, error), end; at != end && !error; at.increment(error))
    if (std::error_code unreadable; at->is_directory(unreadable)) found.push_back(at->path());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

Status check_parity(const Path& directory, Device& device, const Report& report) {
  std::error_code unreadable;
  if (!std::filesystem::is_directory(directory, unreadable))
    return Error{ErrorCode::kNotFound, "is not a folder", directory.string(),
                 "name a folder of reference data"};
  bool found = false;
  for (const Path& folder : folders(directory)) {
    const std::string relative = std::filesystem::relative(folder, directory).string();
    const std::string subject = relative == "." ? folder.filename().string() : relative;
    const bool model = has(folder, "reference.json") && has(folder, "config.json");
    const bool tokenizer = has(folder, "tokenizer.json") && has(folder, "cases.jsonl");
    const bool quantisers = has(folder, "quant.safetensors"),
               malformed = has(folder, "manifest.json"), chats = holds_templates(folder);
    found = found || model || tokenizer || quantisers || malformed || chats;
    if (model) check_model_directory(folder, subject, device, report);
    if (tokenizer) check_tokenizer_directory(folder, subject, report);
    if (chats) check_chats(folder, subject, report);
    if (quantisers) check_quantisers(folder, subject, report);
    if (malformed) {
      const Status read = check_malformed(folder, subject, report);
      if (!read.ok()) report_error(subject, read.error(), report);
    }
  }
  if (found) return {};
  return Error{ErrorCode::kNotFound, "holds no reference data", directory.string(),
               "expected a config.json with reference.json, a tokenizer.json with cases.jsonl, a "
               "quant.safetensors, chat templates with cases.jsonl, or a manifest.json"};
}

}  // namespace fastserve
