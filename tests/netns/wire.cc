// netns_wire NAME PLACES DELAY JITTER LOSS: a slow and lossy network between the namespaces NAME-0,
// NAME-1 ... Delay and jitter are milliseconds one way, loss is percent. For kernels without netem.
//
// Each namespace gets a TUN device eth0; this program carries the IP packets between them, by the
// last byte of their IPv4 address (place I has I + 1). A packet waits DELAY +- JITTER, but no
// packet overtakes another between the same two places; each is lost with the probability LOSS.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

struct Packet {
  size_t to;
  std::vector<unsigned char> bytes;
};

[[noreturn]] void give_up(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

/// The device eth0 of a namespace; gone with this process.
int open_device(const std::string& space) {
  const std::string path = "/var/run/netns/" + space;
  const int at = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (at < 0 || ::setns(at, CLONE_NEWNET) != 0) give_up(path);
  ::close(at);
  const int device = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) give_up("/dev/net/tun");
  ifreq wanted{};
  std::strcpy(wanted.ifr_name, "eth0");
  wanted.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (::ioctl(device, TUNSETIFF, &wanted) != 0) give_up("TUNSETIFF");
  return device;
}

class Wire {
 public:
  Wire(std::vector<int> devices, double delay_ms, double jitter_ms, double loss_percent)
      : devices_(std::move(devices)),
        last_(devices_.size() * devices_.size()),
        delay_(delay_ms * 1000 - jitter_ms * 1000, delay_ms * 1000 + jitter_ms * 1000),
        lost_(loss_percent / 100) {}

  [[noreturn]] void carry() {
    std::vector<pollfd> waiting;
    for (const int device : devices_) waiting.push_back({device, POLLIN, 0});
    for (;;) {
      deliver();
      timespec nap{60, 0};
      if (!under_way_.empty()) {
        const auto left = std::max(under_way_.begin()->first - Clock::now(), Clock::duration{0});
        nap = {0, std::chrono::nanoseconds(left).count() % 1'000'000'000};
      }
      ::ppoll(waiting.data(), waiting.size(), &nap, nullptr);
      for (size_t from = 0; from < devices_.size(); from++)
        if (waiting[from].revents != 0) collect(from);
    }
  }

 private:
  void collect(size_t from) {
    unsigned char bytes[65536];
    for (ssize_t n; (n = ::read(devices_[from], bytes, sizeof bytes)) > 0;) {
      constexpr ssize_t kHeader = 20;
      const size_t to = n >= kHeader && bytes[0] >> 4 == 4 ? bytes[19] - size_t{1} : SIZE_MAX;
      if (to >= devices_.size() || lost_(random_)) continue;
      auto& last = last_[from * devices_.size() + to];
      const auto wait = microseconds(static_cast<int64_t>(delay_(random_)));
      last = std::max(last, Clock::now() + wait);
      under_way_.emplace(last, Packet{to, {bytes, bytes + n}});  // equal ones stay in order
    }
  }
  void deliver() {
    while (!under_way_.empty() && under_way_.begin()->first <= Clock::now()) {
      const Packet& packet = under_way_.begin()->second;
      // A device that takes none loses it, as a network's queue would.
      [[maybe_unused]] const ssize_t n =
          ::write(devices_[packet.to], packet.bytes.data(), packet.bytes.size());
      under_way_.erase(under_way_.begin());
    }
  }

  const std::vector<int> devices_;
  std::multimap<Clock::time_point, Packet> under_way_;
  std::vector<Clock::time_point> last_;  // [from, to]: when the last packet will be there
  std::mt19937 random_{1};
  std::uniform_real_distribution<double> delay_;
  std::bernoulli_distribution lost_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: netns_wire NAME PLACES DELAY_MS JITTER_MS LOSS_PERCENT\n");
    return 2;
  }
  std::vector<int> devices;
  for (int i = 0; i < std::atoi(argv[2]); i++)
    devices.push_back(open_device(std::string(argv[1]) + "-" + std::to_string(i)));
  std::printf("%d\ncarries\n", ::getpid());
  std::fflush(stdout);
  Wire(std::move(devices), std::atof(argv[3]), std::atof(argv[4]), std::atof(argv[5])).carry();
}
