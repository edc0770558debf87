// ROOT/cluster and ROOT/node: whole, private, and one process's at a time.
#include "api/cluster_folder.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "api/cluster_host.h"
#include "cluster/tokens.h"
#include "net/tls.h"
#include "tests/cluster/small_cluster.h"

using namespace fastserve;
using namespace fastserve::testing;

namespace {

class Root {
 public:
  Root() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fastserve-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~Root() { std::filesystem::remove_all(path); }
  Result<ClusterMade> init() const {
    ClusterInit words;
    words.root = path;
    return init_cluster(words);
  }
  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      found.insert(entry.path().filename());
    return found;
  }
  Path path;
};

unsigned mode_of(const Path& path) {
  struct stat st {};
  REQUIRE(::stat(path.c_str(), &st) == 0);
  return st.st_mode & 0777;
}

/// Nobody but the owner can reach any of these files.
void check_private(const Path& folder) { CHECK((mode_of(folder) & 077) == 0); }

}  // namespace

TEST_CASE("init makes a cluster that opens again, with tokens that are its own") {
  const Root root;
  const auto made = root.init();
  REQUIRE_MESSAGE(made.ok(), said(made));
  CHECK(made->endpoint == "127.0.0.1:7070");
  CHECK(root.names() == std::set<std::string>{"cluster"});
  auto folder = ClusterFolder::open(root.path).value();
  CHECK(folder->settings().cluster == made->cluster);
  CHECK(folder->authority().cluster() == made->cluster);
  const SystemClock clock;
  auto members = Membership::open(folder->state(), clock, folder->authority()).value();
  CHECK(members->epoch() > 1);
  CHECK(members->access(made->admin_token)->role == AccessRole::kAdmin);
  CHECK(members->tokens().size() == 3);
  CHECK(members->join(SmallCluster::ask("a", key_number(0), made->join_token), "0.1.0").ok());
}

TEST_CASE("what a cluster's folder holds is its owner's alone to read") {
  const Root root;
  REQUIRE(root.init().ok());
  const Path folder = ClusterFolder::path_in(root.path);
  check_private(folder);
  for (const char* file : {"authority/authority-key.pem", "admin-token", "settings.json"})
    CHECK(mode_of(folder / file) == 0600);
  auto node = NodeFolder::open(root.path).value();
  REQUIRE(node->join_key().ok());
  check_private(NodeFolder::path_in(root.path));
  CHECK(mode_of(NodeFolder::path_in(root.path) / "node.json") == 0600);
}

TEST_CASE("a folder that holds a cluster is not made over") {
  const Root root;
  const auto made = root.init();
  const auto again = root.init();
  CHECK(again.error().code == ErrorCode::kAlreadyExists);
  CHECK(contains(said(again), "fsctl cluster start"));
  CHECK(ClusterFolder::open(root.path).value()->settings().cluster == made->cluster);
  CHECK(root.names() == std::set<std::string>{"cluster"});
}

TEST_CASE("an init that fails or is cut short leaves no half cluster") {
  const Root root;
  const ClusterSettings settings{"c", "127.0.0.1", 7070, "127.0.0.1"};
  const Status failed = make_cluster_folder(root.path, settings, [](const Path& folder) -> Status {
    std::ofstream(folder / "part") << "x";
    return Error{ErrorCode::kResourceExhausted, "the disk is full", "", ""};
  });
  CHECK(failed.error().code == ErrorCode::kResourceExhausted);
  CHECK(root.names().empty());
  CHECK(contains(said(ClusterFolder::open(root.path)), "fsctl cluster init"));

  // What a killed init left goes with a later one, and another that is at work is left alone.
  std::filesystem::create_directories(root.path / "cluster.init-killed" / "state");
  std::filesystem::create_directories(root.path / "cluster.init-at-work");
  std::filesystem::last_write_time(
      root.path / "cluster.init-killed",
      std::filesystem::file_time_type::clock::now() - std::chrono::hours(2));
  CHECK(root.init().ok());
  CHECK(root.names() == std::set<std::string>{"cluster", "cluster.init-at-work"});
}

TEST_CASE("two that init at once make one cluster") {
  const Root root;
  const ClusterSettings settings{"outer", "127.0.0.1", 7070, "127.0.0.1"};
  const Status late = make_cluster_folder(root.path, settings, [&](const Path&) -> Status {
    CHECK(root.init().ok());
    return {};
  });
  CHECK(late.error().code == ErrorCode::kAlreadyExists);
  CHECK(ClusterFolder::open(root.path).ok());
  CHECK(root.names() == std::set<std::string>{"cluster"});
}

TEST_CASE("an address or port that cannot be is refused before anything is made") {
  const Root root;
  for (const auto& change : std::vector<std::function<void(ClusterInit&)>>{
           [](ClusterInit& words) { words.port = 0; },
           [](ClusterInit& words) { words.port = 70000; },
           [](ClusterInit& words) { words.address = "http://x"; },
           [](ClusterInit& words) { words.advertise = "two words"; }}) {
    ClusterInit words;
    words.root = root.path;
    change(words);
    CHECK(init_cluster(words).error().code == ErrorCode::kInvalidArgument);
  }
  CHECK(root.names().empty());
  ClusterInit words;
  words.root = root.path;
  words.address = "0.0.0.0";
  words.advertise = "head.example";
  CHECK(init_cluster(words)->endpoint == "head.example:7070");
}

