#include "gateway/arguments.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "process/exit_codes.h"
#include "process/read_config.h"

namespace portway {

std::optional<int> parse_gateway_arguments(int argc, char** argv, GatewayArguments& arguments) {
  CLI::App app{"Answers Portway's API for all nodes of a fleet, which it knows from etcd."};
  app.add_option("--config", arguments.config_path,
                 "Configuration (TOML): the tables node, api, owners, log, metrics, fleet and gateway");
  app.add_option("--set", arguments.settings,
                 "table.key=value: wins over the environment and the file; repeatable");
  app.add_flag("--check", arguments.check,
               "Only read the configuration and the files that it names: exits with 0 when they are good, "
               "else with 2");
  app.set_version_flag("--version", "portway-gateway " PORTWAY_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitBadConfig;  // 0: help or the version
  }
  return std::nullopt;
}

Result<Config> read_gateway_config(const GatewayArguments& arguments) {
  auto config = read_config(arguments.config_path, arguments.settings);
  if (!config) return config;
  constexpr std::string_view kTables[] = {"node", "api", "owners", "log", "metrics", "fleet", "gateway"};
  if (const std::string other = key_beside(*config, kTables); !other.empty()) {
    return Error{ErrorCode::kInvalidConfig,
                 fmt::format("{} is for nodes; a gateway has none. Leave it out.", other), other};
  }
  if (config->fleet.etcd.empty()) {
    return Error{ErrorCode::kInvalidConfig,
                 "fleet.etcd is empty; name the URLs of the etcd cluster of the fleet.", "fleet.etcd"};
  }
  return config;
}

}  // namespace portway
