// doctor's findings on simulated nodes: files in a temporary directory, and a daemon that reports what the
// test sets.

#include "client/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <fstream>
#include <map>
#include <sstream>

#include "client/checks.h"
#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kNoSockets = "  sl  local_address rem_address   st\n";
constexpr std::uint64_t kWanted =
    bit_of(Capability::kNetAdmin) | bit_of(Capability::kNetRaw) | bit_of(Capability::kBpf);

/// A node on which everything is fine; each test then breaks one thing.
class Doctor : public testing::Test {
 protected:
  Doctor() {
    for (const auto& [name, value] : std::initializer_list<std::pair<const char*, const char*>>{
             {"kernel/osrelease", "6.1.0-13-amd64"},
             {"kernel/io_uring_disabled", "0"},
             {"fs/nr_open", "1048576"},
             {"fs/file-max", "9223372036854775807"},
             {"fs/file-nr", "3000\t0\t9223372036854775807"},
             {"fs/pipe-user-pages-soft", "16384"},
             {"net/core/somaxconn", "4096"},
             {"net/ipv4/tcp_tw_reuse", "1"},
             {"net/ipv4/ip_unprivileged_port_start", "1024"},
             {"net/ipv4/ip_local_port_range", "32768\t60999"},
             {"net/ipv4/ip_local_reserved_ports", ""},
             {"net/ipv4/conf/all/rp_filter", "0"},
             {"net/ipv4/conf/tap0/rp_filter", "1"},
         }) {
      sysctl(name, value);
    }
    sysctl("net/ipv4/neigh/default/gc_thresh3", "1024");
    sysctl("net/ipv6/neigh/default/gc_thresh3", "1024");
    sysctl("net/ipv4/tcp_mem", "100000\t200000\t300000");
    directory_.write("proc/net/sockstat", "sockets: used 15\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 2560\n");
    directory_.write("proc/net/tcp", kNoSockets);
    node_.root = directory_.path();
    node_.config_file = directory_.write("portway.toml", "");
    node_.config_found = true;
    node_.config.guests.networks = {Cidr::parse("198.18.0.0/15").value()};
    node_.config.store.path = directory_.path() / "portway.db";
    node_.config.api.admin_key_file = directory_.write("admin.key", "pwk_key\n");
    ::chmod(node_.config.api.admin_key_file.c_str(), 0600);
    node_.subjects = {{.pid = 42,
                       .uid = ::getuid(),
                       .groups = {::getgid()},
                       .capabilities = kWanted | bit_of(Capability::kSysResource),
                       .descriptors_max = 1048576}};
    node_.api = {.server = "http://127.0.0.1:8080",
                 .down = std::nullopt,
                 .version = PORTWAY_VERSION,
                 .io_backend = "uring",
                 .io_backend_reason = "",
                 .refused = std::nullopt,
                 .running = {{"vm-1", "tap0"}}};
    node_.try_io_uring = []() -> Result<void> { return {}; };
    node_.host_addresses = []() -> Result<std::vector<IpAddress>> {
      return std::vector<IpAddress>{parse_address("192.0.2.1").value()};
    };
    node_.link = [this](const std::string& device) { return links_[device]; };
  }

  Subject& subject() { return node_.subjects.front(); }

  void sysctl(const std::string& name, const std::string& value) {
    directory_.write("proc/sys/" + name, value + "\n");
  }

  Finding find(std::string_view name) {
    for (const NamedFinding& named : look_at(node_)) {
      if (named.name == name) return named.finding;
    }
    ADD_FAILURE() << "no check " << name;
    return {};
  }

  /// The check has this grade, says `what`, and suggests `remedy`.
  void expect(std::string_view name, Grade grade, const std::string& what, const std::string& remedy = "") {
    const Finding finding = find(name);
    EXPECT_EQ(to_string(finding.grade), to_string(grade)) << name << ": " << finding.detail;
    EXPECT_THAT(finding.detail, HasSubstr(what));
    EXPECT_THAT(finding.remedy, HasSubstr(remedy));
    EXPECT_EQ(finding.remedy.empty(), grade == Grade::kOk || grade == Grade::kSkip);
  }

  TemporaryDirectory directory_;
  std::map<std::string, LinkState> links_ = {{"tap0", LinkState::kCarrier}};  // others are missing
  NodeFacts node_;
};

