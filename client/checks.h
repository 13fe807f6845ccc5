// doctor's checks, as data: each one inspects the node and returns one finding.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/node_facts.h"

namespace portway {

enum class Grade : std::uint8_t {
  kOk,
  kSkip,  // could not be checked
  kWarn,  // works, but worse than it could
  kFail,  // does not work
};
std::string_view to_string(Grade grade);

struct Finding {
  Grade grade = Grade::kOk;
  std::string detail;
  std::string remedy = {};  // for kWarn and kFail

  friend bool operator==(const Finding&, const Finding&) = default;
};

struct Check {
  using OfNode = Finding (*)(const NodeFacts&);
  using OfProcess = Finding (*)(const NodeFacts&, const Subject&);  // for each subject

  constexpr Check(std::string_view check_name, OfNode look) : name(check_name), of_node(look) {}
  constexpr Check(std::string_view check_name, OfProcess look) : name(check_name), of_process(look) {}

  std::string_view name;
  OfNode of_node = nullptr;  // one of the two
  OfProcess of_process = nullptr;
};

/// What the kernel offers: version, io_uring, limits, capabilities.
std::span<const Check> kernel_checks();
/// What is left in the kernel's tables, ports and TCP memory.
std::span<const Check> tcp_checks();
/// What the operator set up: configuration, files, addresses, ports, devices, the daemon.
std::span<const Check> setup_checks();

struct NamedFinding {
  std::string_view name;
  Finding finding;

  friend bool operator==(const NamedFinding&, const NamedFinding&) = default;
};
std::vector<NamedFinding> look_at(const NodeFacts& node);

/// Which capability buys what, and which of them a process has.
struct CapabilityRow {
  std::vector<pid_t> processes;  // with the same capabilities; empty: this process
  const CapabilityUse* use = nullptr;
  bool held = false;
};
/// All of kCapabilityUses for each process; once for those that have the same ones.
std::vector<CapabilityRow> capability_rows(const NodeFacts& node);

/// "sysctl -w NAME=VALUE", and the file that makes it permanent.
std::string sysctl_remedy(std::string_view name, std::int64_t value);

}  // namespace portway
