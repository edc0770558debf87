#include "base/endpoint.h"

#include <charconv>

namespace fastserve {

Result<Endpoint> parse_endpoint(const std::string& text) {
  const Error bad{ErrorCode::kInvalidArgument, "is not HOST:PORT", text,
                  "for example 127.0.0.1:8080 or [::1]:8080"};
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return bad;
  Endpoint endpoint{text.substr(0, colon)};
  const bool brackets =
      endpoint.host.size() > 1 && endpoint.host.front() == '[' && endpoint.host.back() == ']';
  if (brackets) endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  if (endpoint.host.empty() ||
      endpoint.host.find_first_of(brackets ? "[]" : "[]:") != std::string::npos)
    return bad;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
  if (error != std::errc() || stop != end || endpoint.port < 1 || endpoint.port > 65535) return bad;
  return endpoint;
}

}  // namespace fastserve
