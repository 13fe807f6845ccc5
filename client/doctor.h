// `portway doctor`: checks the node that it runs on and reports what would keep Portway from working well,
// with a remedy for each problem. It only reads and changes nothing.
#pragma once

#include <string_view>
#include <vector>

#include "client/checks.h"
#include "client/command.h"

namespace portway {

inline constexpr std::string_view kDefaultConfigFile = "/etc/portway/portway.toml";

/// Prints the findings and the table of capabilities; kRefused if a check failed.
Outcome<void> report(const std::vector<NamedFinding>& findings,
                     const std::vector<CapabilityRow>& capabilities, Format format, Console& console);

Outcome<void> run_doctor(const Invocation& invocation, Console& console);

}  // namespace portway
