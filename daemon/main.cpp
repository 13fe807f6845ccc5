// portwayd: reads the configuration, starts the parts in the order in which they need each other, and runs
// them until a signal stops it.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "config/config_files.h"
#include "control/store_backup.h"
#include "daemon/arguments.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/network_parts.h"
#include "daemon/privileges/capabilities.h"
#include "daemon/privileges/sandbox.h"
#include "daemon/succession.h"
#include "daemon/supervise.h"
#include "process/daemon_log.h"
#include "process/exit_codes.h"
#include "process/passed_sockets.h"
#include "proxy/crash_note.h"

namespace portway {
namespace {

int fail(const Error& error, int exit_code) {
  spdlog::error("{}", error.detail);
  return exit_code;
}

/// A supervisor keeps what any daemon could need. A configuration with a mistake is reported later.
Privileges drop_privileges(const Arguments& arguments) {
  if (!arguments.restore.empty()) return {};  // it gives the store to the owner of its directory (chown)
  if (arguments.supervise) return keep_capabilities(needed_capabilities(nullptr, {}));
  const auto config = read_config(arguments);
  return keep_capabilities(needed_capabilities(config ? &*config : nullptr, arguments.config_path));
}

int check(const Config& config, const Arguments& arguments, DaemonLog& log) {
  if (!arguments.reads_handover.empty() && arguments.reads_handover != handover_version()) {
    return fail(
        {ErrorCode::kInvalidConfig,
         fmt::format("portwayd {} cannot continue the connections of the daemon that runs: it hands over "
                     "version {}, and this one reads {}. Stop that one and start this one.",
                     PORTWAY_VERSION, arguments.reads_handover, handover_version())},
        kExitBadConfig);
  }
  const auto files = check_config_files(config);
  if (!files) return fail(files.error(), kExitBadConfig);
  for (const std::string& warning : *files) spdlog::warn("{}", warning);
  log.drain();
  fmt::print("{}: valid\n", arguments.config_path.empty() ? "the defaults" : arguments.config_path);
  return 0;
}

int restore(const Config& config, const Arguments& arguments, DaemonLog& log) {
  const auto done =
      arguments.check ? check_backup(arguments.restore) : restore_store(config.store.path, arguments.restore);
  if (!done) return fail(done.error(), kExitFailed);
  log.drain();
  fmt::print("{}: {}{}\n", arguments.restore, *done,
             arguments.check ? "" : "; restored to " + config.store.path);
  return 0;
}

int run(const Arguments& arguments, DaemonLog& log, const Privileges& privileges,
        std::unique_ptr<Keeper> keeper, PassedSockets passed_sockets) {
  auto config = read_config(arguments);
  if (!config) return fail(config.error(), kExitBadConfig);
  if (!arguments.check && arguments.restore.empty()) log.configure(config->log);
  for (const std::string& warning : warnings(*config)) spdlog::warn("{}", warning);
  if (!arguments.restore.empty()) return restore(*config, arguments, log);
  if (arguments.check) return check(*config, arguments, log);

  spdlog::info("capabilities: {}", privileges.names());
  ignore_signals_of_writes();
  install_crash_notes();
  const std::uint32_t listeners_reserved = raise_descriptor_limit(*config);
  raise_memory_lock_limit();
  UnconfinedThread unconfined;
  prepare_sandbox(unconfined);
  // First what takes its time: a predecessor that lives pauses from open_succession() on.
  auto steer_program = load_steer_program(config->proxy);
  auto client_refusals = start_client_refusals_if_possible();
  auto context = std::make_unique<boost::asio::io_context>(1);
  auto watch = SessionWatch::start(*context, config->guests.netns_directories);
  if (!watch) return fail(watch.error(), kExitFailed);
  auto succession = open_succession(*config, arguments.take_over);
  if (!succession) return fail(succession.error(), kExitFailed);
  // Now: if the start fails before Control logs them, the next start cannot find out again what a log has
  // lost.
  for (const auto& [is_error, text] : succession->store->take_notices()) {
    spdlog::log(is_error ? spdlog::level::err : spdlog::level::warn, "{}", text);
  }
  auto return_path =
      start_return_path(config->proxy, succession->predecessor != nullptr, std::move(steer_program));
  if (!return_path) return fail(return_path.error(), kExitFailed);
  auto device_requests = std::make_unique<DeviceRequests>();
  auto proxy =
      Proxy::start({.connections = {.config = config->proxy,
                                    .client_refusals = client_refusals.get(),
                                    .routed = return_path->path ? return_path->path->routed() : nullptr,
                                    .device_requests = device_requests.get()},
                    .public_addresses = config->node.public_addresses,
                    .listeners_reserved = listeners_reserved,
                    .inherited = succession->inherited.get(),
                    .prepare_worker = [&config] { enter_sandbox(*config, ConfinedThread::kWorker); }});
  if (!proxy) return fail(proxy.error(), kExitFailed);
  take_over(*succession, keeper, (*proxy)->memory(), *config);
  prefer_this_thread();  // after the workers have started: they must not inherit it
  Daemon daemon(*config, arguments, log, keeper.get(),
                {.unconfined = unconfined,
                 .passed_sockets = std::move(passed_sockets),
                 .context = std::move(context),
                 .store = std::move(succession->store),
                 .return_path = std::move(*return_path),
                 .client_refusals = std::move(client_refusals),
                 .device_requests = std::move(device_requests),
                 .proxy = std::move(*proxy),
                 .watch = std::move(*watch)});
  if (auto started = daemon.start(*succession); !started) {
    const bool bad_config = started.error().code == ErrorCode::kInvalidConfig;
    const int exit_code = fail(started.error(), bad_config ? kExitBadConfig : kExitFailed);
    log.drain();
    // What it has inherited is its keeper's, for the next start: no destructor may end it.
    if (succession->inherited) ::_exit(exit_code);
    return exit_code;
  }
  enter_sandbox(*config, ConfinedThread::kControl);  // last: its threads would be in it, too
  daemon.run();
  keeper.reset();  // before anything that it could hand over goes
  return 0;
}

}  // namespace
}  // namespace portway

int main(int argc, char** argv) {
  portway::return_large_blocks();
  portway::Arguments arguments;
  if (const auto exit_code = portway::parse_arguments(argc, argv, arguments)) return *exit_code;
  portway::PassedSockets passed_sockets = portway::PassedSockets::take();
  const portway::Privileges privileges = portway::drop_privileges(arguments);  // before there is a thread
  if (arguments.supervise) return portway::supervise();
  int why_no_keeper = 0;
  const bool serves = !arguments.check && arguments.restore.empty();
  auto keeper = serves ? portway::Keeper::start(why_no_keeper, portway::keep_privileges_of_keeper) : nullptr;
  portway::DaemonLog log;
  if (!privileges.problem.empty()) spdlog::warn("more privileges than needed: {}", privileges.problem);
  if (why_no_keeper != 0) {
    spdlog::warn("connections end with this process: there is no keeper: {}",
                 std::system_category().message(why_no_keeper));
  }
  return portway::run(arguments, log, privileges, std::move(keeper), std::move(passed_sockets));
}
