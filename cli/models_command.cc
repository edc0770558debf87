#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <ctime>
#include <map>

#include "cli/cluster_models.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "store/model_row.h"

namespace fastserve {
namespace {

std::string date_text(int64_t unix_seconds) {
  const std::time_t t = unix_seconds;
  std::tm parts{};
  gmtime_r(&t, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &parts);
  return text;
}

int list_models(const CommandLine& line, ModelShelf& store) {
  auto models = store.list();
  if (!models.ok()) return fail(line, models.error());
  Json::Array rows;
  for (const ModelInfo& m : *models) rows.push_back(model_row(m));
  return finish(line, rows, [&] {
    if (models->empty())
      fmt::print("no models yet: fsctl train --help, fsctl models import --help\n");
    else
      fmt::print("{:<28} {:>10} {:>9}  {:<10} {:<9} {:<17} {}\n", "MODEL", "PARAMETERS", "SIZE",
                 "FORMAT", "MADE BY", "CREATED (UTC)", "FROM");
    for (const ModelInfo& m : *models) {
      std::string name = m.ref.text() + (m.current ? " *" : "");
      for (const std::string& tag : m.tags) name += " #" + tag;
      fmt::print("{:<28} {:>10} {:>9}  {:<10} {:<9} {:<17} {}\n", name, m.parameters,
                 human_bytes(m.bytes), m.weight_format, m.lineage.made_by,
                 date_text(m.created_unix), m.lineage.parent);
    }
  });
}

/// What a model came from, nearest first, and what was made from it.
struct Family {
  struct Ancestor {
    std::string model, made_by;
    bool there = true;
  };
  std::vector<Ancestor> line;
  std::vector<std::string> derived;
};

Family family_of(const std::vector<ModelInfo>& all, const ModelInfo& model) {
  std::map<std::string, const ModelInfo*> by_name;
  Family family;
  for (const ModelInfo& m : all) {
    by_name[m.ref.text()] = &m;
    if (m.lineage.parent == model.ref.text()) family.derived.push_back(m.ref.text());
  }
  const ModelInfo* at = &model;
  // Bounded, should a damaged record ever make a ring.
  while (at != nullptr && !at->lineage.parent.empty() && family.line.size() <= all.size()) {
    const auto parent = by_name.find(at->lineage.parent);
    const bool there = parent != by_name.end();
    const std::string made_by = there ? parent->second->lineage.made_by : "";
    family.line.push_back({at->lineage.parent, made_by, there});
    at = there ? parent->second : nullptr;
  }
  return family;
}

Json to_json(const Family& family) {
  Json::Array line;
  for (const Family::Ancestor& a : family.line)
    line.push_back(
        Json::object({{"model", a.model}, {"made_by", a.made_by}, {"in_store", a.there}}));
  return Json::object({{"ancestors", line}, {"derived", Json::array_of(family.derived)}});
}

void print_family(const Family& family) {
  for (const Family::Ancestor& a : family.line)
    fmt::print("  from          {} ({})\n", a.model, a.there ? a.made_by : "removed since");
  for (const std::string& model : family.derived) fmt::print("  derived       {}\n", model);
}

int show_model(const CommandLine& line, ModelShelf& store, const ModelRef& ref) {
  auto m = store.show(ref);
  if (!m.ok()) return fail(line, m.error());
  auto all = store.list();
  if (!all.ok()) return fail(line, all.error());
  const Family family = family_of(*all, *m);
  Json document = model_row(*m);
  document.set("lineage", to_json(family));
  return finish(line, document, [&] {
    fmt::print(
        "{}{}\n  architecture  {}\n  parameters    {}\n  format        {}\n  size          {} ({} "
        "not shared)\n"
        "  created       {} UTC\n  made by       {}\n",
        m->ref.text(), m->current ? " (current)" : "", m->architecture, m->parameters,
        m->weight_format, human_bytes(m->bytes), human_bytes(m->unique_bytes),
        date_text(m->created_unix), m->lineage.made_by);
    print_family(family);
    for (const std::string& tag : m->tags) fmt::print("  tag           {}\n", tag);
    if (!m->lineage.details.is_null()) fmt::print("{}\n", m->lineage.details.dump(2));
  });
}

enum class Access { kWhole, kGlance };

/// Runs `work` on the opened store and the parsed reference.
int with_store(const CommandLine& line, const std::string& text,
               const std::function<int(ModelShelf&, const ModelRef&)>& work,
               Access access = Access::kWhole) {
  ModelRef ref;
  if (!text.empty()) {
    auto parsed = ModelRef::parse(text);
    if (!parsed.ok()) return fail(line, parsed.error());
    ref = *parsed;
  }
  if (!line.cluster.empty()) {
    auto client = open_cluster(line);
    if (!client.ok()) return fail(line, client.error());
    ClusterShelf shelf(std::move(*client));
    return work(shelf, ref);
  }
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  auto store = access == Access::kGlance ? (*node)->glance_at_store() : (*node)->open_store();
  if (!store.ok()) return fail(line, store.error());
  return work(**store, ref);
}

int report(const CommandLine& line, const Status& status, const std::string& done) {
  if (!status.ok()) return fail(line, status.error());
  return finish(line, Json::object({{"ok", true}}), [&] { fmt::print("{}\n", done); });
}

/// Every version when `ref` is empty. The first damaged one does not hide the others.
int verify_models(const CommandLine& line, ModelShelf& store, const ModelRef& ref) {
  std::vector<ModelRef> refs = {ref};
  if (ref.name.empty()) {
    auto all = store.list();
    if (!all.ok()) return fail(line, all.error());
    refs.clear();
    for (const ModelInfo& m : *all) refs.push_back(m.ref);
  }
  int code = 0;
  Json::Array whole, damaged;
  for (const ModelRef& one : refs) {
    const auto info = store.show(one);
    ProgressBar bar(line.progress_wanted(), "verify", info.ok() ? info->bytes : 0);
    const Status status = store.verify(
        one, [&](double f) { bar.update(f, one.text()); }, &line.cancel);
    bar.clear();
    if (!status.ok() && (refs.size() == 1 || status.error().code == ErrorCode::kCancelled))
      return fail(line, status.error());
    if (!status.ok()) {
      damaged.push_back(error_json(status.error()));
      code = say(line, status.error());
      continue;
    }
    whole.push_back(one.text());
    if (!line.json) fmt::print("{} is whole\n", one.text());
  }
  const Json document = Json::object({{"ok", code == 0}, {"whole", whole}, {"damaged", damaged}});
  finish(line, document, [] {});
  return code;
}

void add_listing(CLI::App* models, CommandLine& line, Body& run) {
  auto* list = models->add_subcommand(
      "list", "Every version of every model; * marks where a name points, # a tag");
  list->callback([&line, &run] {
    run = [&line] {
      const auto work = [&](ModelShelf& s, const ModelRef&) { return list_models(line, s); };
      return with_store(line, "", work, Access::kGlance);
    };
  });
  auto name = std::make_shared<std::string>();
  auto* show = models->add_subcommand("show", "One model: size, lineage, measurements");
  show->add_option("model", *name)->required();
  show->callback([&line, &run, name] {
    run = [&line, name] {
      const auto work = [&](ModelShelf& s, const ModelRef& r) { return show_model(line, s, r); };
      return with_store(line, *name, work, Access::kGlance);
    };
  });
}

void add_changes(CLI::App* models, CommandLine& line, Body& run) {
  auto name = std::make_shared<std::string>(), other = std::make_shared<std::string>();
  auto* rm = models->add_subcommand("rm", "Remove a version (name@3) or a whole name");
  rm->add_option("model", *name)->required();
  rm->callback([&line, &run, name] {
    run = [&line, name] {
      return with_store(line, *name, [&](ModelShelf& s, const ModelRef& r) {
        auto freed = s.remove(r);
        if (!freed.ok()) return fail(line, freed.error());
        return finish(line, Json::object({{"freed_bytes", *freed}}),
                      [&] { fmt::print("removed {}, {} freed\n", r.text(), human_bytes(*freed)); });
      });
    };
  });
  auto* verify = models->add_subcommand(
      "verify", "Read and check every byte (of all models when none is named)");
  verify->add_option("model", *name);
  verify->callback([&line, &run, name] {
    run = [&line, name] {
      return with_store(
          line, *name, [&](ModelShelf& s, const ModelRef& r) { return verify_models(line, s, r); });
    };
  });
  auto* rename = models->add_subcommand("rename", "Give a model another name");
  rename->add_option("from", *name)->required();
  rename->add_option("to", *other)->required();
  rename->callback([&line, &run, name, other] {
    run = [&line, name, other] {
      return with_store(line, "", [&](ModelShelf& s, const ModelRef&) {
        return report(line, s.rename(*name, *other), *name + " is now " + *other);
      });
    };
  });
  auto* tag = models->add_subcommand("tag", "Name a version: name@3 best");
  tag->add_option("model", *name)->required();
  tag->add_option("tag", *other)->required();
  tag->callback([&line, &run, name, other] {
    run = [&line, name, other] {
      return with_store(line, *name, [&](ModelShelf& s, const ModelRef& r) {
        return report(line, s.tag(r, *other), r.text() + " is tagged " + *other);
      });
    };
  });
  auto* untag = models->add_subcommand("untag", "Take a tag away; the version stays");
  untag->add_option("model", *name, "The model's name")->required();
  untag->add_option("tag", *other)->required();
  untag->callback([&line, &run, name, other] {
    run = [&line, name, other] {
      return with_store(line, *name, [&](ModelShelf& s, const ModelRef& r) {
        return report(line, s.untag(r.name, *other), *other + " is no tag of " + r.name + " now");
      });
    };
  });
  auto* use =
      models->add_subcommand("use", "Point the name at a version (roll back or forward): name@2");
  use->add_option("model", *name)->required();
  use->callback([&line, &run, name] {
    run = [&line, name] {
      return with_store(line, *name, [&](ModelShelf& s, const ModelRef& r) {
        return report(line, s.point(r), r.name + " points to " + r.text());
      });
    };
  });
}

uint64_t bytes_below(const Path& directory) {
  std::error_code none;
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory, none))
    if (const uint64_t size = entry.file_size(none); !none) bytes += size;
  return bytes;
}

