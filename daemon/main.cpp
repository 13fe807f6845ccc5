// portwayd: reads what is asked, builds the house, runs it until a signal ends it.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "api/dispatch.h"
#include "api/http/answer_budget.h"
#include "api/http/server.h"
#include "config/config.h"
#include "config/config_files.h"
#include "control/access_log.h"
#include "control/auth.h"
#include "control/control.h"
#include "control/recent_closes.h"
#include "control/store.h"
#include "daemon/daemon_log.h"
#include "daemon/notify.h"
#include "lifecycle/session_watch.h"
#include "metrics/exporter.h"
#include "network/client_refusals.h"
#include "network/ephemeral_ports.h"
#include "network/return_path.h"
#include "proxy/device_requests.h"
#include "proxy/proxy.h"

namespace portway {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitBadConfig = 2;
constexpr int kControlNice = -10;               // of the control thread, beside workers at 0
constexpr int kOwnMappingBytes = 128 * 1024;    // a block of memory
constexpr std::chrono::seconds kRetryEvery(2);  // of what a full disk or a taken port prevented

struct Arguments {
  std::string config_path;
  std::vector<std::string> settings;
  bool check = false;
};

Result<Config> read_config(const Arguments& arguments) {
  std::vector<Override> overrides = environment_overrides(::environ);
  for (const std::string& setting : arguments.settings) {
    auto parsed = parse_override(setting);
    if (!parsed) return parsed.error();
    overrides.push_back(std::move(*parsed));
  }
  return arguments.config_path.empty() ? parse_config("", "defaults", overrides)
                                       : load_config(arguments.config_path, overrides);
}

std::vector<std::string> warnings(const Config& config) {
  std::vector<std::string> all = config_warnings(config);
  if (const auto overlap = ephemeral_overlap(config.ports.range)) {
    all.push_back(overlap->problem + " " + overlap->remedy);
  }
  return all;
}

constexpr std::uint64_t kRestDescriptors = 1024;  // for all that is no connection, pipe or listener
constexpr std::uint32_t kAllListeners = UINT32_MAX;

/// Descriptors beside those of connections and pipes: one for each forward and address, and some for the
/// rest.
std::uint64_t other_descriptors(const Config& config) {
  return std::uint64_t{config.ports.range.size()} * config.node.public_addresses.size() + kRestDescriptors;
}

/// Raises RLIMIT_NOFILE as far as it may; where that is not enough, fewer connections are allowed instead of
/// failing later. Returns how many descriptors are kept for listeners.
std::uint32_t raise_descriptor_limit(Config& config) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const std::uint64_t wanted =
      2ULL * config.proxy.connections_max + 2ULL * config.proxy.pipes_max + other_descriptors(config);
  if (limit.rlim_max < wanted) {
    const rlimit higher{.rlim_cur = wanted, .rlim_max = wanted};  // needs CAP_SYS_RESOURCE
    if (::setrlimit(RLIMIT_NOFILE, &higher) == 0) return kAllListeners;
  }
  limit.rlim_cur = std::min<std::uint64_t>(limit.rlim_max, std::max<std::uint64_t>(limit.rlim_cur, wanted));
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= wanted) return kAllListeners;
  // Few nodes forward every port, so an eighth is kept for listeners and the rest. Pipes are used while there
  // are some and done without when not, so connections get most of what is left.
  const std::uint64_t kept = std::min<std::uint64_t>(other_descriptors(config), limit.rlim_cur / 8);
  const std::uint64_t left = limit.rlim_cur - kept;
  config.proxy.connections_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left * 7 / 16, 1, config.proxy.connections_max));
  config.proxy.pipes_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left / 16, 1, config.proxy.pipes_max));
  spdlog::warn(
      "RLIMIT_NOFILE is {} and {} are wanted: connections are limited to {} and pipes to {}; raise the limit "
      "(systemd: LimitNOFILE=)",
      limit.rlim_cur, wanted, config.proxy.connections_max, config.proxy.pipes_max);
  const std::uint64_t not_wanted = left - std::min<std::uint64_t>(left, 2ULL * config.proxy.connections_max +
                                                                            2ULL * config.proxy.pipes_max);
  return static_cast<std::uint32_t>(kept - std::min(kept, kRestDescriptors) + not_wanted);
}

