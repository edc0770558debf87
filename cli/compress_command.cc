#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "api/duty_request.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/compression_report.h"
#include "cli/progress.h"

namespace fastserve {
namespace {

int run_compression(const CommandLine& line, const CompressRequest& request) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  // A bar for each stage, so that each has its own time to go.
  std::optional<ProgressBar> bar;
  std::string shown;
  auto result = (*node)->compress(
      request,
      [&](std::string_view stage, double fraction) {
        if (!bar || stage != shown) bar.emplace(line.progress_wanted(), shown = stage);
        bar->update(fraction);
      },
      line.cancel);
  bar.reset();
  if (!result.ok()) return fail(line, result.error());
  return tell_compressed(line, *result);
}

}  // namespace

void add_compress_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("compress", "Quantise and prune a model under a quality contract");
  struct Arguments {
    CompressRequest request;
    std::string weights = "int8", head, prune = "none";
    bool detach = false;
  };
  auto a = std::make_shared<Arguments>();
  // 0 would be no bound at all, and hardly what is meant.
  const CLI::Validator above_zero(
      [](std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && value > 0) return {};
        return text + " is no bound: give a number above 0";
      },
      "> 0");
  c->add_option("model", a->request.model, "Stored model: name, name@version or name@tag")
      ->required();
  c->add_option("--to,--name", a->request.to,
                "Publish under this name (default: a new version of the model)");
  c->add_option("--weights", a->weights,
                "bf16, f16, f32, int8, int8-g32, int8-g128, int4-g32, int4-g128")
      ->capture_default_str();
  c->add_option("--head", a->head,
                "Format of the output head (default: that of the weights, int8-g128 beside int4)");
  c->add_option("--prune", a->prune, "none, magnitude, wanda, 2:4, wanda-2:4, neurons")
      ->capture_default_str();
  c->add_option("--sparsity", a->request.spec.sparsity,
                "Fraction removed, for magnitude, wanda and neurons")
      ->check(CLI::Range(0.0, 0.99));
  c->add_option("--max-perplexity-increase", a->request.spec.max_perplexity_increase,
                "Refuse above this ratio, e.g. 0.01 for 1 %")
      ->check(above_zero);
  c->add_option("--max-perplexity", a->request.spec.max_perplexity,
                "Refuse above this held-out perplexity")
      ->check(above_zero);
  c->add_option("--max-bytes", a->request.spec.max_bytes, "Refuse above this size, e.g. 700MiB")
      ->transform(CLI::AsSizeValue(true));
  c->add_option("--min-tokens-per-second", a->request.spec.min_tokens_per_second,
                "Refuse when one stream decodes slower than this")
      ->check(above_zero);
  c->add_option("--data", a->request.data,
                "Calibration and held-out text (default: what it was trained on)");
  c->add_flag("--detach", a->detach, "With --cluster: do not wait for the result");
  c->footer(
      "Examples:\n"
      "  fsctl compress poems --weights int8 --to poems-int8 --max-perplexity-increase 0.01\n"
      "  fsctl compress poems --weights int4-g32 --prune neurons --sparsity 0.25 --to poems-small\n"
      "  fsctl compress llama --data wiki/ --weights int4-g128 --max-perplexity-increase 0.03 "
      "--max-bytes 700MiB\n"
      "  fsctl compress poems --weights int8 --to poems-int8 --cluster 10.0.0.1:7070");
  c->callback([&line, &run, a] {
    run = [&line, a] {
      auto weights = parse_weight_format(a->weights);
      if (!weights.ok()) return fail(line, weights.error());
      a->request.spec.weights = *weights;
      if (!a->head.empty()) {
        auto head = parse_weight_format(a->head);
        if (!head.ok()) return fail(line, head.error());
        a->request.spec.head = *head;
      }
      auto prune = parse_pruning_kind(a->prune);
      if (!prune.ok()) return fail(line, prune.error());
      a->request.spec.pruning = *prune;
      if (!line.cluster.empty()) return run_cluster_compression(line, a->request, a->detach);
      if (a->detach) return fail(line, no_cluster("--detach"));
      return run_compression(line, a->request);
    };
  });
}

}  // namespace fastserve