TEST_F(Doctor, ReportsOkForEveryCheckOnAHealthyNode) {
  for (const NamedFinding& named : look_at(node_)) {
    EXPECT_EQ(to_string(named.finding.grade), "ok") << named.name << ": " << named.finding.detail;
    EXPECT_THAT(named.finding.detail, testing::EndsWith("."));
  }
}

TEST_F(Doctor, WarnsAboutAKernelWithoutMultishotAccept) {
  for (const char* release : {"5.18.19", "4.19.0-amd64", "5.4"}) {
    sysctl("kernel/osrelease", release);
    expect("kernel", Grade::kWarn, release, "5.19");
  }
  sysctl("kernel/osrelease", "5.19.0");
  expect("kernel", Grade::kOk, "5.19.0");
}

TEST_F(Doctor, ReportsWhyIoUringIsNotUsed) {
  node_.api.io_backend = "epoll";
  node_.api.io_backend_reason = "io_uring: Operation not permitted";
  expect("io_uring", Grade::kWarn, "Operation not permitted", "seccomp");

  node_.api.io_backend = "";  // no daemon to ask
  node_.try_io_uring = []() -> Result<void> {
    return Error{ErrorCode::kResourceExhausted, "io_uring: refused"};
  };
  expect("io_uring", Grade::kWarn, "io_uring: refused");
  node_.config.proxy.io_backend = IoBackend::kUring;
  expect("io_uring", Grade::kFail, "io_uring: refused");
  sysctl("kernel/io_uring_disabled", "2");
  expect("io_uring", Grade::kFail, "kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0");
  node_.config.proxy.io_backend = IoBackend::kEpoll;
  expect("io_uring", Grade::kOk, "Not used");
}

TEST_F(Doctor, ComparesDescriptorsWithTheConfiguration) {
  subject().descriptors_max = 1024;
  expect("descriptors", Grade::kWarn, "portwayd (process 42) may have 1024", "LimitNOFILE=177632");
  subject().pid = 0;  // not started yet: it will raise its limit itself
  expect("descriptors", Grade::kOk, "CAP_SYS_RESOURCE");
  subject().capabilities = 0;
  expect("descriptors", Grade::kWarn, "this shell");
  sysctl("fs/nr_open", "65536");
  expect("open-files", Grade::kWarn, "fs.nr_open is 65536", "sysctl -w fs.nr_open=");
  sysctl("fs/nr_open", "1048576");
  sysctl("fs/file-max", "100000");
  expect("open-files", Grade::kWarn, "fs.file-max is 100000", "sysctl -w fs.file-max=");
}

TEST_F(Doctor, WarnsAboutSmallPipesOnlyWithoutTheCapability) {
  expect("pipes", Grade::kOk, "capability");
  subject().capabilities = 0;
  expect("pipes", Grade::kWarn, "after 256 busy pipes", "fs.pipe-user-pages-soft=1048576");
  sysctl("fs/pipe-user-pages-soft", "0");
  expect("pipes", Grade::kOk, "");
}

TEST_F(Doctor, NamesTheCapabilitiesThatArePresentAndMissing) {
  expect("capabilities", Grade::kOk, "has CAP_NET_ADMIN, CAP_BPF, CAP_NET_RAW, CAP_SYS_RESOURCE");
  subject().capabilities = bit_of(Capability::kNetAdmin) | bit_of(Capability::kNetRaw);
  expect("capabilities", Grade::kWarn, "but not CAP_BPF: a client whose connection the guest refuses",
         "AmbientCapabilities");
  expect("capabilities", Grade::kWarn, "at most 128 guest ports");
  subject().capabilities |= bit_of(Capability::kSysAdmin);  // includes CAP_BPF
  expect("capabilities", Grade::kOk, "CAP_SYS_ADMIN");
  subject().capabilities = 0;
  expect("capabilities", Grade::kWarn, "but not CAP_NET_ADMIN and CAP_BPF and CAP_NET_RAW",
         "AmbientCapabilities");
  node_.config.proxy.source_mode = SourceMode::kTransparent;
  expect("capabilities", Grade::kFail, "portwayd does not start", "AmbientCapabilities");
  sysctl("net/ipv4/ip_unprivileged_port_start", "30000");
  expect("capabilities", Grade::kFail, "ports below 30000", "CAP_NET_BIND_SERVICE");
  subject().capabilities = kWanted | bit_of(Capability::kNetBindService);
  expect("capabilities", Grade::kOk, "CAP_NET_BIND_SERVICE");
}

