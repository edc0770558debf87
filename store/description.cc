#include "store/description.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "base/json.h"
#include "model/quantised.h"

namespace fastserve {
namespace {

std::string_view format_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return weight_format_name(WeightFormat::kFloat32);
    case DType::kF16:
      return weight_format_name(WeightFormat::kFloat16);
    case DType::kBF16:
      return weight_format_name(WeightFormat::kBFloat16);
    default:
      return dtype_name(dtype);
  }
}

/// 0 embeddings, 1 layers and what follows them, 2 the output head.
int stage(std::string_view name) {
  for (const char* part : {"embed", "wte.", "wpe."})
    if (name.find(part) != name.npos) return 0;
  return name.find("lm_head") != name.npos ? 2 : 1;
}

/// Compares runs of digits as numbers: layers.2 before layers.10.
bool natural_less(std::string_view a, std::string_view b) {
  auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_digit(a[i]) && is_digit(b[j])) {
      const size_t i0 = i, j0 = j;
      while (i < a.size() && is_digit(a[i])) i++;
      while (j < b.size() && is_digit(b[j])) j++;
      const auto left = std::tuple(i - i0, a.substr(i0, i - i0));
      const auto right = std::tuple(j - j0, b.substr(j0, j - j0));
      if (left != right) return left < right;
    } else if (a[i] != b[j]) {
      return a[i] < b[j];
    } else {
      i++, j++;
    }
  }
  return a.size() - i < b.size() - j;
}

}  // namespace

BundleDescription describe_bundle(const ModelBundle& bundle,
                                  const std::vector<std::pair<std::string, TensorView>>& tensors) {
  BundleDescription description;
  Json weights;  // parameter name to format, for quantised ones
  if (const auto config = bundle.documents.find("config.json"); config != bundle.documents.end()) {
    if (const auto json = Json::parse(config->second, "config.json"); json.ok()) {
      description.architecture = json->string_or("model_type", "").ok()
                                     ? *json->string_or("model_type", "")
                                     : std::string();
      if (const Json* own = json->find_set("fastserve"))
        if (const Json* found = own->find_set("weights")) weights = *found;
    }
  }
  std::map<std::string, int64_t, std::less<>> formats;  // elements held in each
  for (const auto& [name, view] : tensors) {
    const std::string_view base = std::string_view(name).substr(0, name.rfind('.'));
    const Json* quantised = weights.find(base);
    if (quantised != nullptr && quantised->is_string()) {
      if (!name.ends_with(".codes")) continue;
      const int64_t elements = view.elements() * (view.dtype == DType::kU8 ? 2 : 1);
      formats[quantised->as_string()] += elements;
      description.parameters += elements;
      continue;
    }
    formats[std::string(format_of(view.dtype))] += view.elements();
    description.parameters += view.elements();
  }
  int64_t most = 0;
  for (const auto& [format, elements] : formats)
    if (elements > most) most = elements, description.weight_format = format;
  return description;
}

void sort_in_execution_order(std::vector<std::string>& names) {
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    if (stage(a) != stage(b)) return stage(a) < stage(b);
    return natural_less(a, b);
  });
}

}  // namespace fastserve
