#include "daemon/daemon.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "control/auth.h"
#include "daemon/child_process.h"
#include "daemon/limits.h"
#include "daemon/privileges/sandbox.h"
#include "daemon/succession.h"
#include "process/exit_codes.h"
#include "process/notify.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

// How often to retry what a full disk or a taken port prevented.
constexpr std::chrono::seconds kRetryPeriod(2);
constexpr std::chrono::milliseconds kClosesPeriod(100);
constexpr std::chrono::milliseconds kIdlePeriod(20);
constexpr std::chrono::seconds kHandOverMax(10);

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
      fleet_({.context = *parts_.context,
              .config = config_,
              .control = control_,
              .faults = faults_,
              .connections = [this] { return open_connections(); },
              .started_at = began_}),
      node_numbers_({.control = control_,
                     .answers = answers_,
                     .bodies = bodies_,
                     .log_dropped = [&log] { return log.dropped(); },
                     .access_log = access_log_,
                     .audit_log = audit_log_,
                     .api_servers = [this] { return servers_.api_stats(); },
                     .handover = handover_,
                     .faults = faults_,
                     .refused_calls = refused_calls,
                     .fleet = [this] { return fleet_.numbers(); }}),
      exporter_({.registry = control_.registry(),
                 .dataplane = *parts_.proxy,
                 .ports = control_.ports(),
                 .api = stats_,
                 .node = node_numbers_}),
      api_context_{*parts_.context,
                   control_,
                   control_,
                   stats_,
                   recent_closes_,
                   [this](MetricsScope scope) -> NextPiece { return exporter_.pieces(scope); },
                   *this},
      api_({.keys = control_.keys(),
            .config = config_.api,
            .stats = stats_,
            .audit = [this](const AuditEntry& entry) { audit(entry); },
            .keys_pending = [this] { return fleet_.keys_pending(); }},
           all_node_routes(api_context_)),
      servers_(*parts_.context, faults_, std::move(parts_.passed_sockets)),
      signals_(*parts_.context,
               {.stop = [this](int signal, const SignalSender& sender) { on_stop_signal(signal, sender); },
                .reload = [this](const SignalSender& sender) { on_reload_signal(sender); },
                .reopen = [this] { on_reopen_signal(); },
                .upgrade = [this](const SignalSender& sender) { on_upgrade_signal(sender); }}),
      upgrade_(
          *parts_.context, parts_.unconfined, handover_path(config_),
          {.prepare = [this](std::function<void()> then) { prepare_upgrade(std::move(then)); },
           .hand_over = [this](const Fd& successor, pid_t process) { return hand_over(successor, process); },
           .on_failure = [this](const std::string& why) { on_upgrade_failure(why); }}) {}

/// The forwards come first, whatever else is wrong.
Result<void> Daemon::start(Succession& succession) {
  Inherited* inherited = succession.inherited.get();
  if (auto restored = control_.restore(); !restored) return restored.error();
  open_logs();
  load_admin_key();
  add_servers();
  servers_.start(inherited);
  if (inherited != nullptr) end_succession(succession);
  fleet_.apply_config();
  return {};
}

std::uint64_t Daemon::open_connections() const {
  std::uint64_t open = 0;
  for (const WorkerCounters* worker : parts_.proxy->node_stats().workers) {
    open += worker->connections_active.get();
  }
  return open;
}

/// Those that are configured and not open.
void Daemon::open_logs() {
  const auto keep_open = [this](auto& log, FaultPart part, const std::string& path, const auto& open) {
    if (log || path.empty()) return;
    auto opened = open();
    if (!opened) return faults_.set(part, {}, opened.error().detail);
    log = std::move(*opened);
    faults_.clear(part);
  };
  const Config::Log& wanted = config_.log;
  keep_open(access_log_, FaultPart::kAccessLog, wanted.access,
            [&] { return AccessLog::open(wanted.access); });
  keep_open(audit_log_, FaultPart::kAuditLog, wanted.audit, [&] {
    return AuditLog::open({.path = wanted.audit, .bytes_max = wanted.audit_max, .files = wanted.audit_files});
  });
}

void Daemon::audit(const AuditEntry& entry) {
  if (audit_log_) audit_log_->write(entry);
}

/// Without it, the keys in the store and the users of Unix sockets are known all the same.
void Daemon::load_admin_key() {
  auto key = load_or_make_admin_key(config_.api.admin_key_file);
  if (!key) return faults_.set(FaultPart::kAdminKey, {}, key.error().detail);
  control_.set_admin_key(*key);
  faults_.clear(FaultPart::kAdminKey);
}

