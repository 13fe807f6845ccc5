// portwayd: reads what is asked, builds the house, runs it until a signal ends it.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
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

#include "api/auth.h"
#include "api/control.h"
#include "api/handlers.h"
#include "api/notify.h"
#include "api/server.h"
#include "config/config.h"
#include "config/port_allocator.h"
#include "config/store.h"
#include "metrics/exporter.h"
#include "proxy/proxy.h"

namespace portway {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitBadConfig = 2;

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
  if (auto overlap = ephemeral_overlap_warning(config.ports.range)) all.push_back(std::move(*overlap));
  return all;
}

/// Descriptors beside those of connections and pipes: one for each forward and address, and some for the
/// rest.
std::uint64_t other_descriptors(const Config& config) {
  return std::uint64_t{config.ports.range.size()} * config.node.public_addresses.size() + 1024;
}

/// Raises RLIMIT_NOFILE as far as it may; where that is not enough, fewer connections are allowed instead of
/// failing later.
void raise_descriptor_limit(Config& config) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const std::uint64_t wanted =
      2ULL * config.proxy.connections_max + 2ULL * config.proxy.pipes_max + other_descriptors(config);
  if (limit.rlim_max < wanted) {
    const rlimit higher{.rlim_cur = wanted, .rlim_max = wanted};  // needs CAP_SYS_RESOURCE
    if (::setrlimit(RLIMIT_NOFILE, &higher) == 0) return;
  }
  limit.rlim_cur = std::min<std::uint64_t>(limit.rlim_max, std::max<std::uint64_t>(limit.rlim_cur, wanted));
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= wanted) return;
  // Few nodes forward every port, so an eighth is kept for listeners and the rest. Pipes are used while there
  // are some and done without when not, so connections get most of what is left.
  const std::uint64_t left =
      limit.rlim_cur - std::min<std::uint64_t>(other_descriptors(config), limit.rlim_cur / 8);
  config.proxy.connections_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left * 7 / 16, 1, config.proxy.connections_max));
  config.proxy.pipes_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left / 16, 1, config.proxy.pipes_max));
  spdlog::warn(
      "RLIMIT_NOFILE is {} and {} are wanted: connections are limited to {} and pipes to {}; raise the limit "
      "(systemd: LimitNOFILE=)",
      limit.rlim_cur, wanted, config.proxy.connections_max, config.proxy.pipes_max);
}

ProxyOptions proxy_options(const Config& config) {
  return {.workers = config.proxy.workers,
          .io_backend = config.proxy.io_backend,
          .public_addresses = config.node.public_addresses,
          .connections_max = config.proxy.connections_max,
          .pipes_max = config.proxy.pipes_max,
          .connections = {.connect_timeout = std::chrono::milliseconds(config.proxy.connect_timeout_ms),
                          .half_close_timeout = std::chrono::seconds(config.proxy.half_close_timeout_s),
                          .idle_timeout = std::chrono::seconds(config.proxy.idle_timeout_s),
                          .drain_timeout = std::chrono::seconds(config.proxy.drain_timeout_s),
                          .keepalive = std::chrono::seconds(config.proxy.keepalive_s)}};
}

/// The daemon, put together: each part is given what it uses, and nothing else.
class Daemon {
 public:
  Daemon(const Config& config, std::unique_ptr<Store> store, std::unique_ptr<Proxy> proxy)
      : config_(config),
        store_(std::move(store)),
        proxy_(std::move(proxy)),
        control_(config_, *store_, *proxy_, stats_),
        exporter_({.for_each_forward =
                       [this](const auto& visit) {
                         control_.registry().for_each_forward(
                             [&visit](const Instance&, const Forward& forward) { visit(forward); });
                       },
                   .forward_stats = [this] { return proxy_->forward_stats(); },
                   .node_stats = [this] { return proxy_->node_stats(); },
                   .port_pool =
                       [this] {
                         return PortPool{control_.ports().used(), control_.ports().free()};
                       },
                   .api = &stats_}),
        api_(control_, *proxy_, stats_, [this] { return metrics(); }) {}

  Result<void> start() {
    auto admin_key = load_or_make_admin_key(config_.api.admin_key_file);
    if (!admin_key) return admin_key.error();
    control_.add_admin_key(*admin_key);
    if (auto restored = control_.restore(); !restored) return restored.error();
    auto api = Server::start(context_, server_options(config_.api.listen),
                             [this](const Request& request) { return api_.handle(request); });
    if (!api) return api.error();
    api_server_ = std::move(*api);
    if (config_.metrics.listen) {
      auto server =
          Server::start(context_, server_options(*config_.metrics.listen),
                        [this](const Request& request) { return api_.handle_open_metrics(request); });
      if (!server) return server.error();
      metrics_server_ = std::move(*server);
    }
    return {};
  }

