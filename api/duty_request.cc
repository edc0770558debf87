#include "api/duty_request.h"

#include "api/settings_json.h"

namespace fastserve {
namespace {

ClusterDeployRequest default_deployment() {
  ClusterDeployRequest request;
  request.deploy.port = 0;
  return request;
}

template <class Request, class Visit>
void visit_deploy(Request& r, const Visit& visit) {
  visit("model", r.model);
  visit("node", r.node);
  visit("address", r.deploy.address);
  visit("port", r.deploy.port);
  visit("allow_remote", r.deploy.allow_remote);
  visit("weights", r.deploy.weights);
  visit("kv", r.deploy.kv);
  visit("context_tokens", r.deploy.context_tokens);
  visit("max_queue", r.deploy.max_queue);
  visit("model_memory", r.deploy.model_memory);
}

template <class Request, class Visit>
void visit_compress(Request& r, const Visit& visit) {
  visit("model", r.model);
  visit("to", r.to);
  visit("data", r.data);
  visit("weights", r.spec.weights);
  visit("head", r.spec.head);
  visit("prune", r.spec.pruning);
  visit("sparsity", r.spec.sparsity);
  visit("max_perplexity_increase", r.spec.max_perplexity_increase);
  visit("max_perplexity", r.spec.max_perplexity);
  visit("max_bytes", r.spec.max_bytes);
  visit("min_tokens_per_second", r.spec.min_tokens_per_second);
}

Json json_of(const Path& path) { return path.string(); }
Json json_of(WeightFormat format) { return weight_format_name(format); }
Json json_of(PruningKind kind) { return pruning_kind_name(kind); }
Json json_of(KvType kv) { return kv_type_name(kv); }
template <class T>
Json json_of(const T& value) {
  return value;
}
template <class T>
Json json_of(const std::optional<T>& value) {
  return value ? json_of(*value) : Json();
}

/// The settings of `request` that are not those of `plain`.
template <class Request, class Visit>
Json changed_settings(const Request& plain, const Request& request, const Visit& visit) {
  Json json = Json::object({}), defaults = Json::object({});
  visit(plain, [&](const char* name, const auto& value) { defaults.set(name, json_of(value)); });
  visit(request, [&](const char* name, const auto& value) {
    if (Json written = json_of(value); !(written == *defaults.find(name)))
      json.set(name, std::move(written));
  });
  return json;
}

template <class T, class Parse>
Status take_named(const char* name, const Json& json, T& value, const Parse& parse) {
  if (!json.is_string()) return is_no_setting(name, "text");
  FS_ASSIGN(value, parse(json.as_string()));
  return {};
}
Status take(const char* name, const Json& json, WeightFormat& value) {
  return take_named(name, json, value, parse_weight_format);
}
Status take(const char* name, const Json& json, PruningKind& value) {
  return take_named(name, json, value, parse_pruning_kind);
}
Status take(const char* name, const Json& json, KvType& value) {
  return take_named(name, json, value, parse_kv_type);
}

const auto take_any = [](const char* name, const Json& given, auto& value) {
  return take(name, given, value);
};

Json to_json(const Measurement& m) {
  return Json::object({{"bytes", m.bytes},
                       {"perplexity", m.perplexity},
                       {"tokens_per_second", m.tokens_per_second}});
}

Result<Measurement> read_measurement(const Json* json) {
  if (json == nullptr)
    return Error{ErrorCode::kCorrupt, "lacks a measurement", "the result of a compression", ""};
  Measurement m;
  FS_ASSIGN(const int64_t bytes, json->int_or("bytes", 0));
  m.bytes = static_cast<uint64_t>(bytes);
  FS_ASSIGN(m.perplexity, json->double_or("perplexity", 0));
  FS_ASSIGN(m.tokens_per_second, json->double_or("tokens_per_second", 0));
  return m;
}

}  // namespace

Json to_json(const ClusterDeployRequest& request) {
  return changed_settings(default_deployment(), request,
                          [](const auto& from, const auto& visit) { visit_deploy(from, visit); });
}

Result<ClusterDeployRequest> read_deploy_request(const Json& json) {
  ClusterDeployRequest request = default_deployment();
  FS_TRY(read_settings(
      json, "deploy", "a deployment", [&](const auto& visit) { visit_deploy(request, visit); },
      take_any));
  if (request.model.empty())
    return Error{ErrorCode::kInvalidArgument, "names no model", "deploy",
                 "fsctl models list shows those there are"};
  if (request.deploy.port < 0 || request.deploy.port > 65535)
    return Error{ErrorCode::kInvalidArgument, fmt::format("cannot be {}", request.deploy.port),
                 "port", "0 to 65535"};
  return request;
}

Json to_json(const CompressRequest& request) {
  return changed_settings(CompressRequest(), request,
                          [](const auto& from, const auto& visit) { visit_compress(from, visit); });
}

Result<CompressRequest> read_compress_request(const Json& json) {
  CompressRequest request;
  FS_TRY(read_settings(
      json, "compress", "a compression", [&](const auto& visit) { visit_compress(request, visit); },
      take_any));
  if (request.model.empty())
    return Error{ErrorCode::kInvalidArgument, "names no model", "compress",
                 "fsctl models list shows those there are"};
  FS_TRY(request.spec.validate());
  return request;
}

Json to_json(const CompressResult& result) {
  return Json::object({{"model", result.model.text()},
                       {"before", to_json(result.before)},
                       {"after", to_json(result.after)},
                       {"card", result.card}});
}

Result<CompressResult> read_compress_result(const Json& json) {
  CompressResult result;
  FS_ASSIGN(const std::string model, json.string_or("model", ""));
  FS_ASSIGN(result.model, ModelRef::parse(model));
  FS_ASSIGN(result.before, read_measurement(json.find_set("before")));
  FS_ASSIGN(result.after, read_measurement(json.find_set("after")));
  if (const Json* card = json.find("card")) result.card = *card;
  return result;
}

}  // namespace fastserve
