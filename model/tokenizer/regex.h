// Patterns as tokenizer.json writes them (Oniguruma's dialect), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace fastserve {

/// A compiled pattern.
///
/// Threads: const calls from any thread.
/// Promises: the matches Oniguruma finds (Ruby syntax, UTF-8), or an error; never a wrong split.
class Regex {
 public:
  /// kUnsupported: the pattern uses a construct whose meaning differs or that PCRE2 lacks.
  static Result<Regex> compile(std::string_view pattern, const std::string& where);
  /// Matches `text` itself.
  static Result<Regex> literal(std::string_view text, const std::string& where);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  /// One pass over a text: the matches from left to right, none overlapping another. An empty match
  /// right behind the match before it does not count.
  class Scan {
   public:
    /// `text` is well-formed UTF-8 and outlives the scan.
    Scan(const Regex& regex, std::string_view text);
    Scan(const Scan&) = delete;
    Scan& operator=(const Scan&) = delete;
    ~Scan();

    struct Match {
      size_t begin, end;
    };
    /// The next match, or none at the end. kResourceExhausted when the pattern needs more memory
    /// or steps on this text than a scan may take.
    Result<std::optional<Match>> next();

   private:
    struct State;
    Result<std::optional<Match>> search();
    Result<bool> match_at(size_t offset);

    std::unique_ptr<State> state_;
  };

 private:
  struct Program;
  explicit Regex(std::unique_ptr<Program> program);
  static Result<Regex> build(std::string_view pattern, uint32_t options, const std::string& where);
  std::unique_ptr<Program> program_;
};

}  // namespace fastserve
