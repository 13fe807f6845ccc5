#include "fleet/publisher.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "base/into.h"
#include "fleet/etcd.h"
#include "fleet/etcd_pages.h"
#include "fleet/fleet_keys.h"
#include "fleet/node_record.h"
#include "fleet/pauses.h"
#include "fleet/publication.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kPauseMin{200};
constexpr milliseconds kPauseMax{5'000};
constexpr std::int64_t kPage = 200;  // keys of a listing's page
// For how long it stays known that an instance was deleted, and how old a lease for that may be.
constexpr seconds kEndedTtl = std::chrono::hours(24);
constexpr seconds kEndedLeaseAge = std::chrono::hours(1);
// What the date of an answer cannot show.
constexpr milliseconds kClockNoise{5'000};

/// Load that is worth a write: a tenth more or less.
bool is_notable(std::uint64_t before, std::uint64_t now) {
  const std::uint64_t difference = before > now ? before - now : now - before;
  return difference * 10 > before;
}

bool is_notable(const NodeRecord::Load& before, const NodeRecord::Load& now) {
  return is_notable(before.instances, now.instances) || is_notable(before.forwards, now.forwards) ||
         is_notable(before.connections, now.connections);
}

}  // namespace

std::string_view to_string(FleetFault fault) {
  switch (fault) {
    case FleetFault::kEtcd:
      return "etcd";
    case FleetFault::kNodeId:
      return "node_id";
    case FleetFault::kTwin:
      return "twin";
    case FleetFault::kClock:
      return "clock";
  }
  return "unknown";
}

/// Three coroutines: one registers the node, one lists and follows what etcd has, one writes. After each wait
/// they look whether the publisher still exists.
class Publisher::State : public std::enable_shared_from_this<State> {
 public:
  State(const asio::any_io_executor& executor, PublisherOptions options, FleetNode& node, Report report,
        std::unique_ptr<Etcd> etcd)
      : options_(std::move(options)),
        node_(node),
        report_(std::move(report)),
        etcd_(std::move(etcd)),
        keys_(options_.prefix),
        publication_({.keys = keys_,
                      .node_id = options_.node_id,
                      .node = node,
                      .began = [this](const Uuid& session) { return began(session); },
                      .now = [this] { return etcd_->time().value_or(node_.time()); }}),
        registrar_(executor),
        follower_(executor),
        writer_(executor) {}

  void start() {
    const auto run = [this](auto coroutine) {
      asio::co_spawn(writer_.get_executor(), coroutine(shared_from_this()), asio::detached);
    };
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->keep_registered(); });
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->follow(); });
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->write(); });
  }

  void stop() {
    stopped_ = true;
    watch_.reset();
    etcd_.reset();
    for (asio::steady_timer* timer : {&registrar_, &follower_, &writer_}) timer->cancel();
  }

  void resign(std::function<void()> done) {
    stopped_ = true;  // for the three; etcd stays
    for (asio::steady_timer* timer : {&registrar_, &follower_, &writer_}) timer->cancel();
    const auto revoke = [](std::shared_ptr<State> self,
                           std::function<void()> on_done) -> asio::awaitable<void> {
      if (self->lease_ != EtcdLease::kNone) co_await self->etcd_->revoke(self->lease_);
      if (self->etcd_ != nullptr) on_done();
    };
    asio::co_spawn(writer_.get_executor(), revoke(shared_from_this(), std::move(done)), asio::detached);
  }

  Publication& publication() { return publication_; }
  void wake_writer() { writer_.cancel(); }
  void on_record() {
    record_changed_ = true;
    registrar_.cancel();
  }

  PublisherStats stats() const {
    PublisherStats stats = stats_;
    stats.registered = registered_;
    stats.pending = publication_.pending() + in_flight_;
    stats.sessions_lost = publication_.sessions_lost();
    stats.clock_ahead = clock_ahead_;
    return stats;
  }

 private:
  enum class Task : std::uint8_t { kRegister, kFollow, kWrite };

  asio::awaitable<void> keep_registered();
  asio::awaitable<bool> register_node();
  asio::awaitable<void> stay_registered();
  asio::awaitable<bool> keep_alive();
  asio::awaitable<bool> check_record();
  asio::awaitable<bool> update_record();
  asio::awaitable<void> follow();
  asio::awaitable<bool> list();
  asio::awaitable<void> watch_changes();
  asio::awaitable<void> read_again();
  asio::awaitable<void> write();
  asio::awaitable<bool> get_ended_lease();
  asio::awaitable<bool> write_batch(EtcdLease ended);

  /// Ends early if the timer is cancelled.
  static asio::awaitable<void> wait(asio::steady_timer& timer, Clock::duration time) {
    boost::system::error_code ignored;
    timer.expires_after(time);
    co_await timer.async_wait(into(ignored));
  }
  asio::awaitable<void> pause(asio::steady_timer& timer, Pauses& pauses) {
    const auto until = Clock::now() + pauses.next();
    while (!stopped_ && Clock::now() < until) co_await wait(timer, until - Clock::now());
  }

  void note_error(Task task, const EtcdError& error);
  void note_success(Task task) { note_text(task, ""); }
  void note_text(Task task, std::string text);
  void note_revision(std::int64_t before, const EtcdHeader& header);
  void note_clock();
  void lose_registration(std::string_view why);
  void relist(std::string_view why);
  Timestamp began(const Uuid& session) const;
  RegisteredNode own() const { return {.record = node_.record(), .identity = options_.identity}; }
  std::string node_key() const { return keys_.node(options_.node_id); }
  bool record_differs() const;
  void look_at_twins();

  const PublisherOptions options_;
  FleetNode& node_;
  const Report report_;
  std::unique_ptr<Etcd> etcd_;
  const FleetKeys keys_;
  Publication publication_;
  // Each wakes its coroutine when it is cancelled.
  asio::steady_timer registrar_;
  asio::steady_timer follower_;
  asio::steady_timer writer_;
  bool stopped_ = false;

  EtcdLease lease_ = EtcdLease::kNone;
  bool registered_ = false;
  bool record_changed_ = false;
  NodeRecord published_;  // the record as it was written last
  Clock::time_point published_at_{};
  bool check_now_ = false;
  bool listed_ = false;        // and followed since
  std::int64_t revision_ = 0;  // the highest that was seen
  std::unique_ptr<EtcdWatch> watch_;
  std::size_t in_flight_ = 0;  // operations of the transaction that is under way
  EtcdLease ended_lease_ = EtcdLease::kNone;
  Clock::time_point ended_lease_since_{};
  std::array<std::string, 3> errors_ = {};  // by Task; empty: none
  std::optional<milliseconds> clock_ahead_;
  PublisherStats stats_;
};

