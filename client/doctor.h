// `portway doctor`: looks at the node that it runs on and says what would keep Portway from doing well, each
// with a remedy. Reads only; changes nothing.
#pragma once

#include <string_view>
#include <vector>

#include "client/checks.h"
#include "client/command.h"

namespace portway {

inline constexpr std::string_view kDefaultConfigFile = "/etc/portway/portway.toml";

/// Prints the findings; kRefused when one of them is a failure.
Outcome<void> report(const std::vector<NamedFinding>& findings, bool json, Console& console);

Outcome<void> run_doctor(const Invocation& invocation, Console& console);

}  // namespace portway
