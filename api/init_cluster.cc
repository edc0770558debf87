// `fsctl cluster init`: an authority, an empty state and the first tokens, all at once or not at
// all.
#include <fmt/format.h>
#include <unistd.h>

#include "api/cluster_folder.h"
#include "api/cluster_host.h"
#include "api/node.h"
#include "net/socket.h"

namespace fastserve {
namespace {

/// By what name others reach what listens at `address`.
Result<std::string> advertised(const ClusterInit& init) {
  if (!init.advertise.empty()) return init.advertise;
  if (init.address != "0.0.0.0" && init.address != "::") return init.address;
  char host[256] = "";
  if (::gethostname(host, sizeof host - 1) == 0 && host[0] != '\0') return std::string(host);
  return Error{ErrorCode::kInvalidArgument, "is every address of this machine, which has no name",
               init.address, "--advertise: the host name or address that nodes will use"};
}

Status check_host(const std::string& host, const char* option) {
  if (!host.empty() && host.size() <= 253 &&
      host.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:%") ==
          std::string::npos)
    return {};
  return Error{ErrorCode::kInvalidArgument, "is no host name or address", option,
               "give one without a port, as 10.0.0.5 or node7.example"};
}

}  // namespace

Result<ClusterMade> init_cluster(const ClusterInit& init) {
  if (init.port < 1 || init.port > 65535)
    return Error{ErrorCode::kInvalidArgument, fmt::format("{} is no port", init.port), "--port",
                 "use 1 to 65535: nodes must find the coordinator at the same port again"};
  FS_TRY(check_host(init.address, "--address"));
  FS_ASSIGN(const std::string host, advertised(init));
  FS_TRY(check_host(host, "--advertise"));
  const SystemClock clock;
  FS_ASSIGN(const CertificateAuthority authority,
            CertificateAuthority::create(clock.unix_seconds()));
  ClusterMade made;
  made.cluster = authority.cluster();
  made.endpoint = endpoint_text(host, init.port);
  const ClusterSettings settings{authority.cluster(), init.address, init.port, host};
  const auto fill = [&](const Path& folder) -> Status {
    FS_TRY(authority.save(folder / "authority"));
    FS_ASSIGN(const auto state, open_state_store(folder / "state"));
    FS_TRY(Membership::create(*state, authority));
    FS_ASSIGN(const auto members, Membership::open(*state, clock, authority));
    FS_ASSIGN(made.join_token, members->make_join_token(0, 0, "cluster init"));
    FS_ASSIGN(made.admin_token, members->make_access_token(AccessRole::kAdmin, 0, "cluster init"));
    return write_admin_token(folder, *members);
  };
  FS_TRY(make_cluster_folder(init.root.empty() ? default_root() : init.root, settings, fill));
  return made;
}

}  // namespace fastserve
