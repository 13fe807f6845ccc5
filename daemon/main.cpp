// portwayd: reads the configuration, starts the parts in the order in which they need each other, and runs
// them until a signal stops it.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>
#include <utility>

#include "config/config_files.h"
#include "daemon/arguments.h"
#include "daemon/daemon.h"
#include "daemon/daemon_log.h"
#include "daemon/limits.h"
#include "daemon/network_parts.h"

namespace portway {
namespace {

int fail(const Error& error, int exit_code) {
  spdlog::error("{}", error.detail);
  return exit_code;
}

int check(const Config& config, const Arguments& arguments, DaemonLog& log) {
  const auto files = check_config_files(config);
  if (!files) return fail(files.error(), kExitBadConfig);
  for (const std::string& warning : *files) spdlog::warn("{}", warning);
  log.drain();
  fmt::print("{}: valid\n", arguments.config_path.empty() ? "the defaults" : arguments.config_path);
  return 0;
}

int run(const Arguments& arguments, DaemonLog& log) {
  auto config = read_config(arguments);
  if (!config) return fail(config.error(), kExitBadConfig);
  for (const std::string& warning : warnings(*config)) spdlog::warn("{}", warning);
  if (arguments.check) return check(*config, arguments, log);

  ignore_signals_of_writes();
  const std::uint32_t listeners_reserved = raise_descriptor_limit(*config);
  auto store = Store::open(config->store.path, prefer_this_thread);  // API calls wait for the store
  if (!store) return fail(store.error(), kExitFailed);
  // Now: if the start fails before Control logs them, the next start cannot find out again what a log has
  // lost.
  for (const auto& [is_error, text] : (*store)->take_notices()) {
    spdlog::log(is_error ? spdlog::level::err : spdlog::level::warn, "{}", text);
  }
  auto return_path = start_return_path(config->proxy);
  if (!return_path) return fail(return_path.error(), kExitFailed);
  auto client_refusals = start_client_refusals_if_possible();
  auto device_requests = std::make_unique<DeviceRequests>();
  auto proxy =
      Proxy::start({.connections = {.config = config->proxy,
                                    .client_refusals = client_refusals.get(),
                                    .routed = return_path->path ? return_path->path->routed() : nullptr,
                                    .device_requests = device_requests.get()},
                    .public_addresses = config->node.public_addresses,
                    .listeners_reserved = listeners_reserved});
  if (!proxy) return fail(proxy.error(), kExitFailed);
  auto context = std::make_unique<boost::asio::io_context>(1);
  auto watch = SessionWatch::start(*context, config->guests.netns_directories);
  if (!watch) return fail(watch.error(), kExitFailed);
  prefer_this_thread();  // after the workers have started: they must not inherit it
  Daemon daemon(*config, arguments, log,
                {.context = std::move(context),
                 .store = std::move(*store),
                 .return_path = std::move(*return_path),
                 .client_refusals = std::move(client_refusals),
                 .device_requests = std::move(device_requests),
                 .proxy = std::move(*proxy),
                 .watch = std::move(*watch)});
  if (auto started = daemon.start(); !started) {
    const bool bad_config = started.error().code == ErrorCode::kInvalidConfig;
    return fail(started.error(), bad_config ? kExitBadConfig : kExitFailed);
  }
  daemon.run();
  return 0;
}

}  // namespace
}  // namespace portway

int main(int argc, char** argv) {
  portway::return_large_blocks();
  portway::DaemonLog log;
  portway::Arguments arguments;
  if (const auto exit_code = portway::parse_arguments(argc, argv, arguments)) return *exit_code;
  return portway::run(arguments, log);
}