// --- Registration.

asio::awaitable<void> Publisher::State::keep_registered() {
  Pauses pauses(kPauseMin, kPauseMax);
  while (!stopped_) {
    if (!co_await register_node()) {
      if (!stopped_) co_await pause(registrar_, pauses);
      continue;
    }
    pauses.reset();
    co_await stay_registered();
  }
}

asio::awaitable<bool> Publisher::State::register_node() {
  EtcdRange range{.keys = EtcdKeys::one(node_key())};
  const auto found = co_await etcd_->range(range);
  if (stopped_) co_return false;
  if (!found) {
    note_error(Task::kRegister, found.error());
    co_return false;
  }
  note_clock();
  std::int64_t expected = 0;
  if (!found->kvs.empty()) {
    const EtcdKeyValue& kv = found->kvs.front();
    const auto other = parse_registered_node(kv.value);
    const bool is_other = !other || other->identity != options_.identity;
    if (is_other && kv.lease != EtcdLease::kNone) {
      note_success(Task::kRegister);
      report_(
          FleetFault::kNodeId,
          fmt::format("another node is registered as {}{}: give each node its own fleet.node_id; nothing of "
                      "this one is published until that one has gone",
                      options_.node_id, other ? ", at " + other->record.address : ""));
      co_return false;
    }
    expected = kv.mod_revision;
  }
  const auto granted = co_await etcd_->grant(options_.lease_ttl);
  if (stopped_) co_return false;
  if (!granted) {
    note_error(Task::kRegister, granted.error());
    co_return false;
  }
  const RegisteredNode node = own();
  EtcdTxn txn{.compares = {{.key = node_key(), .number = expected}}};
  txn.success.emplace_back(EtcdPut{.key = node_key(), .value = to_json(node), .lease = granted->lease});
  const auto put = co_await etcd_->txn(std::move(txn));
  if (stopped_) co_return false;
  if (!put) note_error(Task::kRegister, put.error());
  if (!put || !put->succeeded) co_return false;  // another node was faster: it is found the next time
  note_success(Task::kRegister);
  report_(FleetFault::kNodeId, "");
  lease_ = granted->lease;
  registered_ = true;
  published_ = node.record;
  published_at_ = Clock::now();
  ++stats_.registrations;
  spdlog::info("fleet: registered as {}", node_key());
  relist("the node has registered");
  co_return true;
}

