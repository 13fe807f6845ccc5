// portway-gateway: reads the configuration, and answers for the fleet until a signal stops it.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <utility>

#include "config/config_files.h"
#include "fleet/http_tls.h"
#include "gateway/arguments.h"
#include "gateway/gateway.h"
#include "process/daemon_log.h"
#include "process/exit_codes.h"
#include "process/passed_sockets.h"

namespace portway {
namespace {

int fail(const Error& error, int exit_code) {
  spdlog::error("{}", error.detail);
  return exit_code;
}

int run(const GatewayArguments& arguments, DaemonLog& log, PassedSockets passed) {
  auto config = read_gateway_config(arguments);
  if (!config) return fail(config.error(), kExitBadConfig);
  const auto files = check_gateway_files(*config);
  if (!files) return fail(files.error(), kExitBadConfig);
  const auto towards_nodes = check_http_tls(node_tls_of(config->gateway));
  if (!towards_nodes) return fail(towards_nodes.error(), kExitBadConfig);
  for (const std::string& warning : *files) spdlog::warn("{}", warning);
  if (arguments.check) {
    log.drain();
    fmt::print("{}: valid\n", arguments.config_path.empty() ? "the settings" : arguments.config_path);
    return 0;
  }
  log.configure(config->log);
  Gateway gateway(*config, arguments, log, std::move(passed));
  if (auto started = gateway.start(); !started) {
    return fail(started.error(),
                started.error().code == ErrorCode::kInvalidConfig ? kExitBadConfig : kExitFailed);
  }
  gateway.run();
  return 0;
}

}  // namespace
}  // namespace portway

int main(int argc, char** argv) {
  portway::GatewayArguments arguments;
  if (const auto exit_code = portway::parse_gateway_arguments(argc, argv, arguments)) return *exit_code;
  portway::PassedSockets passed = portway::PassedSockets::take();
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  portway::DaemonLog log;
  return portway::run(arguments, log, std::move(passed));
}
