#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>

#include "model/tokenizer/regex_dialect.h"
#include "model/tokenizer/unicode.h"

namespace fastserve {
namespace {

template <auto free_function>
struct FreeWith {
  template <class T>
  void operator()(T* object) const {
    free_function(object);
  }
};
using Code = std::unique_ptr<pcre2_code, FreeWith<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, FreeWith<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreeWith<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, FreeWith<pcre2_jit_stack_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, FreeWith<pcre2_compile_context_free>>;

constexpr size_t kJitStackStart = 64 << 10, kJitStackLimit = 64 << 20;
constexpr uint32_t kInterpreterKibibytes = 512 << 10;

std::string pcre_message(int code) {
  PCRE2_UCHAR text[160];
  const int length = pcre2_get_error_message(code, text, sizeof text);
  return length < 0 ? fmt::format("error {}", code) : reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Program {
  Code code;
  std::string pattern;  ///< as given, for messages
};

struct Regex::Scan::State {
  const Program* program;
  std::string_view text;
  MatchData data;
  MatchContext context;
  JitStack stack;
  uint32_t options = PCRE2_NO_UTF_CHECK;
  size_t offset = 0;
  size_t last_end = std::string_view::npos;  ///< npos: no match yet
};

Regex::Regex(std::unique_ptr<Program> program) : program_(std::move(program)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::build(std::string_view pattern, uint32_t options, const std::string& where) {
  const CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          options | PCRE2_UTF, &error, &offset, context.get()));
  if (!code)
    return Error{ErrorCode::kUnsupported,
                 fmt::format("the pattern \"{}\" cannot be compiled: {} (at offset {})", pattern,
                             pcre_message(error), offset),
                 where, "use another tokenizer"};
  // Without executable memory this fails and matching takes the interpreter: slower, the same.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  auto program = std::make_unique<Program>();
  program->code = std::move(code);
  program->pattern = pattern;
  return Regex(std::move(program));
}

Result<Regex> Regex::compile(std::string_view pattern, const std::string& where) {
  FS_ASSIGN(const std::string translated, translate_regex(pattern, where));
  return build(translated, PCRE2_UCP | PCRE2_MULTILINE, where);
}

Result<Regex> Regex::literal(std::string_view text, const std::string& where) {
  if (text.empty())
    return Error{ErrorCode::kUnsupported, "an empty pattern is not supported", where,
                 "use another tokenizer"};
  return build(text, PCRE2_LITERAL, where);
}

Regex::Scan::Scan(const Regex& regex, std::string_view text) : state_(std::make_unique<State>()) {
  state_->program = regex.program_.get();
  state_->text = text;
  state_->data.reset(pcre2_match_data_create_from_pattern(regex.program_->code.get(), nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  const uint64_t steps = 10'000'000 + 64 * uint64_t{text.size()};
  const auto most = static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX));
  pcre2_set_match_limit(state_->context.get(), most);
  pcre2_set_depth_limit(state_->context.get(), most);
  pcre2_set_heap_limit(state_->context.get(), kInterpreterKibibytes);
}

Regex::Scan::~Scan() = default;

Result<bool> Regex::Scan::match_at(size_t offset) {
  State& s = *state_;
  for (;;) {
    const int found =
        pcre2_match(s.program->code.get(), reinterpret_cast<PCRE2_SPTR>(s.text.data()),
                    s.text.size(), offset, s.options, s.data.get(), s.context.get());
    if (found >= 0) return true;
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && !s.stack) {
      s.stack.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr));
      if (s.stack) {
        pcre2_jit_stack_assign(s.context.get(), nullptr, s.stack.get());
        continue;
      }
    }
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && !(s.options & PCRE2_NO_JIT)) {
      s.options |= PCRE2_NO_JIT;
      continue;
    }
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("the pattern \"{}\" gives up at offset {} of {}: {}",
                             s.program->pattern, offset, s.text.size(), pcre_message(found)),
                 "text", "split the text into shorter ones"};
  }
}

Result<std::optional<Regex::Scan::Match>> Regex::Scan::search() {
  State& s = *state_;
  if (s.offset > s.text.size()) return std::optional<Match>();
  FS_ASSIGN(const bool found, match_at(s.offset));
  if (!found) {
    s.offset = s.text.size() + 1;
    return std::optional<Match>();
  }
  const PCRE2_SIZE* pair = pcre2_get_ovector_pointer(s.data.get());
  return std::optional<Match>({pair[0], pair[1]});
}

Result<std::optional<Regex::Scan::Match>> Regex::Scan::next() {
  State& s = *state_;
  for (;;) {
    FS_ASSIGN(const std::optional<Match> match, search());
    if (!match) return match;
    if (match->begin == match->end && match->end == s.last_end) {
      s.offset += s.offset < s.text.size() ? utf8_length(s.text[s.offset]) : 1;
      continue;
    }
    s.offset = s.last_end = match->end;
    return match;
  }
}

}  // namespace fastserve