asio::awaitable<void> Publisher::State::stay_registered() {
  const milliseconds period = milliseconds(options_.lease_ttl) / 3;
  auto alive_at = Clock::now() + jittered(period);
  auto check_at = Clock::now() + jittered(options_.check_period);
  while (!stopped_ && registered_) {
    if (Clock::now() >= alive_at) {
      const bool kept = co_await keep_alive();
      if (stopped_ || !registered_) co_return;
      alive_at = Clock::now() + (kept ? period : jittered(std::min(period, milliseconds(1000))));
      note_clock();
      publication_.mark_twins();
      wake_writer();
    }
    if (check_now_ || Clock::now() >= check_at) {
      const bool is_due = !std::exchange(check_now_, false);
      const bool checked = co_await check_record();
      if (stopped_ || !registered_) co_return;
      if (checked && is_due) {
        // What has changed without an event, or was not done when it was asked for.
        publication_.mark_all();
        wake_writer();
      }
      check_at = Clock::now() + (checked ? jittered(options_.check_period) : kPauseMax);
    }
    if (record_differs()) {
      const bool updated = co_await update_record();
      if (stopped_ || !registered_) co_return;
      if (!updated) co_await wait(registrar_, kPauseMin);
      if (stopped_) co_return;
      continue;
    }
    const auto until = std::min(alive_at, check_at);
    if (!check_now_) co_await wait(registrar_, std::max(until - Clock::now(), Clock::duration::zero()));
  }
}

asio::awaitable<bool> Publisher::State::keep_alive() {
  const auto kept = co_await etcd_->keep_alive(lease_);
  if (stopped_) co_return false;
  if (!kept && kept.error().kind == EtcdErrorKind::kLeaseNotFound) {
    lose_registration("its lease has ended");
    co_return false;
  }
  if (!kept) {
    note_error(Task::kRegister, kept.error());
    co_return false;
  }
  note_success(Task::kRegister);
  // The member may only be behind: check_record() finds out.
  if (kept->header.revision < revision_) check_now_ = true;
  co_return true;
}

/// The record is there, on our lease.
asio::awaitable<bool> Publisher::State::check_record() {
  EtcdRange range{.keys = EtcdKeys::one(node_key())};
  const std::int64_t before = revision_;
  const auto found = co_await etcd_->range(range);
  if (stopped_) co_return false;
  if (!found) {
    note_error(Task::kRegister, found.error());
    co_return false;
  }
  note_success(Task::kRegister);
  note_revision(before, found->header);
  if (found->kvs.empty()) {
    lose_registration("its record has gone");
  } else if (found->kvs.front().lease != lease_) {
    lose_registration("its record is somebody else's");
  }
  co_return true;
}