void Daemon::add_servers() {
  for (std::size_t i = 0; i < config_.api.listen.size(); ++i) {
    ServerOptions options = server_options(config_.api.listen[i].address,
                                           [this, i] { return portway::allows_guests(config_.api, i); });
    options.listener = i;
    options.tls = tls_of_listener(config_.api, i);
    options.gate = [this](const Request& request) { return api_.admit(request); };
    servers_.add(FaultPart::kApi, std::move(options),
                 [this](const Request& request) { return api_.handle(request); });
  }
  if (!config_.metrics.listen) return;
  servers_.add(FaultPart::kMetrics,
               server_options(*config_.metrics.listen, [this] { return config_.api.allow_guests; }),
               [this](const Request& request) { return api_.handle_open_metrics(request); });
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
ServerOptions Daemon::server_options(const ListenAddress& listen, std::function<bool()> allows_guests) {
  return {.listen = listen,
          .body_max_bytes = config_.api.body_max_bytes,
          .answers = &answers_,
          .bodies = &bodies_,
          .refuses = [this, allows_guests = std::move(allows_guests)](const ClientOrigin& client) {
            return !allows_guests() && control_.is_guest(client.address, client.link);
          }};
}

void Daemon::run() {
  log_start();
  look_at_store();
  look_after_keeper();
  signals_.start();
  retries_.emplace(*parts_.context, kRetryPeriod, [this] { retry(); });
  closes_.emplace(*parts_.context, kClosesPeriod, [this] {
    drain_closes();
    control_.look_at_forwards(kClosesPeriod);
    for (const std::string& id : parts_.device_requests->take()) parts_.watch->refresh(id);
  });
  watchdog_.emplace(*parts_.context, faults_, [this] { return parts_.proxy->silent_workers(); });
  notify_systemd("READY=1\n" + status_text());
  parts_.context->run();
  stop();
}

void Daemon::log_start() const {
  const NodeStats node = parts_.proxy->node_stats();
  const std::vector<std::string> urls = servers_.urls(FaultPart::kApi);
  spdlog::info("portwayd {} listens on {}, {} workers on {}{}{}", PORTWAY_VERSION,
               urls.empty() ? "no address yet" : fmt::format("{}", fmt::join(urls, ", ")),
               node.workers.size(), node.io_backend, node.io_backend_reason.empty() ? "" : ": ",
               node.io_backend_reason);
  for (const std::string& url : servers_.urls(FaultPart::kMetrics)) spdlog::info("metrics on {}", url);
}

void Daemon::stop() {
  parts_.context->restart();
  fleet_.leave();
  servers_.stop();
  signals_.stop();
  retries_->stop();
  closes_->stop();
  if (idle_check_) idle_check_->stop();
  watchdog_->stop();
  upgrade_.stop();
  // Requests under way are answered, but a slow or silent client does not delay the shutdown.
  const auto deadline = steady_clock::now() + last_answers_;
  while ((servers_.open_connections() > 0 || fleet_.is_leaving()) && steady_clock::now() < deadline) {
    parts_.context->run_one_until(deadline);
  }
  // What is on its way to the disk: it cannot be called back.
  while (control_.has_changes_under_way()) parts_.context->run_one();
  control_.save_sessions();  // the store does it before it closes
  parts_.proxy->stop();
  control_.save_usage();
  drain_closes();
  log_refused_calls();
  spdlog::info("stopped");
}

// --- Signals.

/// The first signal drains, the second stops at once.
void Daemon::on_stop_signal(int signal, const SignalSender& sender) {
  if (control_.is_shutting_down()) {
    spdlog::warn("signal {} again: stopping now", signal);
    last_answers_ = {};
    parts_.context->stop();
    return;
  }
  spdlog::info("signal {}: draining for up to {} s", signal, config_.proxy.drain_timeout.count());
  audit_signal(signal, sender, {});
  upgrade_.stop();
  notify_systemd("STOPPING=1");
  control_.shut_down();
  fleet_.on_record();
  parts_.proxy->stop_accepting();
  drain_deadline_ = steady_clock::now() + config_.proxy.drain_timeout;
  idle_check_.emplace(*parts_.context, kIdlePeriod, [this] { stop_if_idle(); });
  stop_if_idle();
}

void Daemon::stop_if_idle() {
  if (parts_.proxy->idle() || steady_clock::now() >= drain_deadline_) parts_.context->stop();
}

void Daemon::on_reload_signal(const SignalSender& sender) {
  const auto since_boot =
      std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch());
  notify_systemd(fmt::format("RELOADING=1\nMONOTONIC_USEC={}", since_boot.count()));
  audit_signal(SIGHUP, sender, reload());
  notify_systemd("READY=1");
}

void Daemon::on_upgrade_signal(const SignalSender& sender) {
  const auto started = start_upgrade();
  if (!started) spdlog::error("SIGUSR2: {}", started.error().detail);
  audit_signal(SIGUSR2, sender, started);
}

void Daemon::audit_signal(int signal, const SignalSender& sender, const Result<void>& done) {
  audit({.time = now(),
         .actor = fmt::format("uid:{}", sender.uid),
         .client = fmt::format("process {}", sender.pid),
         .action = fmt::format("SIG{}", ::sigabbrev_np(signal)),
         .result = done ? "ok" : std::string(to_string(done.error().code))});
}