/// Lets the API answer while the workers keep every core busy. Short slices (Linux 6.12, sched_setattr(2))
/// let it run as soon as it has something to do; the nice value needs CAP_SYS_NICE. Without them it is one
/// thread among the others.
void prefer_this_thread() {
  struct {
    std::uint32_t size = 48;   // SCHED_ATTR_SIZE_VER0
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = kControlNice;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = 100'000;  // the shortest slice there is
    std::uint64_t deadline_ns = 0;
    std::uint64_t period_ns = 0;
  } attributes;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0U) == 0) return;
  attributes.nice = 0;
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0U);
}

/// Null where the kernel does not let it: then a client that a guest refuses is accepted and reset, each
/// time.
std::unique_ptr<ClientRefusals> start_client_refusals_if_possible() {
  auto refusals = start_client_refusals();
  if (refusals) return std::move(*refusals);
  spdlog::info("clients that a guest refuses are accepted and reset, unless all of the forward's are: {}",
               refusals.error().detail);
  return nullptr;
}

struct StartedReturnPath {
  std::unique_ptr<ReturnPath> path = nullptr;
  std::string why_none = {};  // why the guests do not see their clients' addresses although they should
};

/// Where clients' addresses are not wanted or not to be had, the source guard alone, where that can be had.
/// An error is the reason to end.
Result<StartedReturnPath> start_return_path(const Config::Proxy& proxy) {
  const SourceMode mode = proxy.source_mode;
  const ReturnPathSettings settings{.rule_preference = proxy.source_rule_preference,
                                    .table = proxy.source_route_table,
                                    .mark_bit = proxy.source_mark_bit};
  StartedReturnPath started;
  if (mode == SourceMode::kAuto || mode == SourceMode::kTransparent) {
    auto path = ReturnPath::start(ReturnPath::Kind::kProgram, settings);
    if (path) {
      started.path = std::move(*path);
      if (started.path->kind() == ReturnPath::Kind::kRules) {
        spdlog::warn("using routing rules for the return path (at most {}); no source guard: {}",
                     ReturnPath::kPortsMax, started.path->why_rules());
      }
      return started;
    }
    if (mode == SourceMode::kTransparent) {
      return Error{path.error().code,
                   fmt::format("proxy.source_mode is transparent, and the node cannot show guests their "
                               "clients' addresses: {}; give portwayd CAP_NET_ADMIN and CAP_BPF, or set "
                               "proxy.source_mode to auto",
                               path.error().detail),
                   "proxy.source_mode"};
    }
    started.why_none = path.error().detail;
    spdlog::info("guests see the node's address as their clients': {}", started.why_none);
  }
  auto guard = ReturnPath::start(ReturnPath::Kind::kGuardOnly, settings);
  if (guard) {
    started.path = std::move(*guard);
  } else {
    spdlog::info("guests can send with each other's addresses, unless rp_filter is 1: {}",
                 guard.error().detail);
  }
  return started;
}

/// For the log; "unix:/path" is a whole address already.
std::string url_of(const ListenAddress& address, std::string_view scheme) {
  if (std::holds_alternative<UnixPath>(address)) return to_string(address);
  return fmt::format("{}://{}", scheme, to_string(address));
}

bool got_through(CloseHow how) {
  return how != CloseHow::kRefused && how != CloseHow::kConnectTimeout && how != CloseHow::kConnectError &&
         how != CloseHow::kLimit;
}

/// The daemon, put together: each part is given what it uses, and nothing else.
class Daemon final : NodeNumbersReader {
 public:
  Daemon(const Config& config, const Arguments& arguments, const DaemonLog& log,
         std::unique_ptr<boost::asio::io_context> context, std::unique_ptr<Store> store,
         std::unique_ptr<ClientRefusals> client_refusals, std::unique_ptr<DeviceRequests> device_requests,
         std::unique_ptr<Proxy> proxy, std::unique_ptr<SessionWatch> watch,
         std::unique_ptr<ReturnPath> return_path, const std::string& why_no_return_path)
      : config_(config),
        arguments_(arguments),
        log_(log),
        context_(std::move(context)),
        store_(std::move(store)),
        return_path_(std::move(return_path)),
        client_refusals_(std::move(client_refusals)),
        device_requests_(std::move(device_requests)),
        proxy_(std::move(proxy)),
        watch_(std::move(watch)),
        control_(config_, {*context_, *store_, *proxy_, *watch_, events_, stats_, return_path_.get(),
                           why_no_return_path}),
        exporter_({.registry = control_.registry(),
                   .dataplane = *proxy_,
                   .ports = control_.ports(),
                   .api = stats_,
                   .node = *this}),
        api_({*context_, control_, *proxy_, stats_, recent_closes_, [this](MetricsScope scope) -> NextPiece {
                return [scrape = std::shared_ptr<Scrape>(exporter_.scrape(scope))] { return scrape->next(); };
              }}) {}

