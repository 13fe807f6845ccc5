#include "daemon/arguments.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <utility>

#include "daemon/fleet_member.h"
#include "network/ephemeral_ports.h"

namespace portway {

std::optional<int> parse_arguments(int argc, char** argv, Arguments& arguments) {
  CLI::App app{"Forwards host ports to the TCP services of microVMs, without netfilter."};
  app.add_option("--config", arguments.config_path,
                 "Configuration (TOML); without it, every key has its default");
  app.add_option("--set", arguments.settings,
                 "table.key=value: wins over the environment and the file; repeatable");
  app.add_flag("--check", arguments.check,
               "Only read the configuration and the files that it names: exits with 0 when they are good, "
               "else with 2");
  app.add_option("--restore", arguments.restore,
                 "Put this backup (portway node backup) in the place of store.path, and end; refused while a "
                 "daemon runs. With --check, only look whether that is possible");
  app.add_flag(
      "--supervise", arguments.supervise,
      "Start the daemon as a process of its own, again whenever it crashes, and pass signals on to it: "
      "for containers, which end with their first process");
  // Hidden: only a daemon starts one with them.
  app.add_flag("--take-over", arguments.take_over)->group("");
  app.add_option("--reads-handover", arguments.reads_handover)->group("");
  app.set_version_flag("--version", "portwayd " PORTWAY_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitBadConfig;  // 0: help or the version
  }
  return std::nullopt;
}

Result<Config> read_config(const Arguments& arguments) {
  std::vector<Override> overrides = environment_overrides(::environ);
  for (const std::string& setting : arguments.settings) {
    auto parsed = parse_override(setting);
    if (!parsed) return parsed.error();
    overrides.push_back(std::move(*parsed));
  }
  auto config = arguments.config_path.empty() ? parse_config("", "defaults", overrides)
                                              : load_config(arguments.config_path, overrides);
  if (!config) return config;
  if (auto checked = check_fleet_config(*config); !checked) return checked.error();
  return config;
}

std::vector<std::string> warnings(const Config& config) {
  std::vector<std::string> all = config_warnings(config);
  if (const auto overlap = ephemeral_overlap(config.ports.range)) {
    all.push_back(overlap->problem + " " + overlap->remedy);
  }
  return all;
}

}  // namespace portway
