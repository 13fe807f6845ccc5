#include "network/ephemeral_ports.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <sstream>
#include <string_view>

#include "base/fd.h"

namespace portway {
namespace {

using Ports = std::bitset<65536>;

constexpr std::uint32_t kFirstUnprivileged = 1024;
constexpr std::uint32_t kAboveMostServices = 10'000;
constexpr std::size_t kListMax = 400;  // characters of a list that is still shown whole

/// The kernel gives a list out to one read(2) only: what does not fit that is cut.
std::string read_whole(const std::string& path) {
  std::string text;
  for (const std::size_t room : {4096U, 1U << 20}) {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    text.resize(room);
    const ssize_t size = ::read(file.get(), text.data(), text.size());
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    if (text.size() < room) break;
  }
  return text;
}

void add(Ports& ports, const PortRange& range) {
  for (std::uint32_t port = range.first; port <= range.last; ++port) ports.set(port);
}

/// Of the comma-separated list of ports and ranges, e.g. "8080,9148,30000-30010".
Ports parse_list(std::string_view list) {
  Ports ports;
  list = list.substr(0, list.find_last_not_of(" \n") + 1);
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (const auto listed = parse_port_range(list.substr(0, comma))) add(ports, *listed);
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return ports;
}

/// The runs of ports from `lowest` that are in the set.
std::vector<PortRange> runs(const Ports& ports, std::uint32_t lowest = 1) {
  std::vector<PortRange> found;
  for (std::uint32_t port = lowest; port < ports.size(); ++port) {
    if (!ports[port]) continue;
    if (found.empty() || found.back().last + 1U != port || port == lowest) {
      found.push_back({static_cast<std::uint16_t>(port), static_cast<std::uint16_t>(port)});
    }
    found.back().last = static_cast<std::uint16_t>(port);
  }
  return found;
}

std::string to_list(const Ports& ports) {
  std::string list;
  for (const PortRange& run : runs(ports)) {
    list += list.empty() ? "" : ",";
    list += run.size() == 1 ? std::to_string(run.first) : to_string(run);
  }
  return list;
}

std::optional<PortRange> longest_run(const Ports& ports, std::uint32_t lowest) {
  const std::vector<PortRange> all = runs(ports, lowest);
  const auto longest = std::max_element(
      all.begin(), all.end(), [](const PortRange& a, const PortRange& b) { return a.size() < b.size(); });
  return longest == all.end() ? std::nullopt : std::optional(*longest);
}

std::optional<PortRange> read_range(const EphemeralPortFiles& files) {
  PortRange range;
  std::istringstream bounds(read_whole(files.range));
  if (!(bounds >> range.first >> range.last) || range.first > range.last) return std::nullopt;
  return range;
}

/// What the kernel gives to outgoing connections, and what must not be.
struct Conflict {
  PortRange range;   // ports.range
  Ports reserved;    // net.ipv4.ip_local_reserved_ports
  Ports handed_out;  // by the kernel: net.ipv4.ip_local_port_range without the reserved ones
};

std::size_t left_without(const Conflict& conflict, const PortRange& range) {
  Ports reserved;
  add(reserved, range);
  return (conflict.handed_out & ~reserved).count();
}

std::string reserve_command(const Conflict& conflict, const PortRange& range) {
  Ports more;
  add(more, range);
  more &= conflict.handed_out;
  const std::string key = "net.ipv4.ip_local_reserved_ports";
  const std::string whole = to_list(conflict.reserved | more);
  if (whole.size() <= kListMax) return "sysctl -w " + key + "=" + whole;
  const std::vector<PortRange> parts = runs(more);
  const PortRange all{parts.front().first, parts.back().last};  // what is reserved in between stays so
  return "sysctl -w " + key + "=\"$(sysctl -n " + key + ")," + to_string(all) + "\"";
}

/// A ports.range as large as the one there is, of ports that the kernel hands out to nobody.
std::optional<PortRange> other_range(const Conflict& conflict, std::uint32_t lowest) {
  for (const PortRange& run : runs(~conflict.handed_out, lowest)) {
    if (run.size() < conflict.range.size()) continue;
    const bool first_fits = run.last == 65535;  // else next to what the kernel hands out
    const auto first =
        static_cast<std::uint16_t>(first_fits ? run.first : run.last - conflict.range.size() + 1);
    return PortRange{first, static_cast<std::uint16_t>(first + conflict.range.size() - 1)};
  }
  return std::nullopt;
}

/// An ip_local_port_range beside ports.range that has enough ports. The kernel wants one bound to be even and
/// the other to be odd (ip-sysctl.rst).
std::optional<PortRange> other_ephemeral(const Conflict& conflict, std::uint32_t lowest) {
  Ports forwards;
  add(forwards, conflict.range);
  auto run = longest_run(~forwards, lowest);
  if (!run) return std::nullopt;
  if (run->first % 2 == 1) ++run->first;
  if (run->last % 2 == 0) --run->last;
  if (run->first > run->last) return std::nullopt;
  Ports ephemeral;
  add(ephemeral, *run);
  if ((ephemeral & ~conflict.reserved).count() < kEphemeralPortsMin) return std::nullopt;
  return run;
}

std::string count_of(const PortRange& range) {
  return " (" + std::to_string(range.size()) + " ports)";
}

/// If reserving the whole of ports.range would leave too few ports.
std::string other_remedy(const Conflict& conflict) {
  for (const std::uint32_t lowest : {kAboveMostServices, kFirstUnprivileged}) {
    const auto range = other_range(conflict, lowest);
    const auto ephemeral = other_ephemeral(conflict, lowest);
    std::string remedy;
    if (range) remedy = "Set ports.range to " + to_string(*range);
    if (ephemeral) {
      remedy += std::string(range ? ", or run" : "Run") + ": sysctl -w net.ipv4.ip_local_port_range=\"" +
                std::to_string(ephemeral->first) + " " + std::to_string(ephemeral->last) + "\"" +
                count_of(*ephemeral);
    }
    if (!remedy.empty()) return remedy + ".";
  }
  // Nothing lies beside the other: a smaller part of the range.
  PortRange part = conflict.range;
  std::size_t left = left_without(conflict, part);
  for (; left < kEphemeralPortsMin && part.last > part.first; --part.last) {
    if (conflict.handed_out[part.last]) ++left;
  }
  if (left >= kEphemeralPortsMin) {
    return "Set ports.range to " + to_string(part) + count_of(part) +
           ", and run: " + reserve_command(conflict, part);
  }
  if (const auto run = longest_run(~conflict.handed_out, kFirstUnprivileged)) {
    return "Set ports.range to " + to_string(*run) + count_of(*run) + ".";
  }
  return "Choose another ports.range or net.ipv4.ip_local_port_range.";
}

}  // namespace

std::vector<PortRange> ephemeral_ports(const EphemeralPortFiles& files) {
  const auto range = read_range(files);
  if (!range) return {};
  Ports ports;
  add(ports, *range);
  return runs(ports & ~parse_list(read_whole(files.reserved)));
}

std::optional<EphemeralOverlap> ephemeral_overlap(const PortRange& range, const EphemeralPortFiles& files) {
  const auto ephemeral = read_range(files);
  if (!ephemeral) return std::nullopt;
  Conflict conflict{.range = range, .reserved = parse_list(read_whole(files.reserved)), .handed_out = {}};
  add(conflict.handed_out, *ephemeral);
  conflict.handed_out &= ~conflict.reserved;

  const std::size_t left = left_without(conflict, range);
  const std::size_t exposed = conflict.handed_out.count() - left;
  if (exposed == 0) return std::nullopt;
  EphemeralOverlap overlap;
  overlap.problem = std::to_string(exposed) + " ports of ports.range " + to_string(range) +
                    " are also handed out by the kernel to outgoing connections "
                    "(net.ipv4.ip_local_port_range " +
                    to_string(*ephemeral) + "); a forward cannot have such a port while one uses it.";
  if (left >= kEphemeralPortsMin) {
    overlap.remedy = "Change ports.range, or reserve them, which leaves " + std::to_string(left) +
                     " ports for the node's own outgoing connections: " + reserve_command(conflict, range);
  } else {
    overlap.remedy = "Do not reserve them all: that would leave " + std::to_string(left) +
                     " ports for the node's own outgoing connections, and " +
                     std::to_string(kEphemeralPortsMin) + " are the least. " + other_remedy(conflict);
  }
  return overlap;
}

}  // namespace portway