TEST_CASE("one process at a time has a cluster's folder, and one a node's") {
  const Root root;
  REQUIRE(root.init().ok());
  const auto cluster = ClusterFolder::open(root.path);
  REQUIRE(cluster.ok());
  const auto second = ClusterFolder::open(root.path);
  CHECK(second.error().code == ErrorCode::kUnavailable);
  CHECK(contains(said(second), "one coordinator at a time"));
  const auto node = NodeFolder::open(root.path);
  REQUIRE(node.ok());
  CHECK(contains(said(NodeFolder::open(root.path)), "a node runs from this folder"));
}

TEST_CASE("a folder put together from two backups is refused") {
  const Root one, other;
  REQUIRE(one.init().ok());
  REQUIRE(other.init().ok());
  const Path folder = ClusterFolder::path_in(one.path);
  std::filesystem::remove_all(folder / "authority");
  std::filesystem::copy(ClusterFolder::path_in(other.path) / "authority", folder / "authority");
  const auto refused = ClusterFolder::open(one.path);
  CHECK(refused.error().code == ErrorCode::kCorrupt);
  CHECK(contains(said(refused), "from a backup"));
}

TEST_CASE("commands on the coordinator's host find it and have a token, until it ends") {
  const Root root;
  REQUIRE(root.init().ok());
  CHECK(running_coordinator(root.path).error().code == ErrorCode::kNotFound);
  auto folder = ClusterFolder::open(root.path).value();
  const SystemClock clock;
  auto members = Membership::open(folder->state(), clock, folder->authority()).value();
  std::string before;
  for (int start = 0; start < 2; start++) {
    REQUIRE(folder->announce(*members, "0.0.0.0", 7071).ok());
    const auto running = running_coordinator(root.path);
    REQUIRE_MESSAGE(running.ok(), said(running));
    CHECK(running->host == "127.0.0.1");
    CHECK(running->port == 7071);
    CHECK(members->access(running->token)->role == AccessRole::kAdmin);
    if (!before.empty()) CHECK_FALSE(members->access(before).ok());
    before = running->token;
  }
  const auto tokens = list_cluster_tokens(root.path);
  REQUIRE_MESSAGE(tokens.ok(), said(tokens));
  CHECK(tokens->size() == 3);
  folder->withdraw();
  CHECK_FALSE(running_coordinator(root.path).ok());
}

TEST_CASE("the coordinator's certificate is of its own role and its cluster") {
  const Root root;
  const auto made = root.init();
  const auto folder = ClusterFolder::open(root.path).value();
  const int64_t now = SystemClock().unix_seconds();
  const Identity identity = folder->make_identity(now).value();
  const NodeClaim claim = read_claim(identity.certificate).value();
  CHECK(claim.node == "coordinator");
  CHECK(claim.roles == std::vector<std::string>{"coordinator"});
  CHECK(claim.cluster == made->cluster);
  CHECK_FALSE(renewal_due(claim, now));
  CHECK(parse_token(made->join_token)->authority == fingerprint(identity.authority).value());
}

TEST_CASE("a node joins again with the key it had, and remembers where it belongs") {
  const Root root;
  std::string request;
  {
    auto folder = NodeFolder::open(root.path).value();
    CHECK_FALSE(folder->membership());
    request = folder->join_key()->request;
    CHECK(folder->join_key()->request == request);
  }
  SmallCluster cluster;
  {
    auto folder = NodeFolder::open(root.path).value();
    const KeyAndRequest key = folder->join_key().value();
    CHECK(key.request == request);  // its answer was lost with the process
    const auto grant = cluster.join("a", key, cluster.join_token());
    REQUIRE(grant.ok());
    NodeMembership joined{cluster.authority.cluster(), "head:7070", "a", {"trainer"}, {}};
    joined.identity = {grant->certificate, key.key, grant->authority};
    CHECK(folder->keep(joined, key.request).ok());
  }
  auto folder = NodeFolder::open(root.path).value();
  REQUIRE(folder->membership());
  CHECK(folder->membership()->coordinator == "head:7070");
  CHECK(folder->membership()->roles == std::vector<std::string>{"trainer"});
  CHECK(TlsParty::create(folder->membership()->identity).ok());
  CHECK(folder->join_key()->request == request);
}

TEST_CASE("a node's file that is damaged is refused with what to do") {
  const Root root;
  std::filesystem::create_directories(NodeFolder::path_in(root.path));
  const Path file = NodeFolder::path_in(root.path) / "node.json";
  for (const char* text : {"", "{", "[]", R"({"format": 1, "certificate": "rubbish"})",
                           R"({"format": 1, "key": 7})"}) {
    std::ofstream(file, std::ios::trunc) << text;
    CHECK_FALSE(NodeFolder::open(root.path).ok());
  }
  CHECK(contains(said(NodeFolder::open(root.path)), "join again"));
  std::ofstream(file, std::ios::trunc) << R"({"format": 2})";
  CHECK(NodeFolder::open(root.path).error().code == ErrorCode::kUnsupported);
}