TEST_F(Doctor, ListsEveryCapabilityOnceForEachSetOfThem) {
  Subject same = subject();
  same.pid = 43;
  Subject less = subject();
  less.pid = 44;
  less.capabilities = 0;
  node_.subjects = {subject(), same, less};
  const std::vector<CapabilityRow> rows = capability_rows(node_);
  ASSERT_EQ(rows.size(), 2 * kCapabilityUses.size());
  for (std::size_t i = 0; i < kCapabilityUses.size(); ++i) {
    const CapabilityUse& use = kCapabilityUses.at(i);
    EXPECT_THAT(rows[i].processes, testing::ElementsAre(42, 43)) << use.name;
    EXPECT_EQ(rows[i].use, &use);
    EXPECT_EQ(rows[i].held, subject().has(use.capability)) << use.name;
    EXPECT_THAT(rows[kCapabilityUses.size() + i].processes, testing::ElementsAre(44));
    EXPECT_FALSE(rows[kCapabilityUses.size() + i].held) << use.name;
  }
}

// Its capabilities say what a daemon may read, not its user: as user 0 it has dropped CAP_DAC_OVERRIDE.
TEST_F(Doctor, DoesNotTakeUser0ForOneThatMayEverything) {
  const std::string& key = node_.config.api.admin_key_file;
  subject().uid = ::getuid() + 1;
  expect("admin-key", Grade::kFail, "cannot read it", "chown");
  subject().capabilities |= bit_of(Capability::kDacOverride);
  expect("admin-key", Grade::kOk, key);
}

// One table: what doctor says, and what the handbook says.
TEST(CapabilityTable, IsThatOfTheHandbook) {
  std::ifstream file(PORTWAY_SOURCE_DIRECTORY "/docs/operating.md");
  std::vector<std::string> rows;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("| `CAP_")) rows.push_back(line);
  }
  std::vector<std::string> expected;
  for (const CapabilityUse& use : kCapabilityUses) {
    expected.push_back(std::string("| `") + std::string(use.name) + "` | " + std::string(use.feature) +
                       " | " + std::string(use.kernel) + (use.kernel.empty() ? "| " : " | ") +
                       std::string(use.without_it) + " |");
  }
  EXPECT_EQ(rows, expected);
}

// With two daemons, doctor could not choose one and checked this shell instead.
TEST_F(Doctor, ChecksEachOfSeveralDaemons) {
  Subject second = subject();
  second.pid = 43;
  second.capabilities = bit_of(Capability::kNetAdmin) | bit_of(Capability::kNetRaw);
  second.descriptors_max = 1024;
  node_.subjects.push_back(second);
  std::map<std::string, std::vector<std::string>, std::less<>> found;
  for (const NamedFinding& named : look_at(node_)) {
    found[std::string(named.name)].push_back(std::string(to_string(named.finding.grade)) + " " +
                                             named.finding.detail);
  }
  EXPECT_THAT(found["capabilities"],
              testing::ElementsAre(
                  testing::StartsWith("ok portwayd (process 42) has"),
                  AllOf(testing::StartsWith("warn portwayd (process 43) has"), HasSubstr("CAP_BPF"))));
  EXPECT_THAT(found["descriptors"],
              testing::ElementsAre(testing::StartsWith("ok portwayd (process 42)"),
                                   testing::StartsWith("warn portwayd (process 43) may have 1024")));
  EXPECT_THAT(found["store"], testing::SizeIs(1)) << "a finding that two daemons share is reported once";
  node_.api.down = Failure{Exit::kUnreachable, "Nobody.", "Look."};
  expect("api", Grade::kFail, "portwayd is running (process 42, 43)", "Look.");
}

TEST_F(Doctor, WarnsIfShortConnectionsCanExhaustTheSourcePorts) {
  expect("source-ports", Grade::kOk, "CAP_NET_ADMIN");
  subject().capabilities = 0;
  expect("source-ports", Grade::kOk, "tcp_tw_reuse is 1");
  sysctl("net/ipv4/tcp_tw_reuse", "2");
  expect("source-ports", Grade::kWarn, "tcp_tw_reuse is 2", "sysctl -w net.ipv4.tcp_tw_reuse=1");
}

