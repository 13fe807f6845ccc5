#include "daemon/daemon.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "control/auth.h"
#include "daemon/child_process.h"
#include "daemon/limits.h"
#include "daemon/notify.h"
#include "daemon/succession.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

// How often to retry what a full disk or a taken port prevented.
constexpr std::chrono::seconds kRetryPeriod(2);
constexpr std::chrono::milliseconds kClosesPeriod(100);
constexpr std::chrono::milliseconds kIdlePeriod(20);
constexpr std::chrono::seconds kHandOverMax(10);

/// For the log; "unix:/path" is already a complete address.
std::string url_of(const ListenAddress& address, std::string_view scheme) {
  if (std::holds_alternative<UnixPath>(address)) return to_string(address);
  return fmt::format("{}://{}", scheme, to_string(address));
}

Fd listener_of(Inherited* inherited, const ListenAddress& address) {
  if (inherited == nullptr) return Fd();
  const auto* path = std::get_if<UnixPath>(&address);
  return path != nullptr ? inherited->take_listener(path->path)
                         : inherited->take_listener(std::get<Endpoint>(address));
}

bool got_through(CloseHow how) {
  return how != CloseHow::kRefused && how != CloseHow::kConnectTimeout && how != CloseHow::kConnectError &&
         how != CloseHow::kLimit;
}

}  // namespace

Daemon::Daemon(Config& config, const Arguments& arguments, DaemonLog& log, Keeper* keeper, Parts parts)
    : config_(config),
      arguments_(arguments),
      log_(log),
      keeper_(keeper),
      parts_(std::move(parts)),
      control_(config_, {*parts_.context, *parts_.store, *parts_.proxy, *parts_.watch, events_, stats_,
                         parts_.return_path.path.get(), parts_.return_path.why_none}),
      node_numbers_({.control = control_,
                     .answers = answers_,
                     .log = log.writer(),
                     .access_log = access_log_,
                     .api_server = api_server_,
                     .handover = handover_}),
      exporter_({.registry = control_.registry(),
                 .dataplane = *parts_.proxy,
                 .ports = control_.ports(),
                 .api = stats_,
                 .node = node_numbers_}),
      api_({*parts_.context, control_, stats_, recent_closes_,
            [this](MetricsScope scope) -> NextPiece { return exporter_.pieces(scope); }, *this}),
      signals_(*parts_.context, {.stop = [this](int signal) { on_stop_signal(signal); },
                                 .reload = [this] { on_reload_signal(); },
                                 .reopen = [this] { on_reopen_signal(); },
                                 .upgrade =
                                     [this] {
                                       if (auto started = start_upgrade(); !started)
                                         spdlog::error("SIGUSR2: {}", started.error().detail);
                                     }}),
      upgrade_(
          *parts_.context, handover_path(config_),
          [this](const Fd& successor, pid_t process) { return hand_over(successor, process); },
          [this](const std::string& why) { on_upgrade_failure(why); }) {}

Result<void> Daemon::start(Succession& succession) {
  Inherited* inherited = succession.inherited.get();
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
  auto api = Server::start(
      *parts_.context, options, [this](const Request& request) { return api_.handle(request); },
      listener_of(inherited, options.listen));
  if (!api) return api.error();
  api_server_ = std::move(*api);
  if (config_.metrics.listen) {
    auto server = Server::start(
        *parts_.context, server_options(*config_.metrics.listen),
        [this](const Request& request) { return api_.handle_open_metrics(request); },
        listener_of(inherited, *config_.metrics.listen));
    if (!server) return server.error();
    metrics_server_ = std::move(*server);
  }
  if (inherited != nullptr) end_succession(succession);
  return {};
}