  void run() {
    const NodeStats node = proxy_->node_stats();
    spdlog::info("portwayd {} listens on http://{}, {} workers on {}{}{}", PORTWAY_VERSION,
                 to_string(api_server_->endpoint()), node.workers.size(), node.io_backend,
                 node.io_backend_reason.empty() ? "" : ": ", node.io_backend_reason);
    if (metrics_server_) spdlog::info("metrics on http://{}/metrics", to_string(metrics_server_->endpoint()));
    wait_for_signal();
    notify("READY=1");
    context_.run();
    context_.restart();
    api_server_->stop();
    if (metrics_server_) metrics_server_->stop();
    signals_.cancel();
    // Requests under way are answered; a client that is slow or silent does not hold up the end.
    context_.run_for(last_answers_);
    spdlog::info("stopped");
  }

 private:
  ServerOptions server_options(const Endpoint& listen) const {
    return {.listen = listen,
            .body_max_bytes = config_.api.body_max_bytes,
            .refused_networks = config_.guests.networks};
  }

  Response metrics() const {
    return {.status = 200,
            .body = exporter_.expose(),
            .content_type = std::string(Exporter::kContentType),
            .headers = {}};
  }

  void wait_for_signal() {
    signals_.async_wait([this](boost::system::error_code error, int number) {
      if (error) return;
      if (control_.draining()) {
        spdlog::warn("signal {} again: stopping now", number);
        last_answers_ = {};
        context_.stop();
        return;
      }
      spdlog::info("signal {}: draining for up to {} s", number, config_.proxy.drain_timeout_s);
      notify("STOPPING=1");
      control_.drain();
      proxy_->stop_accepting();
      drain_deadline_ =
          std::chrono::steady_clock::now() + std::chrono::seconds(config_.proxy.drain_timeout_s);
      wait_for_signal();
      wait_until_idle();
    });
  }

  void wait_until_idle() {
    if (proxy_->idle() || std::chrono::steady_clock::now() >= drain_deadline_) {
      context_.stop();
      return;
    }
    idle_timer_.expires_after(std::chrono::milliseconds(20));
    idle_timer_.async_wait([this](boost::system::error_code error) {
      if (!error) wait_until_idle();
    });
  }

  const Config config_;
  boost::asio::io_context context_{1};
  boost::asio::signal_set signals_{context_, SIGTERM, SIGINT};
  boost::asio::steady_timer idle_timer_{context_};
  std::chrono::steady_clock::time_point drain_deadline_;
  std::chrono::milliseconds last_answers_{1000};  // for requests under way when the daemon stops
  ApiStats stats_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Proxy> proxy_;
  Control control_;
  Exporter exporter_;
  Api api_;
  std::unique_ptr<Server> api_server_;
  std::unique_ptr<Server> metrics_server_;
};

int fail(const Error& error, int exit_code) {
  spdlog::error("{}", error.detail);
  return exit_code;
}

int run(const Arguments& arguments) {
  auto config = read_config(arguments);
  if (!config) return fail(config.error(), kExitBadConfig);
  for (const std::string& warning : warnings(*config)) spdlog::warn("{}", warning);
  if (arguments.check) {
    fmt::print("{}: good\n", arguments.config_path.empty() ? "the defaults" : arguments.config_path);
    return 0;
  }
  ::signal(SIGPIPE, SIG_IGN);  // splice(2) has no MSG_NOSIGNAL
  ::signal(SIGXFSZ, SIG_IGN);  // under a limit on file size the store's writes fail, and forwarding goes on
  raise_descriptor_limit(*config);
  auto store = Store::open(config->store.path);
  if (!store) return fail(store.error(), kExitFailed);
  auto proxy = Proxy::start(proxy_options(*config));
  if (!proxy) return fail(proxy.error(), kExitFailed);
  Daemon daemon(*config, std::move(*store), std::move(*proxy));
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
  spdlog::set_default_logger(spdlog::stderr_logger_mt("portwayd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);

  portway::Arguments arguments;
  CLI::App app{"Forwards host ports to the TCP services of microVMs, without netfilter."};
  app.add_option("--config", arguments.config_path,
                 "Configuration (TOML); without it, every key has its default");
  app.add_option("--set", arguments.settings,
                 "table.key=value: wins over the environment and the file; repeatable");
  app.add_flag("--check", arguments.check,
               "Only read the configuration: exits with 0 when it is good, else with 2");
  app.set_version_flag("--version", "portwayd " PORTWAY_VERSION);
  CLI11_PARSE(app, argc, argv);
  return portway::run(arguments);
}
