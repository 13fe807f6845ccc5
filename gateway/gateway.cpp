#include "gateway/gateway.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "control/keys.h"
#include "gateway/metrics.h"
#include "gateway/routes.h"
#include "process/notify.h"
#include "process/read_config.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kRetryPeriod(2);
constexpr std::chrono::seconds kKeyEndsPeriod(1);
constexpr std::chrono::seconds kLastAnswers(5);  // for requests under way when the gateway stops

/// More than a node's: it serves the clients of all of them.
constexpr unsigned kConnectionsMax = 8192;
constexpr unsigned kStreamsMax = 4096;
constexpr StreamLimits kStreamLimits = {.node = kStreamsMax, .admins_reserve = 256, .admin = 256};

}  // namespace

HttpTls node_tls_of(const Config::Gateway& config) {
  return {.ca = config.node_tls_ca,
          .certificate = config.node_tls_certificate,
          .private_key = config.node_tls_private_key,
          .key_prefix = "gateway.node_",
          .untrusted_remedy = "see gateway.node_tls_ca",
          .refused_remedy = "give the gateway one that the client_ca of the node's listener has signed"};
}

Gateway::Gateway(Config& config, GatewayArguments arguments, DaemonLog& log, PassedSockets passed)
    : config_(config),
      arguments_(std::move(arguments)),
      log_(log),
      events_(context_, config.fleet.prefix),
      servers_(context_, faults_, std::move(passed)),
      signals_(context_, {.stop = [this](int, const SignalSender&) { context_.stop(); },
                          .reload = [this](const SignalSender&) { on_reload(); },
                          .reopen =
                              [this] {
                                if (audit_log_) audit_log_->reopen([](const Result<void>&) {});
                              },
                          .upgrade =
                              [](const SignalSender&) {
                                spdlog::warn("SIGUSR2: a gateway has nothing to hand over; restart it");
                              }}) {}

Gateway::~Gateway() = default;

Result<void> Gateway::start() {
  if (std::ranges::any_of(config_.fleet.etcd, [](const auto& url) { return url.starts_with("http://"); })) {
    spdlog::warn(
        "fleet.etcd has http:// in it: whoever is on the way can make keys and read them; use https://");
  }
  auto options = read_etcd_options(config_.fleet);
  if (!options) return options.error();
  auto fleet = FleetFollower::create(
      context_.get_executor(), {.etcd = *options, .prefix = config_.fleet.prefix, .listener = &events_});
  if (!fleet) return fleet.error();
  fleet_ = std::move(*fleet);
  events_.follow(fleet_->view());
  auto etcd = Etcd::create(context_.get_executor(), *options);
  if (!etcd) return etcd.error();
  etcd_ = std::move(*etcd);
  auto nodes = NodeClient::create(context_.get_executor(), {.tls = node_tls_of(config_.gateway)});
  if (!nodes) return nodes.error();
  nodes_ = std::move(*nodes);
  StreamLimits limits = kStreamLimits;
  limits.tenant = config_.owners.max_streams;
  const FleetKeys names(config_.fleet.prefix);
  keys_ = std::make_unique<EtcdKeyAdmin>(EtcdKeyAdmin::Parts{
      .executor = context_.get_executor(), .etcd = etcd_, .keys = names, .on_change = [this] {
        if (streams_) streams_->recheck();
      }});
  profiles_ = std::make_unique<SharedProfiles>(
      SharedProfiles::Parts{.executor = context_.get_executor(), .etcd = etcd_, .keys = names});
  streams_ = std::make_unique<Streams>(keys_->keys(), no_instances_, limits);
  if (auto loaded = load_admin_key(); !loaded) return loaded.error();
  gateway_.emplace(GatewayContext{.config = config_,
                                  .fleet = *fleet_,
                                  .events = events_,
                                  .nodes = *nodes_,
                                  .streams = *streams_,
                                  .keys = *keys_,
                                  .profiles = *profiles_,
                                  .stats = stats_,
                                  .metrics = [this] { return scrape(); }});
  api_.emplace(DispatchContext{.keys = keys_->keys(),
                               .config = config_.api,
                               .stats = stats_,
                               .audit =
                                   [this](const AuditEntry& entry) {
                                     if (audit_log_) audit_log_->write(entry);
                                   },
                               .keys_pending = [this] { return !keys_->stats().warm; }},
               all_gateway_routes(*gateway_));
  retry();
  add_servers();
  servers_.start(nullptr);
  return {};
}

void Gateway::add_servers() {
  const auto options = [this](const ListenAddress& listen) {
    return ServerOptions{.listen = listen,
                         .body_max_bytes = config_.api.body_max_bytes,
                         .connections_max = kConnectionsMax,
                         .streams_max = kStreamsMax,
                         .answers = &answers_,
                         .bodies = &bodies_};
  };
  for (std::size_t i = 0; i < config_.api.listen.size(); ++i) {
    ServerOptions api = options(config_.api.listen[i].address);
    api.listener = i;
    api.tls = tls_of_listener(config_.api, i);
    api.gate = [this](const Request& request) { return api_->admit(request); };
    servers_.add(FaultPart::kApi, std::move(api),
                 [this](const Request& request) { return api_->handle(request); });
  }
  if (!config_.metrics.listen) return;
  servers_.add(FaultPart::kMetrics, options(*config_.metrics.listen),
               [this](const Request& request) { return api_->handle_open_metrics(request); });
}

