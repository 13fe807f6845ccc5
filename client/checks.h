// doctor's checks, as data: each looks at the node and finds one thing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/node.h"

namespace portway {

enum class Grade : std::uint8_t {
  kOk,
  kSkip,  // could not be looked at
  kWarn,  // works, but worse than it could
  kFail,  // does not work
};
std::string_view to_string(Grade grade);

struct Finding {
  Grade grade = Grade::kOk;
  std::string detail;
  std::string remedy = {};  // for kWarn and kFail
};

struct Check {
  std::string_view name;
  Finding (*look)(const Node& node);
};

/// What the kernel grants: version, io_uring, limits, rights.
std::span<const Check> kernel_checks();
/// What the operator set up: configuration, files, addresses, ports, devices, the daemon.
std::span<const Check> setup_checks();

struct NamedFinding {
  std::string_view name;
  Finding finding;
};
std::vector<NamedFinding> look_at(const Node& node);

}  // namespace portway