void Daemon::end_succession(Succession& succession) {
  Inherited& inherited = *succession.inherited;
  handover_.taken_over = true;
  handover_.from_living = succession.from_living;
  handover_.found = inherited.connections();
  handover_.adopted = parts_.proxy->end_adoption();
  if (parts_.return_path.path) {
    parts_.return_path.path->end_succession();
  } else {
    ReturnPath::remove_all_left();
  }
  handover_.lost = inherited.lost();
  std::size_t& orphans = handover_.lost[static_cast<std::size_t>(Lost::kNoForward)];
  orphans = handover_.found - handover_.adopted -
            std::accumulate(handover_.lost.begin(), handover_.lost.end(), std::size_t{0});
  handover_.left_over = inherited.left_over();
  succession.inherited.reset();
  succession.predecessor.reset();
  handover_.seconds = std::chrono::duration<double>(steady_clock::now() - succession.began).count();
  events_.publish({.time = now(),
                   .instance_id = {},
                   .owner = {},
                   .kind = event::NodeTakenOver{.from_living = handover_.from_living,
                                                .connections = handover_.found,
                                                .adopted = handover_.adopted}});
  std::string lost;
  for (std::size_t i = 0; i < kLostReasons; ++i) {
    if (handover_.lost[i] != 0)
      lost += fmt::format(", {} reset ({})", handover_.lost[i], to_string(static_cast<Lost>(i)));
  }
  spdlog::log(lost.empty() ? spdlog::level::info : spdlog::level::warn,
              "taken over from the daemon before, which {}: {} of {} connections continue{}; {} descriptors "
              "left over; {:.0f} ms",
              handover_.from_living ? "hands over" : "has died", handover_.adopted, handover_.found, lost,
              handover_.left_over, 1000 * handover_.seconds);
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
  look_after_keeper();
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
  upgrade_.stop();
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
  upgrade_.stop();
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

// --- Upgrade.

Result<void> Daemon::start_upgrade() {
  const auto refuse = [](std::string why) { return Error{ErrorCode::kUpgradeNotPossible, std::move(why)}; };
  if (keeper_ == nullptr) {
    return refuse(
        "Connections end with this process: proxy.handover_timeout_s was 0 when it started, or there is no "
        "keeper, as the log says. Restart it instead.");
  }
  if (control_.draining()) return refuse("The daemon is shutting down.");
  if (upgrade_.running()) return refuse("An upgrade is under way already.");
  upgrade_.start();
  return {};
}

void Daemon::on_upgrade_failure(const std::string& why) {
  ++handover_.upgrades_failed;
  upgrade_failure_ = why;
  events_.publish({.time = now(), .instance_id = {}, .owner = {}, .kind = event::NodeUpgradeFailed{why}});
}

ProcessStatus Daemon::process_status() const {
  return {.pid = ::getpid(),
          .started = began_,
          .handover_timeout = handover_.has_keeper ? config_.proxy.handover_timeout : std::chrono::seconds(0),
          .upgrading = upgrade_.running(),
          .upgrade_failure = upgrade_failure_,
          .handover = handover_};
}

/// From the pause on nothing may be logged or stored that the successor could miss.
Error Daemon::hand_over(const Fd& successor, pid_t process) {
  spdlog::info("upgrade: process {} takes over", process);
  control_.save_sessions();
  drain_closes();
  keeper_->prepare();
  if (auto paused = parts_.proxy->pause(); !paused) {
    end_process(process);
    return paused.error();
  }
  parts_.store->suspend();
  ReturnPath* path = parts_.return_path.path.get();
  if (path != nullptr) path->let_go();
  const int error = keeper_->hand_over(successor.get(), kHandOverMax);
  if (error != 0) end_process(process);  // first: it could take over until then
  if (keeper_->handed_over()) leave(process);
  if (auto resumed = parts_.store->resume(); !resumed) {
    // The keeper has the connections for whoever is started next.
    spdlog::error("upgrade: {}", resumed.error().detail);
    log_.drain();
    ::_exit(kExitFailed);
  }
  if (auto held = path != nullptr ? path->hold_again() : Result<void>(); !held)
    spdlog::error("upgrade: {}", held.error().detail);
  parts_.proxy->resume();
  return {ErrorCode::kInternal, fmt::format("the new process has not taken over: {}", std::strerror(error))};
}

/// The connections are another process's, or its keeper's if it has ended: then whoever watches this process
/// must start the next one.
void Daemon::leave(pid_t successor) {
  const bool lives = ::waitpid(successor, nullptr, WNOHANG) == 0;
  if (lives) {
    notify_systemd(fmt::format("MAINPID={}", successor));
  } else {
    spdlog::error("upgrade: the new process has taken over, and has ended");
  }
  drain_closes();
  access_log_.reset();  // writes what is queued
  log_.drain();
  for (const int signal : signals_.take()) {
    if (lives && signal != SIGUSR2) ::kill(successor, signal);
  }
  ::_exit(lives ? 0 : kExitFailed);
}

// --- What is done again and again.

void Daemon::retry() {
  control_.retry();
  look_after_keeper();
  if (!pending_state_.empty()) notify_systemd(std::string(pending_state_));
  // Otherwise the heap would keep the memory of many answers.
  if (answers_.is_over_a_peak()) ::malloc_trim(0);
}

void Daemon::look_after_keeper() {
  const bool alive = keeper_ != nullptr && keeper_->alive();
  if (std::exchange(handover_.has_keeper, alive) && !alive) {
    spdlog::error(
        "the keeper has ended: connections end with this process if it dies; an upgrade (SIGUSR2) brings a "
        "new keeper");
  }
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
