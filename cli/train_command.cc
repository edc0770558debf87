#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>

#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/device_use.h"
#include "cli/memory_text.h"
#include "cli/training_progress.h"

namespace fastserve {
namespace {

Json to_json(const TrainResult& r) {
  return Json::object({{"model", r.model.text()},
                       {"job", r.job},
                       {"steps", r.steps},
                       {"tokens", r.tokens},
                       {"train_loss", r.train_loss},
                       {"validation_loss", r.validation_loss},
                       {"published_step", r.published_step},
                       {"seconds", r.seconds},
                       {"tokens_per_second", r.tokens_per_second},
                       {"stopped_early", r.stopped_early},
                       {"peak_bytes", r.peak_bytes},
                       {"expected_bytes", r.expected_bytes},
                       {"weights_hash", fmt::format("{:016x}", r.weights_hash)}});
}

void print_result(const TrainResult& r) {
  fmt::print("{}: {} steps, {} tokens in {} ({:.0f} tokens/s); loss {:.4f}, {}{}\n", r.model.text(),
             r.steps, r.tokens, clock_text(r.seconds), r.tokens_per_second, r.train_loss,
             std::isfinite(r.validation_loss) ? fmt::format("validation {:.4f}", r.validation_loss)
                                              : "nothing held out to validate on",
             r.stopped_early ? ", stopped early" : "");
  if (r.published_step != r.steps)
    fmt::print("  published: the weights after step {}, the best on validation\n",
               r.published_step);
  fmt::print("  {}\n", memory_text(r.peak_bytes, r.expected_bytes));
}

}  // namespace

int run_training(const CommandLine& line, const TrainRequest& request) {
  auto node = line.node();
  if (!node.ok()) return fail(line, node.error());
  TrainingProgress shown(line);
  const auto progress = [&](const TrainUpdate& update) { shown.update(update); };
  auto result = (*node)->train(request, progress, line.cancel);
  shown.clear();
  if (!result.ok()) return fail(line, result.error());
  return finish(line, to_json(*result), [&] { print_result(*result); });
}

void add_train_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("train", "Train a model on your text, or fine-tune one");
  auto request = std::make_shared<TrainRequest>();
  auto precision = std::make_shared<std::string>();
  auto publish = std::make_shared<std::string>();
  auto detach = std::make_shared<bool>(false);
  TrainRequest& r = *request;
  c->add_option("--data", r.data,
                "Folder or file: .txt, .md, .jsonl with a \"text\" field, or token shards (.bin of "
                "nanoGPT or llm.c, .fstok)");
  c->add_option("--model", r.model, "Name to publish under");
  c->add_option("--preset", r.preset, "tiny, small, gpt2, llama-110m, llama-1b")
      ->capture_default_str();
  c->add_option("--from", r.from, "Fine-tune this stored model instead of a preset");
  c->add_option("--resume", r.resume, "Continue an interrupted job (its id: fsctl jobs list)");
  c->add_option("--vocab-size", r.vocab_size,
                "Tokens of the new tokenizer; 0: only the characters seen")
      ->check(CLI::NonNegativeNumber);
  c->add_option("--batch-size", r.batch, "Sequences a step");
  c->add_option("--block", r.block, "Tokens a sequence");
  c->add_option("--steps", r.steps, "Optimiser steps");
  c->add_option("--epochs", r.epochs, "Passes over the data, instead of --steps");
  c->add_option("--accumulate", r.accumulation, "Batches summed into one step");
  c->add_option("--microbatches", r.microbatches,
                "Pieces a step is cut into; part of the result's bits");
  c->add_option("--learning-rate", r.learning_rate, "Peak learning rate");
  c->add_option("--min-learning-rate", r.min_learning_rate,
                "Learning rate at the end of the cosine");
  c->add_option("--warmup", r.warmup_steps, "Steps of linear warm-up");
  c->add_option("--weight-decay", r.weight_decay, "Decoupled decay of matrices");
  c->add_option("--clip", r.clip_norm, "Global gradient norm; 0: no clipping");
  c->add_option("--precision", *precision, "fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  c->add_option("--seed", r.seed, "Same seed, data and settings: same bits")
      ->check(CLI::NonNegativeNumber);
  c->add_option("--evaluate-every", r.evaluate_every, "Steps between evaluations");
  c->add_option("--evaluate-sequences", r.evaluate_sequences, "Of the validation split; 0: all");
  c->add_option("--patience", r.patience, "Evaluations without improvement before stopping");
  c->add_option("--publish", *publish,
                "best: the weights of the best evaluation (default); last: of the last step")
      ->check(CLI::IsMember({"best", "last"}));
  c->add_option("--gradients", r.gradients,
                "Form of gradients between nodes: fp32 (exact, default), bf16, fp16, int8, "
                "topk:FRACTION, sign, lowrank:RANK");
  c->add_option("--weights-back", r.weights_back,
                "Form of weights back to nodes: exact (default), bf16, int8-delta, sign-delta, "
                "topk-delta:FRACTION");
  c->add_option("--consistency", r.consistency,
                "With --cluster: exact (default), stale:S (a node may be S steps ahead), async, or "
                "local:H (H steps alone, then the mean of all)");
  c->add_option("--outer-learning-rate", r.outer_learning_rate,
                "Of local:H: how far to go along the mean (0.7)");
  c->add_option("--outer-momentum", r.outer_momentum, "Of local:H (0.9)");
  c->add_option("--replicas", r.replicas,
                "With --cluster: nodes that hold each part of the parameters beside the first, so "
                "that the loss of one replays nothing (0, default; 1)")
      ->check(CLI::Range(0, 8));
  c->add_option("--reduce", r.reduce,
                "With several cards (--device cuda:all): tree (the bits of one card, default) or "
                "ring (each card sums its own, then all of them by NCCL: other bits)")
      ->check(CLI::IsMember({"tree", "ring"}));
  c->add_option("--checkpoint-every", r.checkpoint_every, "Steps between checkpoints");
  c->add_option("--keep-checkpoints", r.keep_checkpoints, "The newest so many (2)")
      ->check(CLI::Range(1, 1000));
  c->add_option("--checkpoints", r.checkpoints,
                "With --cluster: coordinator (writes them whole, default) or nodes (each writes its "
                "own pieces)")
      ->check(CLI::IsMember({"coordinator", "nodes"}));
  c->add_option("--checkpoint-copies", r.checkpoint_copies,
                "Of --checkpoints nodes: nodes that keep each piece, where there are so many (2)")
      ->check(CLI::Range(1, 2));
  c->add_option("--validation", r.validation_fraction, "Share of the text held out");
  c->add_option("--trainers", r.placement.trainers,
                "Trainer actors; changes speed, never the result")
      ->check(CLI::Range(1, 1024));
  c->add_option("--shards", r.placement.shards, "Parameter-server actors")
      ->check(CLI::Range(1, 1024));
  add_device_use(*c, r.placement);
  c->add_flag("--detach", *detach, "With --cluster: do not wait for the job's end");
  c->footer(
      "Examples:\n"
      "  fsctl train --data texts/ --preset tiny --model poems\n"
      "  fsctl train --data texts/ --from llama@2 --model llama-mine --epochs 3 --learning-rate "
      "2e-5\n"
      "  fsctl train --resume 7f3a91c2               after Ctrl-C or a crash: ends in the same "
      "bits\n"
      "  fsctl train --resume 7f3a91c2 --steps 4000  the same job, made longer\n"
      "  fsctl train --cluster 10.0.0.1:7070 --data /data/texts --model poems --detach\n"
      "With --cluster, paths are those of the coordinator's host, and the job goes on when fsctl "
      "ends.\n"
      "Data: each .txt or .md file and each line of a .jsonl file is a document. Token shards need "
      "a\n"
      "tokenizer.json beside them (or --from). Formats, split and shuffle: docs/training.md.");
  c->callback([&line, &run, request, precision, publish, detach] {
    run = [&line, request, precision, publish, detach] {
      if (!publish->empty()) request->publish_best = *publish == "best";
      if (*precision == "fp32") request->precision = Precision::kFloat32;
      if (*precision == "bf16") request->precision = Precision::kBFloat16;
      if (*precision == "fp16") request->precision = Precision::kFloat16;
      if (request->resume.empty() && (request->data.empty() || request->model.empty()))
        return fail(line, {ErrorCode::kInvalidArgument, "needs --data and --model, or --resume",
                           "train", "see fsctl train --help"});
      request->placement.lanes = line.lanes;
      if (!line.cluster.empty() && (request->placement.optimiser || request->placement.recompute))
        return fail(line, {ErrorCode::kInvalidArgument, "is each node's own affair in a cluster",
                           "--optimiser or --recompute", "leave them out"});
      if (!line.cluster.empty()) return run_cluster_training(line, *request, *detach);
      if (*detach)
        return fail(line, {ErrorCode::kInvalidArgument, "is for jobs of a cluster", "--detach",
                           "give --cluster, too"});
      if (request->checkpoints == "nodes")
        return fail(line, {ErrorCode::kInvalidArgument, "is for jobs of a cluster",
                           "--checkpoints nodes", "give --cluster, too"});
      return run_training(line, *request);
    };
  });
}

}  // namespace fastserve