TEST_F(Doctor, ComparesNeighboursWithTheirTablesSize) {
  constexpr const char* kHead = "entries  allocs table_fulls\n";
  for (const auto& [family, check, file] :
       {std::tuple("ipv4", "neighbours", "arp_cache"), std::tuple("ipv6", "neighbours-v6", "ndisc_cache")}) {
    const std::string key = std::string("net.") + family + ".neigh.default.gc_thresh3";
    const std::string path = std::string("net/") + family + "/neigh/default/gc_thresh3";
    const std::string table = std::string("proc/net/stat/") + file;
    directory_.write(table, std::string(kHead) + "00000010 00000ff0 00000000\n00000010 0000000a 00000000\n");
    expect(check, Grade::kOk, key + " is 1024; 16 neighbours are known, and 1 instance is running");
    directory_.write(table, std::string(kHead) + "00000384 00000ff0 00000000\n");  // 900
    expect(check, Grade::kWarn, "900 neighbours", "sysctl -w " + key + "=4096");
    directory_.write(table, std::string(kHead) + "00000400 00000ff0 00000000\n");
    expect(check, Grade::kFail, "cannot be reached", "sysctl -w " + key);
    directory_.write(table, std::string(kHead) + "00000010 0 00000002\n00000010 0 00000003\n");
    expect(check, Grade::kWarn, "the table was full 5 times", "sysctl -w " + key);
    directory_.write(table, std::string(kHead) + "00000010 0 0\n");
    sysctl(path, "100");
    expect(check, Grade::kWarn, "is 100", "sysctl -w " + key + "=4096");
    sysctl(path, "1");
    expect(check, Grade::kFail, "1 instance is running", "sysctl -w " + key + "=4096");
    std::filesystem::remove(directory_.path() / "proc/sys" / path);
    expect(check, Grade::kSkip, key);
  }
}

TEST_F(Doctor, CountsTheEphemeralPortsTowardsTheBusiestDestination) {
  expect("ephemeral-ports", Grade::kOk, "0 of 28232 ephemeral ports are in use.");
  // 0x8000 is 32768. Listeners, and ports that the kernel does not hand out, are not counted.
  std::string tcp = kNoSockets;
  tcp += "   0: 00000000:8000 00000000:0000 0A 0\n   1: 0100007F:0016 0200007F:0050 01 0\n";
  tcp += "   2: 0100007F:8000 0200007F:0050 06 0\n   3: 0100007F:8001 0200007F:0050 01 0\n";
  tcp += "   4: 0300007F:8001 0200007F:0050 01 0\n";
  directory_.write("proc/net/tcp", tcp);
  directory_.write(
      "proc/net/tcp6",
      std::string(kNoSockets) +
          "   0: 00000000000000000000000001000000:8002 00000000000000000000000001000000:0050 01\n");
  expect("ephemeral-ports", Grade::kOk,
         "3 of 28232 ephemeral ports are in use, 2 of them for connections to 127.0.0.2:80.");
  sysctl("net/ipv4/ip_local_port_range", "32768\t32769");
  expect("ephemeral-ports", Grade::kWarn, "soon no more connections", "net.ipv4.tcp_tw_reuse=1");
  sysctl("net/ipv4/ip_local_port_range", "32768\t33999");
  expect("ephemeral-ports", Grade::kWarn, "so few", "ip_local_port_range");
}

TEST_F(Doctor, ComparesTcpMemoryWithItsLimits) {
  expect("tcp-memory", Grade::kOk,
         "TCP uses 10 MiB; buffers shrink above 781 MiB and are refused above 1171 MiB");
  const auto use = [this](int pages) {
    directory_.write("proc/net/sockstat", "TCP: inuse 9 orphan 0 tw 0 alloc 9 mem " + std::to_string(pages));
  };
  use(160000);
  expect("tcp-memory", Grade::kWarn, "625 MiB", "net.ipv4.tcp_mem=\"200000 400000 600000\"");
  use(300000);
  expect("tcp-memory", Grade::kFail, "refused", "net.ipv4.tcp_mem");
  std::filesystem::remove(directory_.path() / "proc/sys/net/ipv4/tcp_mem");
  expect("tcp-memory", Grade::kSkip, "net.ipv4.tcp_mem");
}