/// A file with a mistake changes nothing.
Result<void> Daemon::reload() {
  auto wanted = read_config(arguments_);
  if (!wanted) {
    spdlog::error("SIGHUP: the configuration stays as it was: {}", wanted.error().detail);
    return wanted.error();
  }
  (void)raise_descriptor_limit(*wanted);  // as at start, or values lowered then would look like changes
  load_admin_key();
  const std::vector<std::string> need_restart = take_live_keys(config_, *wanted);
  control_.apply_config();
  fleet_.apply_config();
  servers_.drop_refused();
  for (const std::string& warning : warnings(*wanted)) spdlog::warn("{}", warning);
  servers_.reload_tls();
  if (!need_restart.empty()) {
    spdlog::warn("SIGHUP: changes of {} need a restart", fmt::join(need_restart, ", "));
  }
  log_.configure(config_.log);
  spdlog::info("SIGHUP: configuration reloaded");
  return {};
}

void Daemon::on_reopen_signal() {
  const auto report = [](std::string_view which, const Result<void>& reopened) {
    if (!reopened) {
      spdlog::error("{}; continuing in the old file", reopened.error().detail);
    } else {
      spdlog::info("{} log reopened", which);
    }
  };
  if (access_log_)
    access_log_->reopen([report](const Result<void>& reopened) { report("access", reopened); });
  if (audit_log_) audit_log_->reopen([report](const Result<void>& reopened) { report("audit", reopened); });
}

// --- Upgrade.

Result<void> Daemon::start_upgrade() {
  const auto refuse = [](std::string why) { return Error{ErrorCode::kUpgradeNotPossible, std::move(why)}; };
  if (keeper_ == nullptr) {
    return refuse(
        "Connections end with this process: proxy.handover_timeout_s was 0 when it started, or there is no "
        "keeper, as the log says. Restart it instead.");
  }
  if (control_.is_shutting_down()) return refuse("The daemon is shutting down.");
  if (upgrade_.running()) return refuse("An upgrade is under way already.");
  upgrade_.start();
  return {};
}

/// Waits for the changes under way: their answers are this process's. Further ones wait until this process
/// has gone, or continues.
void Daemon::prepare_upgrade(std::function<void()> then) {
  boost::asio::co_spawn(
      *parts_.context,
      [this, then = std::move(then)]() -> boost::asio::awaitable<void> {
        const auto paused = co_await control_.pause_changes();
        then();
      },
      boost::asio::detached);
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
          .handover = handover_,
          .faults = faults_.all()};
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
  audit_log_.reset();
  log_.drain();
  for (const auto& [signal, sender] : signals_.take()) {
    if (lives && signal != SIGUSR2) ::kill(successor, signal);
  }
  ::_exit(lives ? 0 : kExitFailed);
}

// --- What is done again and again.

void Daemon::retry() {
  control_.retry();
  fleet_.retry();
  look_after_keeper();
  log_refused_calls();
  look_at_store();
  open_logs();
  if (faults_.has(FaultPart::kAdminKey)) load_admin_key();
  servers_.retry();
  if (!pending_state_.empty()) notify_systemd(std::string(pending_state_));
  report_status();
  // Otherwise the heap would keep the memory of many answers or bodies.
  const bool answers_are_over = answers_.is_over_a_peak();
  if (bodies_.is_over_a_peak() || answers_are_over) ::malloc_trim(0);
}

void Daemon::look_at_store() {
  // While it refuses, it is asked: nobody else may do that.
  const auto written = faults_.has(FaultPart::kStore) ? parts_.store->writable() : parts_.store->last_write();
  if (written) return faults_.clear(FaultPart::kStore);
  faults_.set(FaultPart::kStore, {}, written.error().detail);
}

void Daemon::look_after_keeper() {
  const bool alive = keeper_ != nullptr && keeper_->alive();
  if (std::exchange(handover_.has_keeper, alive) && !alive) {
    faults_.set(
        FaultPart::kKeeper, {},
        "it has ended: connections end with this process if it dies; an upgrade (SIGUSR2) brings a new "
        "keeper");
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

/// What `systemctl status` shows.
std::string Daemon::status_text() const {
  const std::string faults = faults_.summary();
  const Registry& registry = control_.registry();
  return fmt::format("STATUS={} forwards of {} instances{}{}", registry.forward_count(),
                     registry.instance_count(), faults.empty() ? "" : "; does not work: ", faults);
}

/// When it has changed; what systemd does not accept is sent the next time.
void Daemon::report_status() {
  std::string status = status_text();
  if (status != status_ && notify(status)) status_ = std::move(status);
}

/// If systemd does not accept it now, the next retry sends it again, unless a newer state has replaced it.
void Daemon::notify_systemd(const std::string& state) {
  pending_state_ = notify(state) ? "" : state;
}

}  // namespace portway