int import_model(const CommandLine& line, const std::string& directory, const std::string& name) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  ProgressBar bar(line.progress_wanted(), "import", bytes_below(directory));
  auto ref = (*node)->import_directory(
      directory, name, [&](double f) { bar.update(f); }, line.cancel);
  bar.clear();
  if (!ref.ok()) return fail(line, ref.error());
  return finish(line, Json::object({{"model", ref->text()}}),
                [&] { fmt::print("{}\n", ref->text()); });
}

int export_model(const CommandLine& line, const std::string& model, const std::string& directory,
                 bool keep_quantised) {
  auto ref = ModelRef::parse(model);
  if (!ref.ok()) return fail(line, ref.error());
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  ProgressBar bar(line.progress_wanted(), "export", stored_bytes(line, **node, {model}));
  const Status status = (*node)->export_directory(
      *ref, directory, keep_quantised, [&](double f) { bar.update(f); }, line.cancel);
  bar.clear();
  return report(line, status, model + " written to " + directory);
}

void add_transfer(CLI::App* models, CommandLine& line, Body& run) {
  struct Arguments {
    std::string first, second;
    bool keep_quantised = false;
  };
  auto a = std::make_shared<Arguments>();
  auto* importing = models->add_subcommand("import", "Take in a Hugging Face model directory");
  importing->add_option("directory", a->first, "With config.json, tokenizer.json, *.safetensors")
      ->required();
  importing->add_option("--name", a->second, "Name in the store")->required();
  importing->callback([&line, &run, a] {
    run = [&line, a] {
      return line.cluster.empty() ? import_model(line, a->first, a->second)
                                  : import_into_cluster(line, a->first, a->second);
    };
  });
  auto b = std::make_shared<Arguments>();
  auto* exporting = models->add_subcommand("export", "Write a directory that transformers loads");
  exporting->add_option("model", b->first)->required();
  exporting->add_option("directory", b->second)->required();
  exporting->add_flag("--keep-quantised", b->keep_quantised,
                      "Keep quantised matrices as they are (only FastServe reads them)");
  exporting->callback([&line, &run, b] {
    run = [&line, b] {
      return line.cluster.empty()
                 ? export_model(line, b->first, b->second, b->keep_quantised)
                 : export_from_cluster(line, b->first, b->second, b->keep_quantised);
    };
  });
}

}  // namespace

void add_models_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* models = app.add_subcommand(
      "models", "List, show, verify, rename, tag, point, remove, import and export models");
  models->require_subcommand(1);
  models->fallthrough();
  add_listing(models, line, run);
  add_changes(models, line, run);
  add_transfer(models, line, run);
  models->footer(
      "Examples:\n"
      "  fsctl models list\n"
      "  fsctl models show poems@2\n"
      "  fsctl models import ./Qwen2.5-0.5B --name qwen\n"
      "  fsctl models export poems ./poems-hf\n"
      "  fsctl models use poems@2            # roll back\n"
      "  fsctl models tag poems@2 best       # from now on poems@best, too\n"
      "  fsctl models untag poems best\n"
      "  fsctl models rename poems verses\n"
      "  fsctl models verify\n"
      "  fsctl models rm poems@1\n"
      "  fsctl models list --cluster 10.0.0.1:7070                   # the coordinator's\n"
      "  fsctl models export poems ./poems-hf --cluster 10.0.0.1:7070");
}

}  // namespace fastserve