TEST_F(Doctor, WarnsAboutAShortBacklogAndAFullConntrackTable) {
  sysctl("net/core/somaxconn", "128");
  expect("backlog", Grade::kWarn, "128", "net.core.somaxconn=4096");
  expect("conntrack", Grade::kOk, "Not loaded");
  sysctl("net/netfilter/nf_conntrack_max", "1000");
  sysctl("net/netfilter/nf_conntrack_count", "799");
  expect("conntrack", Grade::kOk, "799 of 1000");
  sysctl("net/netfilter/nf_conntrack_count", "800");
  expect("conntrack", Grade::kWarn, "800 of 1000", "nf_conntrack_max=2000");
}

TEST_F(Doctor, ReportsWhatIsWrongWithTheConfiguration) {
  node_.config.guests.networks.clear();
  expect("config", Grade::kWarn, "guests.networks is empty", node_.config_file);
  node_.config_found = false;
  expect("config", Grade::kWarn, "defaults are assumed", "--config");
  node_.config_error = Error{ErrorCode::kInvalidConfig, "portway.toml:3: unknown key"};
  expect("config", Grade::kFail, "portway.toml:3");
}

TEST_F(Doctor, ReportsAMissingPublicAddress) {
  node_.config.node.public_addresses = {parse_address("192.0.2.1").value()};
  expect("addresses", Grade::kOk, "192.0.2.1");
  node_.config.node.public_addresses.push_back(parse_address("203.0.113.7").value());
  expect("addresses", Grade::kFail, "203.0.113.7", "node.public_addresses");
}

TEST_F(Doctor, WarnsWhenTheKernelHandsOutPortsOfTheRange) {
  sysctl("net/ipv4/ip_local_port_range", "32000\t60999");
  expect("port-range", Grade::kWarn, "768 ports", "sysctl -w net.ipv4.ip_local_reserved_ports=32000-32767");
  sysctl("net/ipv4/ip_local_reserved_ports", "32000-32767");
  expect("port-range", Grade::kOk, "20000-32767");
  sysctl("net/ipv4/ip_local_port_range", "20000\t32999");
  sysctl("net/ipv4/ip_local_reserved_ports", "");
  expect("port-range", Grade::kWarn, "12768 ports", "Do not reserve them all: that would leave 232 ports");
}

TEST_F(Doctor, ChecksThatTheDaemonCanWriteItsStore) {
  expect("store", Grade::kOk, directory_.path());
  node_.config.store.path = directory_.path() / "made/by/portwayd.db";
  expect("store", Grade::kOk, directory_.path());
  subject().uid = 65533;
  subject().groups.clear();
  expect("store", Grade::kFail, "user 65533 cannot write to it", "install -d -m 0750 -o 65533");
  ::chmod(directory_.path().c_str(), 0707);
  expect("store", Grade::kOk, "writable");
  ::chmod(directory_.path().c_str(), 0700);
}

TEST_F(Doctor, RefusesAnAdminKeyThatOthersCanRead) {
  const std::string& key = node_.config.api.admin_key_file;
  ::chmod(key.c_str(), 0640);
  expect("admin-key", Grade::kFail, "mode 640", "chmod 600 " + key);
  ::chmod(key.c_str(), 0600);
  subject().uid = 65533;
  expect("admin-key", Grade::kFail, "user 65533 cannot read it", "chown 65533");
  node_.config.api.admin_key_file = directory_.path() / "none.key";
  expect("admin-key", Grade::kOk, "first start");
}

TEST_F(Doctor, DistinguishesAStoppedDaemonFromOneThatDoesNotAnswer) {
  node_.api.down =
      Failure{Exit::kUnreachable, "http://127.0.0.1:8080: cannot connect: Connection refused.", "Look."};
  expect("api", Grade::kFail, "portwayd is running (process 42)", "Look.");
  expect("taps", Grade::kSkip, "did not list");
  expect("rp-filter", Grade::kSkip, "did not list");
  subject().pid = 0;
  expect("api", Grade::kWarn, "Connection refused", "Start portwayd");
  node_.api.down.reset();
  node_.api.version = "0.0.1";
  expect("api", Grade::kWarn, "version 0.0.1", PORTWAY_VERSION);
  node_.api.refused = Failure{Exit::kNotAllowed, "Unauthorized"};
  expect("key", Grade::kWarn, "Unauthorized", "--key-file " + node_.config.api.admin_key_file);
}

