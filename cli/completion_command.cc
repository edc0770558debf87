#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <span>

#include "cli/command.h"
#include "cli/completion.h"

namespace fastserve {
namespace {

// Each script asks `fsctl complete -- WORDS` for what may come next; nothing means a file name.
constexpr const char* kBash = R"(_fsctl() {
  local IFS=$'\n' current="${COMP_WORDS[COMP_CWORD]}"
  COMPREPLY=($("${COMP_WORDS[0]}" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [ ${#COMPREPLY[@]} -gt 0 ] && return
  compopt -o filenames 2>/dev/null
  COMPREPLY=($(compgen -f -- "$current"))
}
complete -F _fsctl fsctl
)";

constexpr const char* kZsh = R"(#compdef fsctl
_fsctl() {
  local -a candidates
  candidates=("${(@f)$("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  candidates=("${(@)candidates:#}")
  if (( ${#candidates} )); then compadd -a candidates; else _files; fi
}
if [[ $funcstack[1] == _fsctl ]]; then _fsctl "$@"; else compdef _fsctl fsctl; fi
)";

constexpr const char* kFish = R"(function __fsctl_complete
  set -l words (commandline -opc)
  set -l current (commandline -ct)
  set -l candidates ($words[1] complete -- $words[2..-1] "$current" 2>/dev/null)
  if test (count $candidates) -gt 0
    printf '%s\n' $candidates
  else
    __fish_complete_path "$current"
  end
end
complete -c fsctl -f -a '(__fsctl_complete)'
)";

/// The values of an option checked with CLI::IsMember, which tells them as "...:{a,b,c}".
std::vector<std::string> values_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find(":{"), close = type.rfind('}');
  if (open == std::string::npos || close == std::string::npos) return {};
  return CLI::detail::split(type.substr(open + 2, close - open - 2), ',');
}

const CLI::Option* find_option(const CLI::App& app, const std::string& word) {
  for (const CLI::Option* option : app.get_options())
    if (option->nonpositional() && option->check_name(word)) return option;
  return nullptr;
}

struct Place {
  const CLI::App* command;
  const CLI::Option* open_option = nullptr;  ///< waits for its value
};

/// Where a command line stands after `words`.
Place place_after(const CLI::App& app, std::span<const std::string> words) {
  Place place{&app};
  for (const std::string& word : words) {
    if (place.open_option != nullptr) {
      place.open_option = nullptr;
    } else if (word.starts_with('-')) {
      const CLI::Option* option = find_option(*place.command, word);
      if (option == nullptr) option = find_option(app, word);
      if (option != nullptr && option->get_items_expected_max() > 0) place.open_option = option;
    } else {
      const auto named = place.command->get_subcommands(
          [&](const CLI::App* sub) { return sub->check_name(word); });
      if (!named.empty()) place.command = named.front();
    }
  }
  return place;
}

}  // namespace

std::vector<std::string> names_at(const CLI::App& command, bool options) {
  std::vector<std::string> names;
  if (!options)
    for (const CLI::App* sub : command.get_subcommands(nullptr)) names.push_back(sub->get_name());
  for (const CLI::App* of = &command; options && of != nullptr; of = of->get_parent())
    for (const CLI::Option* option : of->get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::vector<std::string> completions(const CLI::App& app, const std::vector<std::string>& words) {
  if (words.empty()) return {};
  const Place place = place_after(app, std::span(words).first(words.size() - 1));
  const std::string& current = words.back();
  std::vector<std::string> candidates;
  if (place.open_option != nullptr) {
    candidates = values_of(*place.open_option);
  } else {
    candidates = names_at(*place.command, current.starts_with('-'));
    for (const CLI::Option* option : place.command->get_options())
      if (option->get_positional())
        for (std::string& value : values_of(*option)) candidates.push_back(std::move(value));
  }
  std::erase_if(candidates, [&](const std::string& c) { return !c.starts_with(current); });
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  return candidates;
}

int print_completions(const CLI::App& app, std::vector<std::string> words) {
  if (!words.empty() && words.front() == "--") words.erase(words.begin());
  for (const std::string& word : completions(app, words)) fmt::print("{}\n", word);
  return 0;
}

void add_completion_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("completion", "Print the script that completes fsctl's words");
  auto shell = std::make_shared<std::string>("bash");
  c->add_option("shell", *shell, "Which shell's")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->capture_default_str();
  c->footer(
      "Examples:\n"
      "  source <(fsctl completion bash)        # in ~/.bashrc\n"
      "  source <(fsctl completion zsh)         # in ~/.zshrc, after compinit\n"
      "  fsctl completion fish | source         # in ~/.config/fish/config.fish");
  c->callback([&line, &run, shell] {
    run = [&line, shell] {
      const char* script = *shell == "zsh" ? kZsh : *shell == "fish" ? kFish : kBash;
      return finish(line, Json::object({{"shell", *shell}, {"script", script}}),
                    [&] { fmt::print("{}", script); });
    };
  });
}

void add_version_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* c = app.add_subcommand("version", "Print the version and what this machine offers");
  c->footer("Example:\n  fsctl version --json");
  c->callback([&line, &run] {
    run = [&line] {
      auto isa = choose_isa();
      if (!isa.ok()) return fail(line, isa.error());
      return finish(line, Json::object({{"version", FASTSERVE_VERSION}, {"isa", isa_name(*isa)}}),
                    [&] { fmt::print("fsctl {} (cpu {})\n", FASTSERVE_VERSION, isa_name(*isa)); });
    };
  });
}

}  // namespace fastserve
