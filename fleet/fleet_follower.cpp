#include "fleet/fleet_follower.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <utility>

#include "base/into.h"
#include "base/random.h"
#include "fleet/etcd.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kKeysOfAPage = 500;
constexpr milliseconds kRetryMin{200};
constexpr milliseconds kRetryMax{2'000};

}  // namespace

/// Two coroutines: one lists and follows, one asks whether etcd is there. After each wait they look whether
/// the follower still exists.
class FleetFollower::State : public std::enable_shared_from_this<State> {
 public:
  State(const asio::any_io_executor& executor, FollowerOptions options, std::unique_ptr<Etcd> etcd)
      : options_(std::move(options)),
        keys_(options_.prefix),
        etcd_(std::move(etcd)),
        view_(keys_),
        retry_(executor),
        check_(executor) {}

  void start() {
    const auto run = [this](auto coroutine) {
      asio::co_spawn(retry_.get_executor(), coroutine(shared_from_this()), asio::detached);
    };
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->follow(); });
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->check(); });
  }

  void stop() {
    stopped_ = true;
    watch_.reset();
    etcd_.reset();
    retry_.cancel();
    check_.cancel();
  }

  const FleetView& view() const { return view_; }
  FollowerStats stats() const {
    FollowerStats stats = stats_;
    stats.stale = !stats.warm || !watch_error_.empty() || !check_error_.empty();
    stats.error = watch_error_.empty() ? check_error_ : watch_error_;
    return stats;
  }

 private:
  asio::awaitable<void> follow();
  asio::awaitable<bool> list();
  asio::awaitable<void> watch_changes();
  asio::awaitable<void> check();

  static asio::awaitable<void> wait(asio::steady_timer& timer, Clock::duration time) {
    boost::system::error_code ignored;
    timer.expires_after(time);
    co_await timer.async_wait(into(ignored));
  }

  void take(const EtcdEvents& batch);
  void relist(std::string_view why);
  static void note(std::string& known, const EtcdError& error) {
    if (error.kind == EtcdErrorKind::kClosed) return;
    known = error.detail + " (" + std::string(to_string(error.kind)) + ")";
  }

  const FollowerOptions options_;
  const FleetKeys keys_;
  std::unique_ptr<Etcd> etcd_;
  FleetView view_;
  std::unique_ptr<EtcdWatch> watch_;
  bool listed_ = false;  // and followed since
  asio::steady_timer retry_;
  asio::steady_timer check_;
  bool stopped_ = false;
  std::string watch_error_;  // of the listing or the watch
  std::string check_error_;
  FollowerStats stats_;
};

asio::awaitable<void> FleetFollower::State::follow() {
  milliseconds pause = kRetryMin;
  while (!stopped_) {
    if (co_await list()) {
      pause = kRetryMin;
      co_await watch_changes();
      continue;
    }
    if (stopped_) co_return;
    // Not all gateways at once.
    const auto half = static_cast<std::uint32_t>(pause.count() / 2);
    co_await wait(retry_, milliseconds(half + random_below(half + 1)));
    pause = std::min(2 * pause, kRetryMax);
  }
}

asio::awaitable<bool> FleetFollower::State::list() {
  view_.begin_listing();
  std::int64_t revision = 0;
  std::optional<EtcdRange> range = EtcdRange{.keys = keys_.all(), .limit = kKeysOfAPage};
  while (range) {
    auto page = co_await etcd_->range(*range);
    if (stopped_) co_return false;
    if (!page && page.error().kind == EtcdErrorKind::kTooLarge && range->limit > 1) {
      range->limit /= 2;
      continue;
    }
    if (!page) {
      note(watch_error_, page.error());
      co_return false;
    }
    if (revision == 0) revision = page->header.revision;
    range = next_page(*range, *page);
    for (EtcdKeyValue& kv : page->kvs) view_.put(kv.key, std::move(kv.value));
  }
  view_.end_listing();
  watch_error_.clear();
  ++stats_.listings;
  stats_.warm = true;
  stats_.revision = revision;
  stats_.true_at = now();
  watch_ = etcd_->watch({.keys = keys_.all(), .start_revision = revision + 1});
  listed_ = true;
  co_return true;
}

asio::awaitable<void> FleetFollower::State::watch_changes() {
  bool is_open = false;
  while (!stopped_ && listed_) {
    const auto batch = co_await watch_->next();
    if (stopped_ || !listed_) co_return;
    if (batch) {
      take(*batch);
      // Only a listing shows whether etcd is still the one that it was: a store that was restored from a
      // backup may have come further than that one had by now.
      if (batch->events.empty() && std::exchange(is_open, true)) relist("the watch was opened again");
      continue;
    }
    const EtcdErrorKind kind = batch.error().kind;
    if (kind == EtcdErrorKind::kCompacted || kind == EtcdErrorKind::kTooLarge) {
      relist(batch.error().detail);
    } else {
      note(watch_error_, batch.error());
    }
  }
}

void FleetFollower::State::take(const EtcdEvents& batch) {
  watch_error_.clear();
  stats_.true_at = now();
  for (const EtcdEvent& event : batch.events) {
    ++stats_.events;
    if (event.type == EtcdEvent::Type::kPut) {
      view_.put(event.kv.key, event.kv.value);
    } else {
      view_.erase(event.kv.key);
    }
  }
  if (!batch.events.empty()) stats_.revision = batch.revision;
}

void FleetFollower::State::relist(std::string_view why) {
  spdlog::info("fleet: all keys are read again: {}", why);
  listed_ = false;
  watch_.reset();  // what waits for it ends
}

asio::awaitable<void> FleetFollower::State::check() {
  EtcdRange range{.keys = keys_.all(), .limit = 1, .content = EtcdContent::kKeysOnly};
  while (!stopped_) {
    co_await wait(check_, options_.check_period);
    if (stopped_) co_return;
    const std::int64_t before = stats_.revision;
    const auto found = co_await etcd_->range(range);
    if (stopped_) co_return;
    if (!found) {
      note(check_error_, found.error());
      continue;
    }
    check_error_.clear();
    if (watch_error_.empty() && listed_) stats_.true_at = now();
    // Linearizable: it never goes back, unless etcd was restored.
    if (listed_ && found->header.revision < before) relist("etcd was restored from a backup");
  }
}

Result<std::unique_ptr<FleetFollower>> FleetFollower::create(const asio::any_io_executor& executor,
                                                             FollowerOptions options) {
  auto etcd = Etcd::create(executor, options.etcd);
  if (!etcd) return etcd.error();
  auto state = std::make_shared<State>(executor, std::move(options), std::move(*etcd));
  state->start();
  return std::unique_ptr<FleetFollower>(new FleetFollower(std::move(state)));
}

FleetFollower::FleetFollower(std::shared_ptr<State> state) : state_(std::move(state)) {}

FleetFollower::~FleetFollower() {
  state_->stop();
}

const FleetView& FleetFollower::view() const {
  return state_->view();
}

FollowerStats FleetFollower::stats() const {
  return state_->stats();
}

}  // namespace portway
