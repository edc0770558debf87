#include "cli/compression_report.h"

#include <fmt/format.h>

#include "api/duty_request.h"

namespace fastserve {

int tell_compressed(const CommandLine& line, const CompressResult& result) {
  return finish(line, to_json(result), [&] {
    const Measurement &b = result.before, &a = result.after;
    fmt::print("{}\n", result.model.text());
    fmt::print("  size        {:>12} -> {:>12}  ({:.2f}x smaller)\n", human_bytes(b.bytes),
               human_bytes(a.bytes), static_cast<double>(b.bytes) / static_cast<double>(a.bytes));
    fmt::print("  perplexity  {:>12.4f} -> {:>12.4f}  ({:+.2f} %)\n", b.perplexity, a.perplexity,
               100 * (a.perplexity / b.perplexity - 1));
    fmt::print("  decode      {:>8.0f} t/s -> {:>8.0f} t/s  ({:.2f}x)\n", b.tokens_per_second,
               a.tokens_per_second, a.tokens_per_second / b.tokens_per_second);
  });
}

}  // namespace fastserve