asio::awaitable<bool> Publisher::State::update_record() {
  record_changed_ = false;
  const RegisteredNode node = own();
  EtcdTxn txn{.compares = {{.key = node_key(),
                            .target = EtcdCompare::Target::kLease,
                            .number = static_cast<std::int64_t>(lease_)}}};
  txn.success.emplace_back(EtcdPut{.key = node_key(), .value = to_json(node), .lease = lease_});
  const auto put = co_await etcd_->txn(std::move(txn));
  if (stopped_) co_return false;
  if (!put) {
    record_changed_ = true;
    if (put.error().kind == EtcdErrorKind::kLeaseNotFound) lose_registration("its lease has ended");
    note_error(Task::kRegister, put.error());
    co_return false;
  }
  note_success(Task::kRegister);
  if (!put->succeeded) {
    lose_registration("its record is somebody else's");
    co_return false;
  }
  published_ = node.record;
  published_at_ = Clock::now();
  co_return true;
}

bool Publisher::State::record_differs() const {
  NodeRecord now = node_.record();
  const bool load =
      is_notable(published_.load, now.load) && Clock::now() - published_at_ >= options_.load_period;
  now.load = published_.load;
  return record_changed_ || load || now != published_;
}

void Publisher::State::lose_registration(std::string_view why) {
  registered_ = false;
  listed_ = false;
  watch_.reset();
  spdlog::warn("fleet: the node is not registered any more: {}", why);
}

// --- What etcd has.

void Publisher::State::relist(std::string_view why) {
  spdlog::info("fleet: what etcd has of the node is read: {}", why);
  listed_ = false;
  watch_.reset();  // what waits for it ends
  follower_.cancel();
}

asio::awaitable<void> Publisher::State::follow() {
  Pauses pauses(kPauseMin, kPauseMax);
  while (!stopped_) {
    if (!registered_) {
      co_await wait(follower_, std::chrono::hours(1));
      continue;
    }
    if (!co_await list()) {
      if (!stopped_) co_await pause(follower_, pauses);
      continue;
    }
    pauses.reset();
    co_await watch_changes();
  }
}

asio::awaitable<bool> Publisher::State::list() {
  publication_.begin_listing();
  auto keys = keys_.state(options_.node_id);
  const auto revision = co_await read_all(*etcd_, std::move(keys), kPage, [this](EtcdKeyValue&& kv) {
    if (!stopped_) publication_.note(kv);
    return !stopped_;
  });
  if (stopped_) co_return false;
  if (!revision) {
    note_error(Task::kFollow, revision.error());
    co_return false;
  }
  if (!registered_) co_return false;
  ++stats_.listings;
  revision_ = *revision;
  publication_.mark_all();
  watch_ = etcd_->watch({.keys = keys_.state(options_.node_id), .start_revision = *revision + 1});
  listed_ = true;
  wake_writer();
  co_return true;
}

asio::awaitable<void> Publisher::State::watch_changes() {
  bool is_open = false;
  while (!stopped_ && listed_) {
    const auto batch = co_await watch_->next();
    if (stopped_ || !listed_) co_return;
    if (!batch) {
      const EtcdErrorKind kind = batch.error().kind;
      if (kind == EtcdErrorKind::kCompacted || kind == EtcdErrorKind::kTooLarge) {
        relist(batch.error().detail);
        co_return;
      }
      note_error(Task::kFollow, batch.error());
      is_open = true;  // it may have been, and is opened again in any case
      continue;
    }
    note_success(Task::kFollow);
    if (batch->events.empty()) {
      if (std::exchange(is_open, true)) co_await read_again();
      continue;
    }
    for (const EtcdEvent& event : batch->events) {
      if (event.type == EtcdEvent::Type::kPut) {
        publication_.note(event.kv);
      } else {
        publication_.note_deleted(event.kv.key);
      }
    }
    wake_writer();
  }
}