Result<void> Gateway::load_admin_key() {
  auto key = load_or_make_admin_key(config_.api.admin_key_file);
  if (!key) return key.error();
  if (replace_admin_key(keys_->keys(), admin_key_id_, *key)) keys_->on_own_keys();
  return {};
}

std::string Gateway::scrape() const {
  std::string text;
  TextSink sink(text);
  emit_gateway(sink, {.api = {stats_, servers_.api_stats(), answers_.stats(), bodies_.stats()},
                      .view = fleet_->view(),
                      .fleet = fleet_->stats(),
                      .nodes = nodes_->stats(),
                      .faults = faults_.counts()});
  return text;
}

void Gateway::run() {
  const std::vector<std::string> urls = servers_.urls(FaultPart::kApi);
  spdlog::info("portway-gateway {} listens on {}", PORTWAY_VERSION,
               urls.empty() ? "no address yet" : fmt::format("{}", fmt::join(urls, ", ")));
  for (const std::string& url : servers_.urls(FaultPart::kMetrics)) spdlog::info("metrics on {}", url);
  signals_.start();
  retries_.emplace(context_, kRetryPeriod, [this] { retry(); });
  key_ends_.emplace(context_, kKeyEndsPeriod, [this] { keys_->look_at_ends(); });
  (void)notify("READY=1");
  context_.run();
  stop();
}

/// What a full disk, a taken port or an expired certificate has prevented.
void Gateway::retry() {
  if (!audit_log_ && !config_.log.audit.empty()) {
    auto opened = AuditLog::open(
        {.path = config_.log.audit, .bytes_max = config_.log.audit_max, .files = config_.log.audit_files});
    if (opened) {
      audit_log_ = std::move(*opened);
      faults_.clear(FaultPart::kAuditLog);
    } else {
      faults_.set(FaultPart::kAuditLog, {}, opened.error().detail);
    }
  }
  servers_.retry();
  look_at_fleet();
}

void Gateway::look_at_fleet() {
  const FollowerStats stats = fleet_->stats();
  const auto report = [this](std::string_view subject, const std::string& detail) {
    if (detail.empty()) return faults_.clear(FaultPart::kFleet, subject);
    faults_.set(FaultPart::kFleet, subject, detail);
  };
  const auto problem = [](const EtcdMirrorStats& mirror, std::size_t unreadable, std::string_view then) {
    if (mirror.stale && !mirror.error.empty()) return "they may be out of date: " + mirror.error;
    return unreadable == 0 ? "" : fmt::format("{} cannot be read and {}; the log says why", unreadable, then);
  };
  report("key", keys_->fault().empty() ? problem(keys_->stats(), keys_->unreadable(), "are not valid")
                                       : keys_->fault());
  report("profile", problem(profiles_->stats(), profiles_->unreadable(), "stay as they were"));
  if (stats.stale && !stats.error.empty()) {
    faults_.set(FaultPart::kFleet, "etcd", stats.error);
  } else if (!stats.stale) {
    faults_.clear(FaultPart::kFleet, "etcd");
  }
  const std::string status =
      fmt::format("STATUS={} instances on {} nodes{}", fleet_->view().instance_count(),
                  fleet_->view().nodes().size(), stats.stale ? "; etcd is away or being read" : "");
  (void)notify(status);
}

/// A file with a mistake changes nothing. What a gateway does with etcd and nodes needs a restart, which
/// costs its clients nothing but a new connection.
void Gateway::on_reload() {
  auto wanted = read_gateway_config(arguments_);
  if (!wanted) {
    spdlog::error("SIGHUP: the configuration stays as it was: {}", wanted.error().detail);
    return;
  }
  const Config::Fleet fleet = config_.fleet;
  std::vector<std::string> need_restart = take_live_keys(config_, *wanted);
  if (config_.fleet != fleet) {
    config_.fleet = fleet;
    need_restart.emplace_back("fleet");
  }
  if (auto loaded = load_admin_key(); !loaded) spdlog::error("SIGHUP: {}", loaded.error().detail);
  streams_->recheck();
  streams_->set_tenant_share(config_.owners.max_streams);
  servers_.reload_tls();
  log_.configure(config_.log);
  if (!need_restart.empty())
    spdlog::warn("SIGHUP: changes of {} need a restart", fmt::join(need_restart, ", "));
  spdlog::info("SIGHUP: configuration reloaded");
}

void Gateway::stop() {
  (void)notify("STOPPING=1");
  context_.restart();
  servers_.stop();
  signals_.stop();
  retries_->stop();
  key_ends_->stop();
  const auto deadline = steady_clock::now() + kLastAnswers;
  while (servers_.open_connections() > 0 && steady_clock::now() < deadline) context_.run_one_until(deadline);
  spdlog::info("stopped");
}

}  // namespace portway
