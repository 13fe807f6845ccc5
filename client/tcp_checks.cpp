// doctor's checks of the resources that every connection needs: neighbour entries, source ports, TCP memory.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "client/checks.h"
#include "network/ephemeral_ports.h"

namespace portway {
namespace {

constexpr std::int64_t kPagesPerMiB = 256;
constexpr std::int64_t kNeighboursRoom = 128;  // for neighbours that are not guests: routers, other nodes

/// So much is in use that a burst could exhaust the rest.
bool nearly_full(std::int64_t used, std::int64_t most) {
  return used >= most - most / 5;
}

struct Counters {
  std::int64_t entries = 0;
  std::int64_t table_fulls = 0;  // entries refused for lack of room since boot
};

/// Reads /proc/net/stat/arp_cache or ndisc_cache: a line of names, then a line of hexadecimal numbers per
/// core. "entries" is that of the whole table on each line.
std::optional<Counters> neighbour_counters(const NodeFacts& node, const std::string& file) {
  const auto text = node.text("proc/net/stat/" + file);
  if (!text) return std::nullopt;
  std::istringstream lines(*text);
  std::string line;
  std::getline(lines, line);
  std::vector<std::string> names;
  std::istringstream head(line);
  for (std::string name; head >> name;) names.push_back(name);
  Counters counters;
  while (std::getline(lines, line)) {
    std::istringstream row(line);
    row >> std::hex;
    std::int64_t value = 0;
    for (std::size_t i = 0; i < names.size() && row >> value; ++i) {
      if (names[i] == "entries") counters.entries = std::max(counters.entries, value);
      if (names[i] == "table_fulls") counters.table_fulls += value;
    }
  }
  return counters;
}

/// "1 instance is", "2 instances are".
std::string are(std::int64_t count, std::string_view noun) {
  return fmt::format("{} {}{} {}", count, noun, count == 1 ? "" : "s", count == 1 ? "is" : "are");
}

/// The kernel keeps at most gc_thresh3 entries for all network namespaces together. With a full table,
/// further guests cannot be reached.
Finding check_neighbours(const NodeFacts& node, std::string_view family, const std::string& file) {
  const std::string key = fmt::format("net.{}.neigh.default.gc_thresh3", family);
  const auto most = node.sysctl(key);
  if (!most) return {Grade::kSkip, key + " cannot be read; it exists only in the initial network namespace."};
  const Counters counters = neighbour_counters(node, file).value_or(Counters{});
  const auto guests = static_cast<std::int64_t>(node.api.running.size());
  const std::int64_t wanted = std::max(guests, counters.entries) + kNeighboursRoom;
  std::string detail = fmt::format("{} is {}; {} known, and {} running", key, *most,
                                   are(counters.entries, "neighbour"), are(guests, "instance"));
  if (counters.table_fulls > 0) {
    detail += fmt::format("; the table was full {} {} since boot", counters.table_fulls,
                          counters.table_fulls == 1 ? "time" : "times");
  }
  const std::string remedy = sysctl_remedy(key, std::max<std::int64_t>(wanted * 2, 4096));
  if (guests >= *most || counters.entries >= *most) {
    return {Grade::kFail, detail + ": guests without an entry cannot be reached.", remedy};
  }
  if (counters.table_fulls > 0 || wanted > *most || nearly_full(counters.entries, *most)) {
    return {Grade::kWarn, detail + ": when the table is full, new guests cannot be reached.", remedy};
  }
  return {Grade::kOk, detail + "."};
}

Finding check_neighbours_v4(const NodeFacts& node) {
  return check_neighbours(node, "ipv4", "arp_cache");
}

Finding check_neighbours_v6(const NodeFacts& node) {
  return check_neighbours(node, "ipv6", "ndisc_cache");
}

/// Parses "0201A8C0:0016" of /proc/net/tcp: the address in 32-bit words in host byte order, and the port.
std::string endpoint_text(const std::string& hex) {
  const std::size_t colon = hex.find(':');
  std::array<unsigned char, 16> bytes{};
  const std::size_t words = colon / 8;
  for (std::size_t i = 0; i < std::min<std::size_t>(words, 4); ++i) {
    std::uint32_t word = 0;
    std::from_chars(hex.data() + i * 8, hex.data() + (i + 1) * 8, word, 16);
    std::memcpy(bytes.data() + i * 4, &word, sizeof word);
  }
  std::uint16_t port = 0;
  std::from_chars(hex.data() + colon + 1, hex.data() + hex.size(), port, 16);
  if (words == 1) {
    return to_string(Endpoint(boost::asio::ip::address_v4({bytes[0], bytes[1], bytes[2], bytes[3]}), port));
  }
  return to_string(Endpoint(boost::asio::ip::address_v6(bytes), port));
}

struct PortsInUse {
  bool readable = false;
  std::unordered_set<std::uint16_t> ports;           // ephemeral ports without a listener
  std::unordered_map<std::string, std::size_t> use;  // by "LOCAL-ADDRESS DESTINATION"
};

/// Connections of /proc/net/tcp or tcp6, those in TIME_WAIT included.
void count_ports(const std::filesystem::path& file, const std::vector<PortRange>& ephemeral,
                 PortsInUse& in_use) {
  constexpr std::string_view kListen = "0A";
  std::ifstream lines(file);
  in_use.readable |= lines.is_open();
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    std::istringstream row(line);
    std::string number;
    std::string local;
    std::string remote;
    std::string state;
    const std::size_t colon = row >> number >> local >> remote >> state ? local.find(':') : std::string::npos;
    if (colon == std::string::npos || state == kListen || remote.find(':') == std::string::npos) continue;
    std::uint16_t port = 0;
    std::from_chars(local.data() + colon + 1, local.data() + local.size(), port, 16);
    if (std::ranges::none_of(ephemeral, [port](const PortRange& range) { return range.contains(port); })) {
      continue;
    }
    in_use.ports.insert(port);
    ++in_use.use[local.substr(0, colon + 1) + " " + remote];
  }
}

/// The ephemeral ports limit the connections from one address to one destination.
Finding check_ephemeral_ports(const NodeFacts& node) {
  const std::vector<PortRange> ephemeral =
      ephemeral_ports({.range = node.root / "proc/sys/net/ipv4/ip_local_port_range",
                       .reserved = node.root / "proc/sys/net/ipv4/ip_local_reserved_ports"});
  PortsInUse in_use;
  for (const char* file : {"proc/net/tcp", "proc/net/tcp6"}) {
    count_ports(node.root / file, ephemeral, in_use);
  }
  if (ephemeral.empty() || !in_use.readable) {
    return {Grade::kSkip, "net.ipv4.ip_local_port_range or /proc/net/tcp cannot be read."};
  }
  std::int64_t all = 0;
  for (const PortRange& range : ephemeral) all += range.size();
  const auto most = std::ranges::max_element(in_use.use, {}, [](const auto& entry) { return entry.second; });
  const std::size_t busiest = most == in_use.use.end() ? 0 : most->second;
  std::string detail = fmt::format("{} of {} ephemeral ports are in use", in_use.ports.size(), all);
  if (busiest > 0) {
    const std::string& key = most->first;
    detail += fmt::format(", {} of them for connections to {}", busiest,
                          endpoint_text(key.substr(key.find(' ') + 1)));
  }
  if (nearly_full(static_cast<std::int64_t>(busiest), all)) {
    return {Grade::kWarn,
            detail + ": soon no more connections to that destination can be opened from the same address.",
            "Widen net.ipv4.ip_local_port_range (outside ports.range), or " +
                sysctl_remedy("net.ipv4.tcp_tw_reuse", 1)};
  }
  if (all < kEphemeralPortsMin) {
    return {Grade::kWarn, detail + ": so few are soon exhausted by short connections to one destination.",
            "Widen net.ipv4.ip_local_port_range (outside ports.range), or reserve fewer in "
            "net.ipv4.ip_local_reserved_ports."};
  }
  return {Grade::kOk, detail + "."};
}

/// The number after NAME in the line "TCP: inuse 5 ... mem 12" of /proc/net/sockstat.
std::optional<std::int64_t> sockstat(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("TCP: ")) continue;
    std::istringstream words(line.substr(5));
    std::string word;
    for (std::int64_t value = 0; words >> word >> value;) {
      if (word == name) return value;
    }
  }
  return std::nullopt;
}

