// What may come next on a command line, and the scripts that ask for it.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace fastserve {

/// The commands below `command`, or with `options` its long options and those of all above it.
std::vector<std::string> names_at(const CLI::App& command, bool options);

/// The words that may stand where the last of `words` stands, begun by it: commands, options, an
/// option's values. Empty: a file name or free text.
std::vector<std::string> completions(const CLI::App& app, const std::vector<std::string>& words);

/// `fsctl complete -- WORDS`: the completions, one a line.
int print_completions(const CLI::App& app, std::vector<std::string> words);

}  // namespace fastserve