/// The stream was opened again. Only a listing shows whether etcd is still the one that it was: a store that
/// was restored from a backup may have come further than that one had by now.
asio::awaitable<void> Publisher::State::read_again() {
  const auto until = Clock::now() + jittered(kPauseMax);  // not all nodes at once
  while (!stopped_ && listed_ && Clock::now() < until) co_await wait(follower_, until - Clock::now());
  if (!stopped_ && listed_) relist("the watch was opened again");
}

// --- Writing.

asio::awaitable<void> Publisher::State::write() {
  Pauses pauses(kPauseMin, kPauseMax);
  while (!stopped_) {
    if (!registered_ || !listed_ || !publication_.has_work()) {
      co_await wait(writer_, std::chrono::hours(1));
      continue;
    }
    if (publication_.needs_lease()) {
      const bool has_lease = co_await get_ended_lease();
      if (!has_lease) {
        if (!stopped_) co_await pause(writer_, pauses);
        continue;
      }
    }
    if (stopped_) co_return;
    const bool is_lease_young = Clock::now() - ended_lease_since_ < kEndedLeaseAge;
    if (co_await write_batch(is_lease_young ? ended_lease_ : EtcdLease::kNone)) {
      pauses.reset();
    } else if (!stopped_) {
      co_await pause(writer_, pauses);
    }
  }
}

asio::awaitable<bool> Publisher::State::get_ended_lease() {
  const bool is_young = Clock::now() - ended_lease_since_ < kEndedLeaseAge;
  if (ended_lease_ != EtcdLease::kNone && is_young) co_return true;
  const auto granted = co_await etcd_->grant(kEndedTtl);
  if (stopped_) co_return false;
  if (!granted) {
    note_error(Task::kWrite, granted.error());
    co_return false;
  }
  ended_lease_ = granted->lease;
  ended_lease_since_ = Clock::now();
  co_return true;
}

asio::awaitable<bool> Publisher::State::write_batch(EtcdLease ended) {
  Publication::Batch batch = publication_.next_batch(ended);
  if (batch.empty()) {
    // What was looked at is as it should be; others have their turn before the rest is.
    if (!publication_.has_work()) note_success(Task::kWrite);
    look_at_twins();
    co_await asio::post(asio::use_awaitable);
    co_return true;
  }
  EtcdTxn txn = batch.txn;
  txn.compares.push_back({.key = node_key(),
                          .target = EtcdCompare::Target::kLease,
                          .number = static_cast<std::int64_t>(lease_)});
  txn.failure.emplace_back(EtcdRange{.keys = EtcdKeys::one(node_key()), .content = EtcdContent::kKeysOnly});
  const EtcdLease lease = lease_;
  in_flight_ = txn.success.size();
  const std::int64_t before = revision_;
  const auto answer = co_await etcd_->txn(std::move(txn));
  in_flight_ = 0;
  if (stopped_) co_return false;
  if (!answer) {
    ++stats_.writes_failed;
    publication_.on_failure(batch, answer.error().kind == EtcdErrorKind::kTooLarge);
    if (answer.error().kind == EtcdErrorKind::kLeaseNotFound) ended_lease_ = EtcdLease::kNone;
    note_error(Task::kWrite, answer.error());
    co_return false;
  }
  note_success(Task::kWrite);
  ++stats_.writes;
  if (!answer->succeeded) ++stats_.claims_refused;
  publication_.on_answer(batch, *answer);
  note_revision(before, answer->header);
  look_at_twins();
  if (answer->succeeded || !registered_ || lease != lease_) co_return true;
  const auto& kvs = std::get<EtcdRangeAnswer>(answer->answers.at(batch.items.size())).kvs;
  if (kvs.empty() || kvs.front().lease != lease_) {
    lose_registration("its record has gone");
    registrar_.cancel();
  }
  co_return true;
}

// --- What is noticed.