  Result<void> start() {
    if (!config_.log.access.empty()) {
      auto log = AccessLog::open(config_.log.access);
      if (!log) return log.error();
      access_log_ = std::move(*log);
    }
    auto admin_key = load_or_make_admin_key(config_.api.admin_key_file);
    if (!admin_key) return admin_key.error();
    control_.set_admin_key(*admin_key);
    if (auto restored = control_.restore(); !restored) return restored.error();
    ServerOptions options = server_options(config_.api.listen);
    options.tls = {.certificate = config_.api.tls_certificate,
                   .private_key = config_.api.tls_private_key,
                   .client_ca = config_.api.client_ca};
    auto api =
        Server::start(*context_, options, [this](const Request& request) { return api_.handle(request); });
    if (!api) return api.error();
    api_server_ = std::move(*api);
    if (config_.metrics.listen) {
      auto server =
          Server::start(*context_, server_options(*config_.metrics.listen),
                        [this](const Request& request) { return api_.handle_open_metrics(request); });
      if (!server) return server.error();
      metrics_server_ = std::move(*server);
    }
    return {};
  }

  void run() {
    const NodeStats node = proxy_->node_stats();
    const bool tls = !config_.api.tls_certificate.empty();
    spdlog::info("portwayd {} listens on {}, {} workers on {}{}{}", PORTWAY_VERSION,
                 url_of(api_server_->address(), tls ? "https" : "http"), node.workers.size(), node.io_backend,
                 node.io_backend_reason.empty() ? "" : ": ", node.io_backend_reason);
    if (metrics_server_) spdlog::info("metrics on {}", url_of(metrics_server_->address(), "http"));
    wait_for_signal();
    wait_for_reload();
    retry_later();
    wait_for_reopen();
    drain_closes_later();
    tell_systemd("READY=1");
    context_->run();
    context_->restart();
    api_server_->stop();
    if (metrics_server_) metrics_server_->stop();
    signals_.cancel();
    reload_signal_.cancel();
    reopen_signals_.cancel();
    retry_timer_.cancel();
    closes_timer_.cancel();
    // Requests under way are answered; a client that is slow or silent does not hold up the end.
    const auto deadline = std::chrono::steady_clock::now() + last_answers_;
    while (open_connections() > 0 && std::chrono::steady_clock::now() < deadline) {
      context_->run_one_until(deadline);
    }
    control_.save_sessions();  // the store does it before it goes
    proxy_->stop();
    drain_closes();
    spdlog::info("stopped");
  }

 private:
  ServerOptions server_options(const ListenAddress& listen) {
    return {.listen = listen,
            .body_max_bytes = config_.api.body_max_bytes,
            .answers = &answers_,
            .refuses = [this](const ClientOrigin& client) {
              return !config_.api.allow_guests && control_.is_guest(client.address, client.link);
            }};
  }

  void wait_for_signal() {
    signals_.async_wait([this](boost::system::error_code error, int number) {
      if (error) return;
      if (control_.draining()) {
        spdlog::warn("signal {} again: stopping now", number);
        last_answers_ = {};
        context_->stop();
        return;
      }
      spdlog::info("signal {}: draining for up to {} s", number, config_.proxy.drain_timeout.count());
      tell_systemd("STOPPING=1");
      control_.drain();
      proxy_->stop_accepting();
      drain_deadline_ = std::chrono::steady_clock::now() + config_.proxy.drain_timeout;
      wait_for_signal();
      wait_until_idle();
    });
  }

  void wait_for_reopen() {
    reopen_signals_.async_wait([this](boost::system::error_code error, int) {
      if (error) return;
      if (access_log_) {
        access_log_->reopen([](const Result<void>& reopened) {
          if (!reopened) {
            spdlog::error("{}; going on in the old file", reopened.error().detail);
          } else {
            spdlog::info("access log reopened");
          }
        });
      }
      wait_for_reopen();
    });
  }