/// In pages, for all network namespaces together: above the second value of tcp_mem the kernel shrinks
/// buffers, above the third it refuses memory.
Finding check_tcp_memory(const NodeFacts& node) {
  std::istringstream limits(node.text("proc/sys/net/ipv4/tcp_mem").value_or(""));
  std::int64_t low = 0;
  std::int64_t pressure = 0;
  std::int64_t high = 0;
  const auto used = sockstat(node.text("proc/net/sockstat").value_or(""), "mem");
  if (!used || !(limits >> low >> pressure >> high)) {
    return {Grade::kSkip,
            "net.ipv4.tcp_mem or /proc/net/sockstat cannot be read; tcp_mem exists only in the initial "
            "network namespace."};
  }
  const std::string detail = fmt::format(
      "TCP uses {} MiB; buffers shrink above {} MiB and are refused above {} MiB (net.ipv4.tcp_mem)",
      *used / kPagesPerMiB, pressure / kPagesPerMiB, high / kPagesPerMiB);
  const std::string remedy = fmt::format(
      "sysctl -w net.ipv4.tcp_mem=\"{} {} {}\" if the node has enough memory; or lower "
      "proxy.connections_max or the buffers in [proxy].",
      low * 2, pressure * 2, high * 2);
  if (*used >= high) return {Grade::kFail, detail + ": connections stall and are reset.", remedy};
  if (nearly_full(*used, pressure)) {
    return {Grade::kWarn, detail + ": connections slow down.", remedy};
  }
  return {Grade::kOk, detail + "."};
}

}  // namespace

std::span<const Check> tcp_checks() {
  static constexpr auto kChecks = std::to_array<Check>({
      {"neighbours", check_neighbours_v4},
      {"neighbours-v6", check_neighbours_v6},
      {"ephemeral-ports", check_ephemeral_ports},
      {"tcp-memory", check_tcp_memory},
  });
  return kChecks;
}

}  // namespace portway
