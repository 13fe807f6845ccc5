#include "client/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace portway {

std::string_view to_string(Grade grade) {
  constexpr auto kNames = std::to_array<std::string_view>({"ok", "skip", "warn", "fail"});
  static_assert(kNames.size() == static_cast<std::size_t>(Grade::kFail) + 1);
  return kNames[static_cast<std::size_t>(grade)];
}

namespace {

void look(const Check& check, const NodeFacts& node, std::vector<NamedFinding>& findings) {
  if (check.of_node != nullptr) {
    findings.push_back({check.name, check.of_node(node)});
    return;
  }
  const std::size_t first = findings.size();
  for (const Subject& subject : node.subjects) {
    NamedFinding found{check.name, check.of_process(node, subject)};
    // Daemons of the same user share many findings: report each once.
    if (std::find(findings.begin() + static_cast<std::ptrdiff_t>(first), findings.end(), found) ==
        findings.end()) {
      findings.push_back(std::move(found));
    }
  }
}

}  // namespace

std::vector<NamedFinding> look_at(const NodeFacts& node) {
  std::vector<NamedFinding> findings;
  for (const std::span<const Check> part : {kernel_checks(), tcp_checks(), setup_checks()}) {
    for (const Check& check : part) look(check, node, findings);
  }
  return findings;
}

std::vector<CapabilityRow> capability_rows(const NodeFacts& node) {
  std::vector<std::pair<std::uint64_t, std::vector<pid_t>>> sets;
  for (const Subject& subject : node.subjects) {
    auto set = std::ranges::find(sets, subject.capabilities, [](const auto& each) { return each.first; });
    if (set == sets.end()) set = sets.insert(sets.end(), {subject.capabilities, {}});
    if (subject.is_daemon()) set->second.push_back(subject.pid);
  }
  std::vector<CapabilityRow> rows;
  for (const auto& [capabilities, processes] : sets) {
    for (const CapabilityUse& use : kCapabilityUses)
      rows.push_back(
          {.processes = processes, .use = &use, .held = (capabilities & bit_of(use.capability)) != 0});
  }
  return rows;
}

std::string sysctl_remedy(std::string_view name, std::int64_t value) {
  return fmt::format("sysctl -w {}={}, and add it to /etc/sysctl.d/portway.conf.", name, value);
}

}  // namespace portway