  NodeNumbers read_numbers() const override {
    return {.access_log_dropped = access_log_ ? access_log_->dropped() : 0,
            .log_lines_dropped = log_.lines_dropped(),
            .forwards_failed = control_.forwards_failed(),
            .instances_without_return_path = control_.instances_without_return_path(),
            .forged_packets = control_.forged_packets(),
            .api_server = api_server_ ? api_server_->stats() : ServerStats{},
            .answers = answers_.stats()};
  }

  /// Takes the records of connections that have ended from the workers.
  void drain_closes() {
    proxy_->drain_closes([this](CloseRecord&& record) {
      if (!got_through(record.cause.how)) control_.tell_refused(record);
      if (access_log_) access_log_->write(record);
      recent_closes_.add(std::move(record));
    });
  }

  void drain_closes_later() {
    closes_timer_.expires_after(std::chrono::milliseconds(100));
    closes_timer_.async_wait([this](boost::system::error_code error) {
      if (error) return;
      drain_closes();
      for (const std::string& id : device_requests_->take()) watch_->refresh(id);
      drain_closes_later();
    });
  }

  void wait_until_idle() {
    if (proxy_->idle() || std::chrono::steady_clock::now() >= drain_deadline_) {
      context_->stop();
      return;
    }
    idle_timer_.expires_after(std::chrono::milliseconds(20));
    idle_timer_.async_wait([this](boost::system::error_code error) {
      if (!error) wait_until_idle();
    });
  }

  std::uint64_t open_connections() const {
    return api_server_->stats().connections + (metrics_server_ ? metrics_server_->stats().connections : 0);
  }

  void wait_for_reload() {
    reload_signal_.async_wait([this](boost::system::error_code error, int) {
      if (error) return;
      const auto since_boot = std::chrono::duration_cast<std::chrono::microseconds>(
          std::chrono::steady_clock::now().time_since_epoch());
      tell_systemd(fmt::format("RELOADING=1\nMONOTONIC_USEC={}", since_boot.count()));
      reload();
      tell_systemd("READY=1");
      wait_for_reload();
    });
  }

  /// A file that is wrong changes nothing.
  void reload() {
    auto wanted = read_config(arguments_);
    if (!wanted) {
      spdlog::error("SIGHUP: the configuration stays as it was: {}", wanted.error().detail);
      return;
    }
    (void)raise_descriptor_limit(*wanted);  // as at start, or what was lowered then would look like a change
    const auto admin_key = load_or_make_admin_key(config_.api.admin_key_file);
    if (admin_key) {
      control_.set_admin_key(*admin_key);
    } else {
      spdlog::error("SIGHUP: the admin key stays as it was: {}", admin_key.error().detail);
    }
    const std::vector<std::string> need_restart = take_live_keys(config_, *wanted);
    api_server_->drop_refused();
    if (metrics_server_) metrics_server_->drop_refused();
    for (const std::string& warning : warnings(*wanted)) spdlog::warn("{}", warning);
    if (auto certificate = api_server_->reload_tls(); !certificate) {
      spdlog::error("SIGHUP: the certificate stays as it was: {}", certificate.error().detail);
    }
    if (!need_restart.empty()) {
      spdlog::warn("SIGHUP: changes of {} need a restart", fmt::join(need_restart, ", "));
    }
    spdlog::info("SIGHUP: configuration taken over");
  }

  /// What systemd does not take now, it is told in the next retry, unless there is something newer by then.
  void tell_systemd(const std::string& state) { untold_state_ = notify(state) ? "" : state; }

  void retry_later() {
    retry_timer_.expires_after(kRetryEvery);
    retry_timer_.async_wait([this](boost::system::error_code error) {
      if (error) return;
      control_.retry();
      if (!untold_state_.empty()) tell_systemd(std::string(untold_state_));
      // The heap would keep what many answers took for the next ones.
      if (answers_.is_over_a_peak()) ::malloc_trim(0);
      retry_later();
    });
  }

