#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/command.h"

namespace fastserve {
namespace {

/// Words that may follow `app`: its subcommands and its long options.
std::string words_of(const CLI::App& app) {
  std::string words;
  for (const CLI::App* sub : app.get_subcommands({})) words += sub->get_name() + " ";
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
  return words;
}

void add_cases(const CLI::App& app, const std::string& path, std::string& out) {
  for (const CLI::App* sub : app.get_subcommands({})) {
    const std::string name = path + sub->get_name();
    out += fmt::format("    \"{}\") words=\"{}\" ;;\n", name, words_of(*sub));
    add_cases(*sub, name + " ", out);
  }
}

std::string bash_script(const CLI::App& app) {
  std::string cases;
  add_cases(app, "", cases);
  return fmt::format(
      "_fsctl() {{\n"
      "  local word current=\"${{COMP_WORDS[COMP_CWORD]}}\" path=\"\" words=\"{}\"\n"
      "  for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do\n"
      "    [[ $word == -* ]] || path=\"${{path:+$path }}$word\"\n"
      "  done\n"
      "  while [ -n \"$path\" ]; do\n"
      "    case \"$path\" in\n{}    *) path=\"${{path% *}}\"; [[ $path == *\" \"* ]] || "
      "path=\"${{path%% *}}\"; "
      "[ \"$path\" = \"$word\" ] && break; word=\"$path\"; continue ;;\n"
      "    esac\n    break\n  done\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$current\"))\n"
      "}}\n"
      "complete -o filenames -F _fsctl fsctl\n",
      words_of(app), cases);
}

}  // namespace

void add_completion_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand(
      "completion", "Print a completion script for bash (also read by zsh's bashcompinit)");
  c->footer("Example:\n  source <(fsctl completion)");
  c->callback([&app, &run] {
    run = [&app] {
      fmt::print("{}", bash_script(app));
      return 0;
    };
  });
}

void add_version_command(CLI::App& app, CommandLine& line, Body& run) {
  app.add_subcommand("version", "Print the version and what this machine offers")
      ->callback([&line, &run] {
        run = [&line] {
          auto isa = choose_isa();
          if (!isa.ok()) return fail(line, isa.error());
          return finish(
              line, Json::object({{"version", FASTSERVE_VERSION}, {"isa", isa_name(*isa)}}),
              [&] { fmt::print("fsctl {} (cpu {})\n", FASTSERVE_VERSION, isa_name(*isa)); });
        };
      });
}

}  // namespace fastserve