TEST_F(Doctor, ChecksTheTapsOfRunningInstances) {
  node_.api.running.push_back({"vm-2", "tap2"});
  expect("taps", Grade::kFail, "tap2 (vm-2)", "portway instances stop");
  links_["tap2"] = LinkState::kNoCarrier;
  expect("taps", Grade::kWarn, "No carrier: tap2 (vm-2)", "ip link set");
  sysctl("net/ipv4/conf/tap2/rp_filter", "0");
}

// Loose filtering once passed: it lets a guest use its neighbour's source address.
TEST_F(Doctor, WarnsIfAGuestCanUseAnothersAddress) {
  node_.api.running = {{"vm-2", "tap2"}};
  links_["tap2"] = LinkState::kCarrier;
  for (const auto& [all, own] : {std::pair("0", "0"), std::pair("0", "2"), std::pair("2", "0")}) {
    SCOPED_TRACE(all + std::string(own));
    sysctl("net/ipv4/conf/all/rp_filter", all);
    sysctl("net/ipv4/conf/tap2/rp_filter", own);
    node_.api.source_guard = false;
    expect("rp-filter", Grade::kWarn, "another guest's address as its source",
           "net/ipv4/conf/tap2/rp_filter=1");
    expect("rp-filter", Grade::kWarn, "tap2", "CAP_BPF");
    node_.api.source_guard = true;
    expect("rp-filter", Grade::kWarn, "not a guest of this node", "net/ipv4/conf/tap2/rp_filter=1");
  }
  // The larger value applies: 1 on the tap alone would not be strict.
  sysctl("net/ipv4/conf/tap2/rp_filter", "1");
  expect("rp-filter", Grade::kWarn, "tap2", "sysctl -w net/ipv4/conf/all/rp_filter=0");
  sysctl("net/ipv4/conf/all/rp_filter", "1");
  sysctl("net/ipv4/conf/tap2/rp_filter", "0");
  expect("rp-filter", Grade::kOk, "");
}

// Strict filtering on both taps of guests with one address cuts one of them off.
TEST_F(Doctor, AsksForNoStrictFilteringThatWouldCutAGuestOff) {
  sysctl("net/ipv4/conf/all/rp_filter", "0");
  for (const char* tap : {"tap2", "tap3"}) {
    links_[tap] = LinkState::kCarrier;
    sysctl("net/ipv4/conf/" + std::string(tap) + "/rp_filter", "0");
  }
  node_.api.running = {{"vm-2", "tap2", "", "198.19.0.2"}, {"vm-3", "tap3", "", "198.19.0.2"}};
  expect("rp-filter", Grade::kOk, "");
  node_.api.running = {{"vm-2", "tap2", "br0", "198.19.0.2"}};
  expect("rp-filter", Grade::kOk, "");
  node_.api.running = {{"vm-2", "tap2", "", "198.19.0.2"}, {"vm-3", "tap3", "", "198.19.0.3"}};
  expect("rp-filter", Grade::kWarn, "tap2, tap3", "net/ipv4/conf/tap2/rp_filter=1");
}