  Config config_;  // the one that all others read; SIGHUP changes its live keys
  const Arguments arguments_;
  const DaemonLog& log_;
  const std::unique_ptr<boost::asio::io_context> context_;
  boost::asio::signal_set signals_{*context_, SIGTERM, SIGINT};
  boost::asio::signal_set reload_signal_{*context_, SIGHUP};
  boost::asio::steady_timer idle_timer_{*context_};
  boost::asio::steady_timer retry_timer_{*context_};
  boost::asio::signal_set reopen_signals_{*context_, SIGUSR1};
  boost::asio::steady_timer closes_timer_{*context_};
  std::chrono::steady_clock::time_point drain_deadline_;
  std::chrono::milliseconds last_answers_{1000};  // for requests under way when the daemon stops
  std::string untold_state_;                      // empty: systemd knows all
  ApiStats stats_;
  AnswerBudget answers_;  // of both servers
  std::unique_ptr<Store> store_;
  const std::unique_ptr<ReturnPath> return_path_;          // outlives the connections that need it
  const std::unique_ptr<ClientRefusals> client_refusals_;  // the same; may be null
  const std::unique_ptr<DeviceRequests> device_requests_;  // the same
  std::unique_ptr<Proxy> proxy_;
  std::unique_ptr<SessionWatch> watch_;
  EventHub events_;
  std::unique_ptr<AccessLog> access_log_;  // null: none is wanted
  RecentCloses recent_closes_{config_.log.recent_connections};
  Control control_;
  Exporter exporter_;
  Dispatcher api_;
  std::unique_ptr<Server> api_server_;
  std::unique_ptr<Server> metrics_server_;
};

int fail(const Error& error, int exit_code) {
  spdlog::error("{}", error.detail);
  return exit_code;
}

int run(const Arguments& arguments, DaemonLog& log) {
  auto config = read_config(arguments);
  if (!config) return fail(config.error(), kExitBadConfig);
  for (const std::string& warning : warnings(*config)) spdlog::warn("{}", warning);
  if (arguments.check) {
    const auto files = check_config_files(*config);
    if (!files) return fail(files.error(), kExitBadConfig);
    for (const std::string& warning : *files) spdlog::warn("{}", warning);
    log.drain();
    fmt::print("{}: good\n", arguments.config_path.empty() ? "the defaults" : arguments.config_path);
    return 0;
  }
  ::signal(SIGPIPE, SIG_IGN);  // splice(2) has no MSG_NOSIGNAL
  ::signal(SIGXFSZ, SIG_IGN);  // under a limit on file size the store's writes fail, and forwarding goes on
  const std::uint32_t listeners_reserved = raise_descriptor_limit(*config);
  auto store = Store::open(config->store.path, prefer_this_thread);  // calls of the API wait for it
  if (!store) return fail(store.error(), kExitFailed);
  // Now: if the start ends before Control tells them, the next one does not find out again what a log has
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
  auto watch = SessionWatch::start(*context);
  if (!watch) return fail(watch.error(), kExitFailed);
  // The workers run already and are not meant.
  prefer_this_thread();
  Daemon daemon(*config, arguments, log, std::move(context), std::move(*store), std::move(client_refusals),
                std::move(device_requests), std::move(*proxy), std::move(*watch),
                std::move(return_path->path), return_path->why_none);
  if (auto started = daemon.start(); !started) {
    return fail(started.error(),
                started.error().code == ErrorCode::kInvalidConfig ? kExitBadConfig : kExitFailed);
  }
  daemon.run();
  return 0;
}

}  // namespace
}  // namespace portway

int main(int argc, char** argv) {
  // What is larger goes back to the system as soon as it is freed. Set, so that glibc does not raise it to 32
  // MiB when it sees a large block freed (mallopt(3)): the heap would keep a burst of large answers for good.
  ::mallopt(M_MMAP_THRESHOLD, portway::kOwnMappingBytes);
  portway::DaemonLog log;
  portway::Arguments arguments;
  CLI::App app{"Forwards host ports to the TCP services of microVMs, without netfilter."};
  app.add_option("--config", arguments.config_path,
                 "Configuration (TOML); without it, every key has its default");
  app.add_option("--set", arguments.settings,
                 "table.key=value: wins over the environment and the file; repeatable");
  app.add_flag("--check", arguments.check,
               "Only read the configuration and the files that it names: exits with 0 when they are good, "
               "else with 2");
  app.set_version_flag("--version", "portwayd " PORTWAY_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0
                                : portway::kExitBadConfig;  // help or version; else what was not understood
  }
  return portway::run(arguments, log);
}
