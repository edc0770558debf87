#include "api/library/convert.h"

namespace fastserve {

void raise(const Error& error) {
  throw FastServeError(static_cast<int>(error.code), error.message());
}

GenerateRequest to_request(const GenerateOptions& o) {
  GenerateRequest r;
  r.model = o.model;
  r.max_tokens = o.max_tokens;
  r.sampling.temperature = o.temperature;
  r.sampling.top_p = o.top_p;
  r.sampling.min_p = o.min_p;
  r.sampling.top_k = o.top_k;
  r.sampling.repetition_penalty = o.repetition_penalty;
  r.sampling.seed = o.seed;
  r.sampling.top_logprobs = o.top_logprobs;
  r.stop = o.stop;
  r.ignore_eos = o.ignore_eos;
  r.timeout = value_or_raise(timeout_from_seconds(o.timeout_seconds));
  return r;
}

Generation to_generation(Answer a, bool with_logprobs) {
  Generation g;
  g.text = std::move(a.text);
  g.finish_reason = finish_reason_name(a.finish);
  g.prompt_tokens = a.prompt_tokens;
  for (GeneratedToken& token : a.tokens) {
    g.tokens.push_back(token.token);
    if (!with_logprobs) continue;
    g.logprobs.push_back(token.logprob);
    auto& top = g.top_logprobs.emplace_back();
    for (const TokenLogprob& t : token.top) top.push_back({t.token, t.logprob});
  }
  return g;
}

}  // namespace fastserve
