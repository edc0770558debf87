#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "cli/command.h"
#include "cli/generation.h"

namespace fastserve {
namespace {

struct Arguments {
  std::string model, connect, kv, prompt, prompt_file, system;
  GenerateRequest request;
  double timeout_seconds = 0;
};

void add_sampling_options(CLI::App* c, const std::shared_ptr<Arguments>& a) {
  SamplingParameters& s = a->request.sampling;
  c->add_option("model,--model", a->model,
                "Stored model, run in this process unless a deployment serves it; with --cluster "
                "one that is deployed there");
  c->add_option("--connect", a->connect, "HOST:PORT of a deployment");
  c->add_option("--kv", a->kv,
                "How this process keeps keys and values: f16 (default), f32 or int8");
  c->add_option("--max-tokens", a->request.max_tokens, "Longest answer")->capture_default_str();
  c->add_option("--temperature", s.temperature, "0: always the likeliest token")
      ->capture_default_str();
  c->add_option("--top-k", s.top_k, "Only the k likeliest; 0: off")->capture_default_str();
  c->add_option("--top-p", s.top_p, "Smallest set with this mass")->capture_default_str();
  c->add_option("--min-p", s.min_p, "Relative to the likeliest")->capture_default_str();
  c->add_option("--repetition-penalty", s.repetition_penalty, "Over prompt and answer")
      ->capture_default_str();
  c->add_option("--seed", s.seed, "Same seed: same answer")->capture_default_str();
  c->add_option("--stop", a->request.stop, "End before this text (may repeat)");
  c->add_flag("--ignore-eos", a->request.ignore_eos, "Go on past the end-of-text token");
  c->add_option("--timeout", a->timeout_seconds, "Seconds until the answer is cut off");
}

Status settle(Arguments& a) {
  FS_ASSIGN(a.request.timeout, timeout_from_seconds(a.timeout_seconds));
  return {};
}

/// The tokens' ids; with their log-probabilities when those were asked for.
Json tokens_json(const std::vector<GeneratedToken>& tokens, bool logprobs) {
  Json::Array out;
  for (const GeneratedToken& t : tokens) {
    if (!logprobs) {
      out.push_back(Json::object({{"token", t.token}}));
      continue;
    }
    Json::Array top;
    for (const TokenLogprob& p : t.top)
      top.push_back(Json::object({{"token", p.token}, {"logprob", p.logprob}}));
    out.push_back(Json::object({{"token", t.token}, {"logprob", t.logprob}, {"top", top}}));
  }
  return out;
}

Json answer_json(const Answer& answer, const GenerateRequest& request) {
  return Json::object({{"text", answer.text},
                       {"finish_reason", finish_reason_name(answer.finish)},
                       {"prompt_tokens", answer.prompt_tokens},
                       {"generated_tokens", answer.generated_tokens},
                       {"seconds", answer.seconds},
                       {"tokens", tokens_json(answer.tokens, request.sampling.top_logprobs >= 0)}});
}

int generate_once(CommandLine& line, Arguments& a) {
  if (Status settled = settle(a); !settled.ok()) return fail(line, settled.error());
  if (!a.prompt_file.empty()) {
    auto text = read_file(a.prompt_file, uint64_t{64} << 20);
    if (!text.ok()) return fail(line, text.error());
    a.request.prompt = std::move(*text);
  } else {
    a.request.prompt = a.prompt;
  }
  auto generator = open_generator(line, a.model, a.connect, a.kv);
  if (!generator.ok()) return fail(line, generator.error());
  bool began = false;  // a prompt that is refused is not said again
  const auto say = [&](const std::string& text) {
    if (line.json) return;
    fmt::print("{}{}", began ? "" : a.request.prompt, text);
    std::fflush(stdout);
    began = true;
  };
  auto answer = (*generator)->generate(a.request, say);
  if (answer.ok() || began) say("\n");
  if (!answer.ok()) return fail(line, answer.error());
  finish(line, answer_json(*answer, a.request), [&] {
    if (!line.quiet)
      fmt::print(stderr, "[{} prompt + {} tokens in {:.2f} s, {:.0f} tokens/s, ended by {}]\n",
                 answer->prompt_tokens, answer->generated_tokens, answer->seconds,
                 answer->generated_tokens / answer->seconds, finish_reason_name(answer->finish));
  });
  return answer->finish == FinishReason::kCancelled ? 130 : 0;
}

using Turns = std::vector<std::pair<std::string, std::string>>;

/// Forgets the oldest question and its answer; false when only the last question is left.
bool forget_oldest(Turns& turns) {
  const auto oldest = turns.begin() + (turns.front().first == "system" ? 1 : 0);
  if (turns.end() - oldest < 3) return false;
  turns.erase(oldest, oldest + 2);
  return true;
}

/// The answer to the last of `turns`, of which it forgets the oldest until the context holds them.
Result<Answer> answer_to(Generator& generator, const CommandLine& line, Turns& turns,
                         const GenerateRequest& request) {
  const auto say = [&](const std::string& text) {
    if (line.json) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  for (;;) {
    FS_ASSIGN(ChatPrompt prompt, generator.format_chat(turns));
    GenerateRequest asked = request;
    asked.prompt = std::move(prompt.text);
    asked.stop.insert(asked.stop.end(), prompt.stop.begin(), prompt.stop.end());
    auto answer = generator.generate(asked, say);
    const bool too_long = !answer.ok() && answer.error().where == "prompt";
    if (!too_long || !forget_oldest(turns)) return answer;
    if (!line.quiet)
      fmt::print(stderr, "(the context is full: the oldest question is forgotten)\n");
  }
}

int chat(CommandLine& line, Arguments& a) {
  if (Status settled = settle(a); !settled.ok()) return fail(line, settled.error());
  auto generator = open_generator(line, a.model, a.connect, a.kv);
  if (!generator.ok()) return fail(line, generator.error());
  Turns turns;
  if (!a.system.empty()) turns.emplace_back("system", a.system);
  if (!line.quiet) fmt::print(stderr, "Type a message; an empty line or Ctrl-D ends the chat.\n");
  for (;;) {
    if (!line.quiet) fmt::print(stderr, "> ");
    std::string message;
    if (line.cancel.raised() || !std::getline(std::cin, message) || message.empty()) return 0;
    turns.emplace_back("user", message);
    auto answer = answer_to(**generator, line, turns, a.request);
    if (!line.json) fmt::print("\n");
    if (!answer.ok()) return fail(line, answer.error());
    if (line.json) fmt::print("{}\n", answer_json(*answer, a.request).dump());
    std::fflush(stdout);
    if (answer->finish == FinishReason::kCancelled) return 130;
    turns.emplace_back("assistant", answer->text);
  }
}

}  // namespace

void add_generate_commands(CLI::App& app, CommandLine& line, Body& run) {
  auto a = std::make_shared<Arguments>();
  auto* generate = app.add_subcommand("generate", "Continue a prompt");
  add_sampling_options(generate, a);
  generate->add_option("--prompt", a->prompt, "Text to continue");
  generate->add_option("--prompt-file", a->prompt_file, "Read the prompt from a file");
  generate
      ->add_option("--logprobs", a->request.sampling.top_logprobs,
                   "With --json: log-probabilities of this many alternatives")
      ->check(CLI::Range(0, 20));
  generate->footer(
      "Examples:\n"
      "  fsctl generate poems --prompt 'Once upon' --temperature 0.8 --top-p 0.95\n"
      "  fsctl generate --connect 127.0.0.1:8080 --prompt 'Once' --json\n"
      "  fsctl generate poems --prompt 'Once' --cluster 10.0.0.1:7070    # where it is deployed");
  generate->callback([&line, &run, a] { run = [&line, a] { return generate_once(line, *a); }; });

  auto b = std::make_shared<Arguments>();
  b->request.max_tokens = 512;
  auto* talk = app.add_subcommand("chat", "Talk with a model, turn by turn");
  add_sampling_options(talk, b);
  talk->add_option("--system", b->system, "What the model should be told first");
  talk->footer(
      "Examples:\n"
      "  fsctl chat llama --system 'Answer briefly.' --temperature 0.7\n"
      "  fsctl chat llama --cluster 10.0.0.1:7070");
  talk->callback([&line, &run, b] { run = [&line, b] { return chat(line, *b); }; });
}

}  // namespace fastserve