TEST_F(Doctor, ChecksTheDaemonIfOneRunsAndItselfOtherwise) {
  directory_.write("proc/self/status",
                   "Name:\tportway\nUid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\n"
                   "Groups:\t4 27 \nCapEff:\t0000000000000000\n");
  directory_.write("proc/self/limits",
                   "Limit  Soft  Hard  Units\nMax open files            1024                 524288 files\n");
  Subject subject = find_subjects(directory_.path()).front();
  EXPECT_FALSE(subject.is_daemon());
  EXPECT_EQ(subject.uid, 1000U);
  EXPECT_THAT(subject.groups, testing::ElementsAre(100, 4, 27));
  EXPECT_EQ(subject.descriptors_max, 524288U);

  directory_.write("proc/77/comm", "portwayd\n");
  directory_.write("proc/77/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t0000000001002400\n");
  directory_.write("proc/77/limits",
                   "Max open files            200000               unlimited            files\n");
  ASSERT_THAT(find_subjects(directory_.path()), testing::SizeIs(1));
  subject = find_subjects(directory_.path()).front();
  EXPECT_EQ(subject.pid, 77);
  EXPECT_EQ(subject.descriptors_max, 200000U);
  EXPECT_TRUE(subject.has(Capability::kNetBindService));
  EXPECT_TRUE(subject.has(Capability::kNetRaw));
  EXPECT_TRUE(subject.has(Capability::kSysResource));
  EXPECT_FALSE(subject.has(Capability::kNetAdmin));

  directory_.write("proc/9/comm", "portwayd\n");
  directory_.write("proc/9/status", "Uid:\t5\t5\t5\t5\nGid:\t5\t5\t5\t5\nCapEff:\t0\n");
  directory_.write("proc/78/comm", "portwayd\n");  // has ended: no status
  const std::vector<Subject> both = find_subjects(directory_.path());
  ASSERT_THAT(both, testing::SizeIs(2));
  EXPECT_EQ(both[0].pid, 9);
  EXPECT_EQ(both[1].pid, 77);
}

TEST_F(Doctor, ReportsATableOrJsonAndFailsIfACheckFailed) {
  const std::vector<NamedFinding> findings = {{"one", {Grade::kOk, "Fine."}},
                                              {"two", {Grade::kFail, "Broken.", "Fix it."}}};
  const CapabilityUse& admin = kCapabilityUses.front();
  const std::vector<CapabilityRow> rows = {{.processes = {42}, .use = &admin, .held = false}};
  std::ostringstream out;
  Console console{.out = out, .err = out};
  const auto reported = report(findings, rows, Format::kTable, console);
  ASSERT_FALSE(reported);
  EXPECT_EQ(reported.error().exit, Exit::kRefused);
  EXPECT_THAT(out.str(),
              testing::StartsWith("ok    one  Fine.\nfail  two  Broken.\n           -> Fix it.\n"));
  EXPECT_THAT(out.str(), testing::ContainsRegex("CAPABILITY +PROCESS 42 +FOR"));
  EXPECT_THAT(out.str(), testing::ContainsRegex("CAP_NET_ADMIN +no +guests see their clients' addresses"));
  EXPECT_THAT(out.str(), HasSubstr("-> without it: guests see the node's address"));

  out.str("");
  EXPECT_FALSE(report(findings, rows, Format::kJson, console));
  const auto json = boost::json::parse(out.str());
  EXPECT_EQ(json.at("failed"), 1);
  EXPECT_EQ(json.at("checks").at(1).at("remedy"), "Fix it.");
  EXPECT_EQ(json.at("capabilities").at(0).at("name"), "CAP_NET_ADMIN");
  EXPECT_EQ(json.at("capabilities").at(0).at("held"), false);
  EXPECT_EQ(json.at("capabilities").at(0).at("processes").at(0), 42);
  EXPECT_TRUE(report({findings[0]}, {}, Format::kTable, console));
}

TEST(DoctorsServer, IsTheOneOfTheConfiguration) {
  const TemporaryDirectory directory;
  const auto answer = [](const std::string&) { return http_answer(200, R"({"version":"9.9.9"})"); };
  const auto doctor = [&](const std::string& api) {
    const std::string config = directory.write("portway.toml", "[api]\n" + api);
    return run_portway({"doctor", "--config", config}).out;
  };
  {
    const FakeServer server("tcp", answer);
    const std::string port = server.url().substr(server.url().rfind(':'));
    EXPECT_THAT(doctor("listen = \"127.0.0.1" + port + "\"\n"), HasSubstr(server.url() + " is ready"));
    EXPECT_THAT(doctor("listen = \"0.0.0.0" + port + "\"\n"), HasSubstr(server.url() + " is ready"));
    // A server that is named explicitly takes precedence.
    const std::string config = directory.write("portway.toml", "[api]\nlisten = \"127.0.0.1:1\"\n");
    EXPECT_THAT(run_portway({"doctor", "--config", config}, {{"PORTWAY_SERVER", server.url()}}).out,
                HasSubstr(server.url() + " is ready"));
    EXPECT_THAT(run_portway({"doctor", "--config", config}).out,
                HasSubstr("http://127.0.0.1:1: cannot connect"));
  }
  {
    const std::string socket = "unix:" + (directory.path() / "api.sock").string();
    const FakeServer server(socket, answer);
    EXPECT_THAT(doctor("listen = \"" + socket + "\"\n"), HasSubstr(socket + " is ready"));
  }
  const std::string pem = directory.path() / "server.pem";
  const std::string other = directory.path() / "other.pem";
  make_certificate(pem);
  make_certificate(other);
  const FakeServer server("tls:" + pem, answer);
  const std::string listen = "listen = \"127.0.0.1" + server.url().substr(server.url().rfind(':')) + "\"\n";
  const auto tls = [&](const std::string& file) {
    return doctor(listen + "tls_certificate = \"" + file + "\"\ntls_private_key = \"" + file + "\"\n");
  };
  EXPECT_THAT(tls(pem), HasSubstr(server.url() + " is ready")) << "no authority has to be named";
  EXPECT_THAT(tls(other), HasSubstr("its certificate is not the one of " + other));
}

