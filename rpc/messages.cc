#include "rpc/messages.h"

#include <algorithm>
#include <limits>

namespace fastserve {
namespace {

// The numbers of both enumerations are written side by side, so that a cast converts.
static_assert(static_cast<int>(wire::FinishReason::ERROR) ==
              static_cast<int>(FinishReason::kError));
static_assert(static_cast<int>(wire::Error::Code::INTERNAL) ==
              static_cast<int>(ErrorCode::kInternal));

template <class List>
void write_tokens(List out, const std::vector<int32_t>& tokens) {
  for (unsigned i = 0; i < tokens.size(); i++) out.set(i, tokens[i]);
}

unsigned count_of(size_t size) { return static_cast<unsigned>(size); }

}  // namespace

void write_error(wire::Error::Builder out, const Error& error) {
  out.setCode(static_cast<wire::Error::Code>(error.code));
  out.setWhat(to_text(error.what));
  out.setWhere(to_text(error.where));
  out.setHint(to_text(error.hint));
}

Error read_error(wire::Error::Reader in) {
  const auto code = static_cast<int>(in.getCode());
  const bool known = code >= static_cast<int>(ErrorCode::kInvalidArgument) &&
                     code <= static_cast<int>(ErrorCode::kInternal);
  return {known ? static_cast<ErrorCode>(code) : ErrorCode::kInternal, to_string(in.getWhat()),
          to_string(in.getWhere()), to_string(in.getHint())};
}

void write_request(wire::GenerateRequest::Builder out, const GenerateRequest& request) {
  out.setModel(to_text(request.model));
  if (request.prompt.empty() && !request.prompt_tokens.empty())
    write_tokens(out.getPrompt().initTokens(count_of(request.prompt_tokens.size())),
                 request.prompt_tokens);
  else
    out.getPrompt().setText(to_text(request.prompt));
  out.setMaxTokens(request.max_tokens);
  auto sampling = out.initSampling();
  sampling.setTemperature(request.sampling.temperature);
  sampling.setTopK(request.sampling.top_k);
  sampling.setTopP(request.sampling.top_p);
  sampling.setMinP(request.sampling.min_p);
  sampling.setRepetitionPenalty(request.sampling.repetition_penalty);
  sampling.setSeed(request.sampling.seed);
  sampling.setTopLogprobs(request.sampling.top_logprobs);
  auto stop = out.initStop(count_of(request.stop.size()));
  for (unsigned i = 0; i < request.stop.size(); i++) stop.set(i, to_text(request.stop[i]));
  out.setIgnoreEos(request.ignore_eos);
  if (request.timeout) {
    // 0 means none on the wire; a timeout that has passed already is the shortest there is.
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(*request.timeout).count();
    out.setTimeoutMilliseconds(static_cast<uint64_t>(std::max<int64_t>(1, ms)));
  }
}

GenerateRequest read_request(wire::GenerateRequest::Reader in) {
  GenerateRequest request;
  request.model = to_string(in.getModel());
  const auto prompt = in.getPrompt();
  if (prompt.isTokens()) {
    const auto tokens = prompt.getTokens();
    request.prompt_tokens.reserve(tokens.size());
    for (const int32_t token : tokens) request.prompt_tokens.push_back(token);
  } else if (prompt.isText()) {
    request.prompt = to_string(prompt.getText());
  }
  request.max_tokens = in.getMaxTokens();
  const auto sampling = in.getSampling();
  request.sampling = {sampling.getTemperature(),
                      sampling.getTopK(),
                      sampling.getTopP(),
                      sampling.getMinP(),
                      sampling.getRepetitionPenalty(),
                      sampling.getSeed(),
                      sampling.getTopLogprobs()};
  for (const auto stop : in.getStop()) request.stop.push_back(to_string(stop));
  request.ignore_eos = in.getIgnoreEos();
  if (const uint64_t ms = in.getTimeoutMilliseconds(); ms > 0) {
    constexpr uint64_t kYear = uint64_t{365} * 86400 * 1000;
    request.timeout = std::chrono::milliseconds(std::min(ms, kYear));
  }
  return request;
}

void write_event(wire::GenerateEvent::Builder out, const GenerateEvent& event) {
  auto tokens = out.initTokens(count_of(event.tokens.size()));
  for (unsigned i = 0; i < event.tokens.size(); i++) {
    const GeneratedToken& token = event.tokens[i];
    tokens[i].setId(token.token);
    tokens[i].setLogprob(token.logprob);
    if (token.top.empty()) continue;
    auto top = tokens[i].initTop(count_of(token.top.size()));
    for (unsigned t = 0; t < token.top.size(); t++) {
      top[t].setId(token.top[t].token);
      top[t].setLogprob(token.top[t].logprob);
    }
  }
  if (!event.text.empty()) out.setText(to_text(event.text));
  out.setFinish(static_cast<wire::FinishReason>(event.finish));
  if (event.error) write_error(out.initError(), *event.error);
  out.setPromptTokens(static_cast<uint32_t>(event.prompt_tokens));
  out.setGeneratedTokens(static_cast<uint32_t>(event.generated_tokens));
}

GenerateEvent read_event(wire::GenerateEvent::Reader in) {
  GenerateEvent event;
  for (const auto token : in.getTokens()) {
    GeneratedToken& read = event.tokens.emplace_back();
    read.token = token.getId();
    read.logprob = token.getLogprob();
    for (const auto top : token.getTop()) read.top.push_back({top.getId(), top.getLogprob()});
  }
  event.text = to_string(in.getText());
  const auto finish = in.getFinish();
  // A reason that a newer server has and this client does not know still ends the request.
  event.finish =
      finish <= wire::FinishReason::ERROR ? static_cast<FinishReason>(finish) : FinishReason::kStop;
  if (in.hasError()) event.error = read_error(in.getError());
  event.prompt_tokens = static_cast<int>(in.getPromptTokens());
  event.generated_tokens = static_cast<int>(in.getGeneratedTokens());
  return event;
}

uint64_t event_words(const GenerateEvent& event) {
  uint64_t words = 16 + event.text.size() / 8;
  for (const GeneratedToken& token : event.tokens) words += 4 + 2 * token.top.size();
  if (event.error)
    words +=
        8 + (event.error->what.size() + event.error->where.size() + event.error->hint.size()) / 8;
  return words;
}

void write_model(wire::Model::Builder out, const ServedModel& model) {
  out.setName(to_text(model.name));
  out.setVersion(to_text(model.version));
  out.setArchitecture(to_text(model.architecture));
  out.setWeightFormat(to_text(model.weight_format));
  out.setParameters(model.parameters);
  out.setWeightBytes(model.weight_bytes);
  out.setContextLength(model.context_length);
  out.setVocabSize(model.vocab_size);
  out.setOnDevice(model.on_device);
}

ServedModel read_model(wire::Model::Reader in) {
  return {
      to_string(in.getName()),         to_string(in.getVersion()), to_string(in.getArchitecture()),
      to_string(in.getWeightFormat()), in.getParameters(),         in.getWeightBytes(),
      in.getContextLength(),           in.getVocabSize(),          in.getOnDevice()};
}

void write_health(wire::Health::Builder out, const ServerHealth& health) {
  out.setReady(health.ready);
  out.setRunning(health.running);
  out.setQueued(health.queued);
  out.setKvBlocksFree(health.kv_blocks_free);
  out.setKvBlocks(health.kv_blocks);
  out.setTokensGenerated(health.tokens_generated);
  out.setRequestsFinished(health.requests_finished);
  out.setUptimeSeconds(health.uptime_seconds);
  out.setDevice(to_text(health.device));
}

ServerHealth read_health(wire::Health::Reader in) {
  return {in.getReady(),
          in.getRunning(),
          in.getQueued(),
          in.getKvBlocksFree(),
          in.getKvBlocks(),
          in.getTokensGenerated(),
          in.getRequestsFinished(),
          in.getUptimeSeconds(),
          to_string(in.getDevice())};
}

Error from_exception(const kj::Exception& exception, const std::string& where) {
  const std::string what(exception.getDescription().begin(), exception.getDescription().size());
  switch (exception.getType()) {
    case kj::Exception::Type::DISCONNECTED:
      return {ErrorCode::kUnavailable, "the connection was lost", where,
              "see whether the server still runs, or has as many connections as it takes"};
    case kj::Exception::Type::UNIMPLEMENTED:
      return {ErrorCode::kUnsupported, "the server lacks this call", where,
              "update the server to this client's version"};
    case kj::Exception::Type::OVERLOADED:
      return {ErrorCode::kResourceExhausted, what, where, "try again later"};
    default:
      return {ErrorCode::kInternal, what, where, ""};
  }
}

}  // namespace fastserve
