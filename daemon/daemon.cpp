#include "daemon/daemon.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <spdlog/spdlog.h>

#include <utility>
#include <vector>

#include "control/auth.h"
#include "daemon/limits.h"
#include "daemon/notify.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

// How often to retry what a full disk or a taken port prevented.
constexpr std::chrono::seconds kRetryPeriod(2);
constexpr std::chrono::milliseconds kClosesPeriod(100);
constexpr std::chrono::milliseconds kIdlePeriod(20);

/// For the log; "unix:/path" is already a complete address.
std::string url_of(const ListenAddress& address, std::string_view scheme) {
  if (std::holds_alternative<UnixPath>(address)) return to_string(address);
  return fmt::format("{}://{}", scheme, to_string(address));
}

bool got_through(CloseHow how) {
  return how != CloseHow::kRefused && how != CloseHow::kConnectTimeout && how != CloseHow::kConnectError &&
         how != CloseHow::kLimit;
}

}  // namespace

Daemon::Daemon(Config& config, const Arguments& arguments, const DaemonLog& log, Parts parts)
    : config_(config),
      arguments_(arguments),
      parts_(std::move(parts)),
      control_(config_, {*parts_.context, *parts_.store, *parts_.proxy, *parts_.watch, events_, stats_,
                         parts_.return_path.path.get(), parts_.return_path.why_none}),
      node_numbers_({.control = control_,
                     .answers = answers_,
                     .log = log.writer(),
                     .access_log = access_log_,
                     .api_server = api_server_}),
      exporter_({.registry = control_.registry(),
                 .dataplane = *parts_.proxy,
                 .ports = control_.ports(),
                 .api = stats_,
                 .node = node_numbers_}),
      api_({*parts_.context, control_, stats_, recent_closes_,
            [this](MetricsScope scope) -> NextPiece { return exporter_.pieces(scope); }}),
      signals_(*parts_.context, {.stop = [this](int signal) { on_stop_signal(signal); },
                                 .reload = [this] { on_reload_signal(); },
                                 .reopen = [this] { on_reopen_signal(); }}) {}

Result<void> Daemon::start() {
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
  auto api = Server::start(*parts_.context, options,
                           [this](const Request& request) { return api_.handle(request); });
  if (!api) return api.error();
  api_server_ = std::move(*api);
  if (config_.metrics.listen) {
    auto server = Server::start(*parts_.context, server_options(*config_.metrics.listen),
                                [this](const Request& request) { return api_.handle_open_metrics(request); });
    if (!server) return server.error();
    metrics_server_ = std::move(*server);
  }
  return {};
}

/// Whether a client is a guest is decided when it connects, by the current configuration.
ServerOptions Daemon::server_options(const ListenAddress& listen) {
  return {.listen = listen,
          .body_max_bytes = config_.api.body_max_bytes,
          .answers = &answers_,
          .refuses = [this](const ClientOrigin& client) {
            return !config_.api.allow_guests && control_.is_guest(client.address, client.link);
          }};
}

void Daemon::run() {
  log_start();
  signals_.start();
  retries_.emplace(*parts_.context, kRetryPeriod, [this] { retry(); });
  closes_.emplace(*parts_.context, kClosesPeriod, [this] {
    drain_closes();
    for (const std::string& id : parts_.device_requests->take()) parts_.watch->refresh(id);
  });
  notify_systemd("READY=1");
  parts_.context->run();
  stop();
}

void Daemon::log_start() const {
  const NodeStats node = parts_.proxy->node_stats();
  const bool tls = !config_.api.tls_certificate.empty();
  spdlog::info("portwayd {} listens on {}, {} workers on {}{}{}", PORTWAY_VERSION,
               url_of(api_server_->address(), tls ? "https" : "http"), node.workers.size(), node.io_backend,
               node.io_backend_reason.empty() ? "" : ": ", node.io_backend_reason);
  if (metrics_server_) spdlog::info("metrics on {}", url_of(metrics_server_->address(), "http"));
}

void Daemon::stop() {
  parts_.context->restart();
  api_server_->stop();
  if (metrics_server_) metrics_server_->stop();
  signals_.stop();
  retries_->stop();
  closes_->stop();
  if (idle_check_) idle_check_->stop();
  // Requests under way are answered, but a slow or silent client does not delay the shutdown.
  const auto deadline = steady_clock::now() + last_answers_;
  while (open_connections() > 0 && steady_clock::now() < deadline) {
    parts_.context->run_one_until(deadline);
  }
  control_.save_sessions();  // the store does it before it closes
  parts_.proxy->stop();
  drain_closes();
  spdlog::info("stopped");
}

// --- Signals.

/// The first signal drains, the second stops at once.
void Daemon::on_stop_signal(int signal) {
  if (control_.draining()) {
    spdlog::warn("signal {} again: stopping now", signal);
    last_answers_ = {};
    parts_.context->stop();
    return;
  }
  spdlog::info("signal {}: draining for up to {} s", signal, config_.proxy.drain_timeout.count());
  notify_systemd("STOPPING=1");
  control_.drain();
  parts_.proxy->stop_accepting();
  drain_deadline_ = steady_clock::now() + config_.proxy.drain_timeout;
  idle_check_.emplace(*parts_.context, kIdlePeriod, [this] { stop_if_idle(); });
  stop_if_idle();
}

void Daemon::stop_if_idle() {
  if (parts_.proxy->idle() || steady_clock::now() >= drain_deadline_) parts_.context->stop();
}

void Daemon::on_reload_signal() {
  const auto since_boot =
      std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch());
  notify_systemd(fmt::format("RELOADING=1\nMONOTONIC_USEC={}", since_boot.count()));
  reload();
  notify_systemd("READY=1");
}

/// A file with a mistake changes nothing.
void Daemon::reload() {
  auto wanted = read_config(arguments_);
  if (!wanted) {
    spdlog::error("SIGHUP: the configuration stays as it was: {}", wanted.error().detail);
    return;
  }
  (void)raise_descriptor_limit(*wanted);  // as at start, or values lowered then would look like changes
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
  spdlog::info("SIGHUP: configuration reloaded");
}

void Daemon::on_reopen_signal() {
  if (!access_log_) return;
  access_log_->reopen([](const Result<void>& reopened) {
    if (!reopened) {
      spdlog::error("{}; continuing in the old file", reopened.error().detail);
    } else {
      spdlog::info("access log reopened");
    }
  });
}

// --- What is done again and again.

void Daemon::retry() {
  control_.retry();
  if (!pending_state_.empty()) notify_systemd(std::string(pending_state_));
  // Otherwise the heap would keep the memory of many answers.
  if (answers_.is_over_a_peak()) ::malloc_trim(0);
}

/// Takes the records of ended connections from the workers.
void Daemon::drain_closes() {
  parts_.proxy->drain_closes([this](CloseRecord&& record) {
    if (!got_through(record.cause.how)) control_.report_refused(record);
    if (access_log_) access_log_->write(record);
    recent_closes_.add(std::move(record));
  });
}

std::uint64_t Daemon::open_connections() const {
  return api_server_->stats().connections + (metrics_server_ ? metrics_server_->stats().connections : 0);
}

/// If systemd does not accept it now, the next retry sends it again, unless a newer state has replaced it.
void Daemon::notify_systemd(const std::string& state) {
  pending_state_ = notify(state) ? "" : state;
}

}  // namespace portway
