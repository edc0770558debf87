#include <fmt/chrono.h>
#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <limits>
#include <thread>

#include "api/cluster_folder.h"
#include "api/cluster_host.h"
#include "cli/cluster_client.h"
#include "cli/command.h"
#include "cli/plain_bulk.h"
#include "cluster/access_role.h"
#include "cluster/tokens.h"
#include "net/socket.h"

namespace fastserve {
namespace {

Path root_of(const CommandLine& line) {
  return line.store.empty() ? default_root() : Path(line.store);
}

/// "--store DIR " where the user said so, for commands to be typed next.
std::string store_words(const CommandLine& line) {
  return line.store.empty() ? "" : fmt::format("--store {} ", line.store);
}

/// "90s", "30m", "24h", "7d"
Result<int64_t> parse_lifetime(const std::string& text) {
  const Error bad{ErrorCode::kInvalidArgument, "is no length of time", "--lifetime " + text,
                  "a number and s, m, h or d, as 24h"};
  constexpr std::array<std::pair<char, int64_t>, 4> kUnits = {
      {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}}};
  const size_t digits = text.find_first_not_of("0123456789");
  if (digits == 0 || digits == text.npos || digits > 9 || digits + 1 != text.size()) return bad;
  for (const auto& [unit, seconds] : kUnits)
    if (text.back() == unit) return std::stoll(text.substr(0, digits)) * seconds;
  return bad;
}

std::string time_text(int64_t unix_seconds) {
  const std::time_t time = unix_seconds;
  std::tm utc{};
  ::gmtime_r(&time, &utc);
  return fmt::format("{:%Y-%m-%d %H:%M}", utc);
}

// init --------------------------------------------------------------------------------------------

int init(const CommandLine& line, ClusterInit& words) {
  words.root = root_of(line);
  auto made = init_cluster(words);
  if (!made.ok()) return fail(line, made.error());
  const std::string folder = ClusterFolder::path_in(words.root).string();
  const Json document = Json::object({{"cluster", made->cluster},
                                      {"folder", folder},
                                      {"endpoint", made->endpoint},
                                      {"join_token", made->join_token},
                                      {"admin_token", made->admin_token}});
  return finish(line, document, [&] {
    fmt::print("cluster {} made in {}\n", made->cluster, folder);
    fmt::print("Start its coordinator here:\n  fsctl {}cluster start\n", store_words(line));
    fmt::print(
        "Start nodes, within 24 hours (later: fsctl cluster token create --kind join):\n"
        "  fsctl node start --join {} --token {}\n",
        made->endpoint, made->join_token);
    fmt::print(
        "Use it from any machine (this token may do everything):\n"
        "  export FASTSERVE_CLUSTER={} FASTSERVE_TOKEN={}\n",
        made->endpoint, made->admin_token);
    if (words.address == "127.0.0.1" || words.address == "localhost" || words.address == "::1")
      fmt::print("Only this machine can reach it; --address and --advertise let others.\n");
  });
}

void add_init(CLI::App& group, CommandLine& line, Body& run) {
  auto* c = group.add_subcommand("init", "Make a cluster: its authority and first tokens");
  auto words = std::make_shared<ClusterInit>();
  c->add_option("--address", words->address,
                "Address to listen at; 0.0.0.0: every one of this machine")
      ->capture_default_str();
  c->add_option("--port", words->port, "Port to listen at")
      ->capture_default_str()
      ->check(CLI::Range(1, 65535));
  c->add_option("--advertise", words->advertise,
                "Host by which nodes and clients reach it (default: --address)");
  c->footer(
      "Examples:\n"
      "  fsctl cluster init                                       # on this machine alone\n"
      "  fsctl cluster init --address 0.0.0.0 --advertise head.example\n"
      "Opens no port. What it makes lies in the store's folder, under cluster/.");
  c->callback([&line, &run, words] { run = [&line, words] { return init(line, *words); }; });
}

// start -------------------------------------------------------------------------------------------

/// Each job runs on threads of its own, and glibc would keep what they free for their like: 150 MiB
/// after ten small jobs, where 40 do. A coordinator's large blocks are few and far between.
void give_back_what_is_freed() {
  ::mallopt(M_MMAP_THRESHOLD, 128 << 10);
  ::mallopt(M_TRIM_THRESHOLD, 128 << 10);
}

int start(const CommandLine& line, CoordinatorOptions& options, const std::string& port_file) {
  give_back_what_is_freed();
  options.root = root_of(line);
  options.log = line.log();
  auto host = CoordinatorHost::start(options);
  if (!host.ok()) return fail(line, host.error());
  if (!port_file.empty())
    if (Status written = write_file_atomically(port_file, (*host)->endpoint() + "\n");
        !written.ok())
      return fail(line, written.error());
  const Json status = (*host)->control().status();
  const auto nodes = (*host)->control().nodes();
  const size_t known = nodes.ok() ? nodes->size() : 0;
  const Json document = Json::object({{"endpoint", (*host)->endpoint()},
                                      {"nodes", static_cast<uint64_t>(known)},
                                      {"status", status}});
  finish(line, document, [&] {
    const Json* epoch = status.find("epoch");
    fmt::print("coordinator at {}, {} nodes known{} (Ctrl-C stops)\n", (*host)->endpoint(), known,
               epoch == nullptr ? "" : ", epoch " + epoch->dump());
  });
  std::fflush(stdout);
  while (!line.cancel.raised()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  return 0;
}

void add_start(CLI::App& group, CommandLine& line, Body& run) {
  auto* c = group.add_subcommand("start", "Be the cluster's coordinator until Ctrl-C");
  struct Words {
    CoordinatorOptions options;
    std::string endpoint_file;
  };
  auto words = std::make_shared<Words>();
  c->add_option("--address", words->options.address,
                "Address to listen at (default: as `cluster init` was told)");
  c->add_option("--port", words->options.port, "Port to listen at (default: the same); 0: any")
      ->check(CLI::Range(0, 65535));
  add_plain_bulk(*c, words->options.plain_bulk);
  c->add_option("--endpoint-file", words->endpoint_file, "Write HOST:PORT here once ready");
  c->footer(
      "Examples:\n"
      "  fsctl cluster start\n"
      "  systemctl start fastserve-coordinator      # as a service: deploy/systemd\n"
      "Jobs that ran when it ended go on when it is started again.");
  c->callback([&line, &run, words] {
    run = [&line, words] { return start(line, words->options, words->endpoint_file); };
  });
}

// token -------------------------------------------------------------------------------------------

struct TokenWords {
  std::string kind, lifetime, label, id;
  int64_t uses = 0;
};

/// The coordinator that --cluster names, or else the one that runs on this host; null: none runs.
Result<std::unique_ptr<ClusterClient>> find_coordinator(const CommandLine& line) {
  if (!line.cluster.empty()) return open_cluster(line);
  const auto lock = FileLock::acquire(ClusterFolder::path_in(root_of(line)) / "lock");
  if (lock.ok() || lock.error().code != ErrorCode::kUnavailable)
    return std::unique_ptr<ClusterClient>();
  const auto running = running_coordinator(root_of(line));
  if (!running.ok())
    return Error{ErrorCode::kUnavailable, "the coordinator is starting or stopping",
                 ClusterFolder::path_in(root_of(line)).string(), "try again"};
  ClusterClientOptions options;
  options.cancel = &line.cancel;
  return ClusterClient::connect(running->host, running->port, running->token, options);
}

/// The folder's membership while no coordinator runs.
struct OpenMembership {
  std::unique_ptr<ClusterFolder> folder;
  std::unique_ptr<Membership> members;  // before the folder goes
};
Result<OpenMembership> open_membership(const CommandLine& line, const Clock& clock) {
  OpenMembership open;
  FS_ASSIGN(open.folder, ClusterFolder::open(root_of(line)));
  FS_ASSIGN(open.members, Membership::open(open.folder->state(), clock, open.folder->authority()));
  return open;
}

Result<std::string> make_token_text(const CommandLine& line, const TokenWords& words) {
  int64_t lifetime = 0;
  if (!words.lifetime.empty()) {
    FS_ASSIGN(lifetime, parse_lifetime(words.lifetime));
  }
  if (line.cluster.empty()) FS_TRY(read_cluster_settings(root_of(line)));
  FS_ASSIGN(const auto coordinator, find_coordinator(line));
  if (words.kind == "join") {
    if (coordinator == nullptr) {
      const SystemClock clock;
      FS_ASSIGN(const OpenMembership open, open_membership(line, clock));
      return open.members->make_join_token(lifetime, words.uses, words.label);
    }
    if (words.uses > 0)
      return Error{ErrorCode::kUnsupported, "is not asked of a coordinator that runs yet", "--uses",
                   "give the token a short --lifetime instead, or stop the coordinator"};
    return coordinator->make_join_token(lifetime == 0 ? Membership::kJoinSeconds : lifetime);
  }
  FS_ASSIGN(const AccessRole role, parse_access_role(words.kind));
  if (coordinator == nullptr) {
    const SystemClock clock;
    FS_ASSIGN(const OpenMembership open, open_membership(line, clock));
    return open.members->make_access_token(role, lifetime, words.label);
  }
  return coordinator->make_access_token(role, words.label,
                                        lifetime == 0 ? Membership::kAccessSeconds : lifetime);
}

int create_token(const CommandLine& line, const TokenWords& words) {
  auto token = make_token_text(line, words);
  if (!token.ok()) return fail(line, token.error());
  return finish(line, Json::object({{"kind", words.kind}, {"token", *token}}), [&] {
    fmt::print("{}\n", *token);  // alone, so that it can go into a file
  });
}

/// Of the coordinator that runs, or else from its folder.
Result<Json> all_tokens(const CommandLine& line) {
  if (line.cluster.empty()) FS_TRY(read_cluster_settings(root_of(line)));
  FS_ASSIGN(const auto coordinator, find_coordinator(line));
  if (coordinator != nullptr) return coordinator->tokens();
  FS_ASSIGN(const auto records, list_cluster_tokens(root_of(line)));
  Json::Array rows;
  for (const TokenRecord& token : records)
    rows.push_back(describe_token(token, SystemClock().unix_seconds()));
  return Json(std::move(rows));
}

int list_tokens(const CommandLine& line) {
  const auto tokens = all_tokens(line);
  if (!tokens.ok()) return fail(line, tokens.error());
  return finish(line, *tokens, [&] {
    if (tokens->as_array().empty())
      fmt::print("no tokens: fsctl cluster token create --help\n");
    else
      fmt::print("{:<9} {:<6} {:<17} {:<17} {:>5}  {}\n", "TOKEN", "KIND", "CREATED (UTC)",
                 "EXPIRES (UTC)", "USES", "LABEL");
    for (const Json& token : tokens->as_array()) {
      const auto text = [&](const char* key) {
        const Json* value = token.find_set(key);
        return value != nullptr && value->is_string() ? value->as_string() : std::string();
      };
      const auto time = [&](const char* key) {
        const Json* value = token.find_set(key);
        return time_text(value != nullptr && value->is_int() ? value->as_int() : 0);
      };
      const Json* expired = token.find_set("expired");
      const Json* uses = token.find_set("uses_left");
      fmt::print("{:<9} {:<6} {:<17} {:<17} {:>5}  {}\n", text("id"), text("kind"),
                 time("created_unix"),
                 expired != nullptr && *expired == Json(true) ? "expired" : time("expires_unix"),
                 uses == nullptr ? "any" : uses->dump(), text("label"));
    }
  });
}

Status revoke(const CommandLine& line, const std::string& id) {
  if (line.cluster.empty()) FS_TRY(read_cluster_settings(root_of(line)));
  FS_ASSIGN(const auto coordinator, find_coordinator(line));
  if (coordinator != nullptr) return coordinator->revoke_token(id);
  const SystemClock clock;
  FS_ASSIGN(const OpenMembership open, open_membership(line, clock));
  return open.members->revoke_token(id);
}

int revoke_token(const CommandLine& line, const std::string& id) {
  if (Status done = revoke(line, id); !done.ok()) return fail(line, done.error());
  return finish(line, Json::object({{"revoked", id}}),
                [&] { fmt::print("revoked token {}\n", id); });
}

void add_token(CLI::App& group, CommandLine& line, Body& run) {
  auto* token = group.add_subcommand("token", "Tokens: let nodes join, and clients in");
  token->require_subcommand(1);
  token->fallthrough();
  auto words = std::make_shared<TokenWords>();
  auto* create = token->add_subcommand("create", "Make a token and print it, once");
  create
      ->add_option("--kind", words->kind,
                   "join: for nodes; read, run, admin: for clients, each with what is before it")
      ->required()
      ->check(CLI::IsMember({"join", "read", "run", "admin"}));
  create->add_option("--lifetime", words->lifetime,
                     "As 90s, 30m, 24h or 7d (default: 24h to join, 365d for clients)");
  create->add_option("--label", words->label, "What `token list` shows it by");
  create->add_option("--uses", words->uses, "Nodes that may join by it (default: any number)")
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  create->footer(
      "Examples:\n"
      "  fsctl cluster token create --kind join >join-token\n"
      "  fsctl cluster token create --kind run --lifetime 30d --label ci");
  create->callback(
      [&line, &run, words] { run = [&line, words] { return create_token(line, *words); }; });
  auto* list = token->add_subcommand("list", "Every token: kind, age, label; not the token itself");
  list->footer("Example:\n  fsctl cluster token list");
  list->callback([&line, &run] { run = [&line] { return list_tokens(line); }; });
  auto* revoke = token->add_subcommand("revoke", "Let nobody in by it from now on");
  revoke->add_option("token", words->id, "As `token list` names it")->required();
  revoke->footer("Example:\n  fsctl cluster token revoke 5f3a91c2");
  revoke->callback(
      [&line, &run, words] { run = [&line, words] { return revoke_token(line, words->id); }; });
  token->footer(
      "Examples:\n"
      "  fsctl cluster token create --kind join\n"
      "  fsctl cluster token list\n"
      "  fsctl cluster token revoke 5f3a91c2");
}

}  // namespace

void add_cluster_command(CLI::App& app, CommandLine& line, Body& run) {
  auto* group = app.add_subcommand("cluster", "Make a cluster, coordinate it, give out its tokens");
  group->require_subcommand(1);
  group->fallthrough();
  add_init(*group, line, run);
  add_start(*group, line, run);
  add_token(*group, line, run);
  group->footer(
      "Examples:\n"
      "  fsctl cluster init --address 0.0.0.0 --advertise head.example\n"
      "  fsctl cluster start\n"
      "  fsctl cluster token create --kind join");
}

}  // namespace fastserve
