#include "client/checks.h"

#include <array>

namespace portway {

std::string_view to_string(Grade grade) {
  constexpr auto kNames = std::to_array<std::string_view>({"ok", "skip", "warn", "fail"});
  static_assert(kNames.size() == static_cast<std::size_t>(Grade::kFail) + 1);
  return kNames[static_cast<std::size_t>(grade)];
}

std::vector<NamedFinding> look_at(const Node& node) {
  std::vector<NamedFinding> findings;
  for (const std::span<const Check> part : {kernel_checks(), setup_checks()}) {
    for (const Check& check : part) findings.push_back({check.name, check.look(node)});
  }
  return findings;
}

}  // namespace portway