TEST(ConfigCheck, ReportsWhatPortwaydWouldReport) {
  const TemporaryDirectory directory;
  const std::string good = directory.write("good.toml", "[guests]\nnetworks = [\"198.18.0.0/15\"]\n");
  ClientRun run = run_portway({"config", "check", good});
  EXPECT_EQ(run.exit, 0);
  EXPECT_THAT(run.out, HasSubstr(good + ": valid\n"));

  const std::string bad = directory.write("bad.toml", "[api]\nlisten_on = \"127.0.0.1:80\"\n");
  run = run_portway({"config", "check", bad});
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.err, AllOf(HasSubstr(bad + ":2"), HasSubstr("listen_on")));

  // The check once accepted whatever files the keys named.
  const auto check = [&](const std::string& text) {
    return run_portway({"config", "check", directory.write("files.toml", text)});
  };
  const std::string pem = directory.path() / "a.pem";
  const std::string other = directory.path() / "b.pem";
  make_certificate(pem);
  make_certificate(other);
  const auto tls = [&](const std::string& certificate, const std::string& key, const std::string& ca) {
    return check("[api]\ntls_certificate = \"" + certificate + "\"\ntls_private_key = \"" + key +
                 "\"\nclient_ca = \"" + ca + "\"\n");
  };
  EXPECT_EQ(tls(pem, pem, pem).exit, 0);
  for (const auto& [wrong, what] :
       {std::pair(tls("/nowhere.pem", pem, ""), "api.tls_certificate: /nowhere.pem: No such file"),
        std::pair(tls(pem, "/nowhere.pem", ""), "api.tls_private_key: /nowhere.pem: No such file"),
        std::pair(tls(pem, other, ""), "api.tls_private_key: "),
        std::pair(tls(pem, pem, "/nowhere.pem"), "api.client_ca: /nowhere.pem: "),
        std::pair(check("[log]\naccess = \"/nowhere/access.log\"\n"),
                  "log.access: /nowhere/access.log: its dir"),
        std::pair(check("[store]\npath = \"/dev/null/portway.db\"\n"),
                  "store.path: /dev/null: it is no directory"),
        std::pair(check("[store]\npath = \"/tmp\"\n"), "store.path: /tmp: it is a directory")}) {
    EXPECT_EQ(wrong.exit, 1) << what;
    EXPECT_THAT(wrong.err, HasSubstr(what));
  }
  const ClientRun later = check("[api]\nlisten = \"unix:/nowhere/api.sock\"\n");
  EXPECT_EQ(later.exit, 0) << later.err;
  EXPECT_THAT(later.out, HasSubstr("warning: api.listen: /nowhere/api.sock"));
  const std::string open_key = directory.write("open.key", "pwk_key\n");
  ::chmod(open_key.c_str(), 0644);
  EXPECT_THAT(check("[api]\nadmin_key_file = \"" + open_key + "\"\n").err, HasSubstr("chmod 600"));

  run = run_portway({"config", "check", bad, "-o", "json"});
  EXPECT_EQ(run.exit, 1);
  const auto json = boost::json::parse(run.out);
  EXPECT_EQ(json.at("valid"), false);
  EXPECT_EQ(json.at("key"), "api.listen_on");
  EXPECT_EQ(run_portway({"config", "check", "/nowhere.toml"}).exit, 1);
}

}  // namespace
}  // namespace portway::test
