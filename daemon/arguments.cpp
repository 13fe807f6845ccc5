#include "daemon/arguments.h"

#include <CLI/CLI.hpp>

#include "network/ephemeral_ports.h"
#include "process/exit_codes.h"
#include "process/read_config.h"

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
  return read_config(arguments.config_path, arguments.settings);
}

std::vector<std::string> warnings(const Config& config) {
  std::vector<std::string> all = config_warnings(config);
  if (const auto overlap = ephemeral_overlap(config.ports.range)) {
    all.push_back(overlap->problem + " " + overlap->remedy);
  }
  return all;
}

}  // namespace portway