/// Linearizable answers never go back, unless etcd was restored. `before`: what was known when this one was
/// asked for.
void Publisher::State::note_revision(std::int64_t before, const EtcdHeader& header) {
  const bool has_gone_back = header.revision < before;
  revision_ = has_gone_back ? header.revision : std::max(revision_, header.revision);
  if (!has_gone_back || !listed_) return;
  spdlog::warn("fleet: etcd has gone back to revision {}: it was restored from a backup", revision_);
  relist("etcd was restored");
}

void Publisher::State::note_clock() {
  const auto theirs = etcd_->time();
  if (!theirs) return;
  clock_ahead_ = node_.time() - *theirs;
  const milliseconds by = std::chrono::abs(*clock_ahead_);
  report_(FleetFault::kClock,
          by <= kClockNoise
              ? ""
              : fmt::format("the node's clock is {} s {} etcd's: set it by NTP; which of two sessions of an "
                            "instance is newer is decided by etcd's clock meanwhile",
                            std::chrono::round<seconds>(by).count(),
                            *clock_ahead_ > milliseconds(0) ? "ahead of" : "behind"));
}

/// When a session began, by etcd's clock. Only what is more than noise is corrected: clocks that are
/// synchronized are better than what a date shows.
Timestamp Publisher::State::began(const Uuid& session) const {
  const bool is_off = clock_ahead_ && std::chrono::abs(*clock_ahead_) > kClockNoise;
  return time_of(session) - (is_off ? *clock_ahead_ : milliseconds(0));
}

void Publisher::State::look_at_twins() {
  const auto& twins = publication_.twins();
  if (twins.empty()) return report_(FleetFault::kTwin, "");
  const auto& [instance, node] = *twins.begin();
  report_(FleetFault::kTwin,
          fmt::format("{} sessions of this node are published by another one that is alive, the first one of "
                      "instance {} by node {}: one of the two has a copy of the other's store; give it a new "
                      "one",
                      twins.size(), instance, node));
}

void Publisher::State::note_error(Task task, const EtcdError& error) {
  if (error.kind == EtcdErrorKind::kClosed) return;
  std::string text = fmt::format("{} ({})", error.detail, to_string(error.kind));
  if (error.kind == EtcdErrorKind::kWrongCluster) {
    text +=
        "; if etcd was replaced or restored, reload this daemon (SIGHUP), which publishes everything again";
  }
  note_text(task, std::move(text));
}

void Publisher::State::note_text(Task task, std::string text) {
  std::string& known = errors_[static_cast<std::size_t>(task)];
  const bool was_good = known.empty();
  known = std::move(text);
  if (was_good && known.empty()) return;
  const auto first = std::ranges::find_if(errors_, [](const std::string& each) { return !each.empty(); });
  report_(FleetFault::kEtcd, first == errors_.end() ? "" : *first);
}

// --- The publisher.

Result<std::unique_ptr<Publisher>> Publisher::create(const asio::any_io_executor& executor,
                                                     PublisherOptions options, FleetNode& node,
                                                     Report report) {
  auto etcd = Etcd::create(executor, options.etcd);
  if (!etcd) return etcd.error();
  auto state =
      std::make_shared<State>(executor, std::move(options), node, std::move(report), std::move(*etcd));
  state->start();
  return std::unique_ptr<Publisher>(new Publisher(std::move(state)));
}

Publisher::Publisher(std::shared_ptr<State> state) : state_(std::move(state)) {}

Publisher::~Publisher() {
  state_->stop();
}

void Publisher::resign(std::function<void()> done) {
  state_->resign(std::move(done));
}

void Publisher::on_instance(std::string_view id) {
  state_->publication().mark(id);
  state_->wake_writer();
}

void Publisher::on_forward(std::string_view instance_id, const ForwardId& id) {
  state_->publication().mark(instance_id, id);
  state_->wake_writer();
}

void Publisher::on_anything() {
  state_->publication().mark_all();
  state_->on_record();
  state_->wake_writer();
}

void Publisher::on_record() {
  state_->on_record();
}

PublisherStats Publisher::stats() const {
  return state_->stats();
}

}  // namespace portway
