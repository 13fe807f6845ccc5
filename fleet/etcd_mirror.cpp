#include "fleet/etcd_mirror.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>

#include "base/into.h"
#include "fleet/etcd_pages.h"
#include "fleet/pauses.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

constexpr std::int64_t kKeysOfAPage = 500;
constexpr milliseconds kRetryMin{200};
constexpr milliseconds kRetryMax{2'000};

}  // namespace

/// Two coroutines: one lists and follows, one asks whether etcd is there. After each wait they look whether
/// the mirror still exists.
class EtcdMirror::State : public std::enable_shared_from_this<State> {
 public:
  using Clock = std::chrono::steady_clock;

  State(const asio::any_io_executor& executor, std::shared_ptr<Etcd> etcd, EtcdMirrorOptions options,
        EtcdSink& sink)
      : options_(std::move(options)),
        sink_(sink),
        etcd_(std::move(etcd)),
        retry_(executor),
        check_(executor),
        moved_(executor, Clock::time_point::max()) {}

  void start() {
    const auto run = [this](auto coroutine) {
      asio::co_spawn(retry_.get_executor(), coroutine(shared_from_this()),
                     [self = shared_from_this()](const std::exception_ptr& why) {
                       if (why) self->give_up(why);
                     });
    };
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> {
      co_await asio::post(asio::use_awaitable);
      co_await self->follow();
    });
    run([](std::shared_ptr<State> self) -> asio::awaitable<void> { co_await self->check(); });
  }

  /// Memory has run out, or this program has a mistake: from now on what is known is stale.
  void give_up(const std::exception_ptr& why) {
    try {
      std::rethrow_exception(why);
    } catch (const std::exception& error) {
      watch_error_ = fmt::format("the mirror of etcd has ended ({}); restart the process", error.what());
    }
    spdlog::error("fleet: {}", watch_error_);
    stop();
  }

  void stop() {
    stopped_ = true;
    watch_.reset();
    etcd_.reset();
    for (asio::steady_timer* timer : {&retry_, &check_, &moved_}) timer->cancel();
  }

  EtcdMirrorStats stats() const {
    EtcdMirrorStats stats = stats_;
    stats.stale = !listed_ || !watch_error_.empty() || !check_error_.empty();
    stats.error = watch_error_.empty() ? check_error_ : watch_error_;
    return stats;
  }

  /// It keeps itself alive.
  static asio::awaitable<bool> wait_until_at(std::shared_ptr<State> self, std::int64_t revision,
                                             milliseconds most) {
    asio::steady_timer timeout(self->moved_.get_executor(), most);
    const auto until = timeout.expiry();
    timeout.async_wait([weak = std::weak_ptr(self)](const boost::system::error_code& error) {
      const auto state = weak.lock();
      if (!error && state != nullptr) state->moved_.cancel();
    });
    while (!self->stopped_ && !self->is_at(revision)) {
      if (Clock::now() >= until) co_return false;
      boost::system::error_code ignored;
      co_await self->moved_.async_wait(into(ignored));
    }
    co_return !self->stopped_;
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

  bool is_at(std::int64_t revision) const { return listed_ && stats_.revision >= revision; }
  void take(const EtcdEvents& batch);
  void relist(std::string_view why);
  void note_heard() {
    watch_error_.clear();
    check_error_.clear();
    stats_.true_at = now();
  }
  static void note(std::string& known, const EtcdError& error) {
    if (error.kind == EtcdErrorKind::kClosed) return;
    known = error.detail + " (" + std::string(to_string(error.kind)) + ")";
  }

  const EtcdMirrorOptions options_;
  EtcdSink& sink_;  // not after stop()
  std::shared_ptr<Etcd> etcd_;
  std::unique_ptr<EtcdWatch> watch_;
  bool listed_ = false;  // and followed since
  asio::steady_timer retry_;
  asio::steady_timer check_;
  asio::steady_timer moved_;  // cancelled when the sink is at another revision
  bool stopped_ = false;
  std::string watch_error_;  // of the listing or the watch
  std::string check_error_;
  EtcdMirrorStats stats_;
};

asio::awaitable<void> EtcdMirror::State::follow() {
  Pauses pauses(kRetryMin, kRetryMax);
  while (!stopped_) {
    if (co_await list()) {
      pauses.reset();
      co_await watch_changes();
    } else if (!stopped_) {
      co_await wait(retry_, pauses.next());
    }
  }
}

asio::awaitable<bool> EtcdMirror::State::list() {
  sink_.begin_listing();
  auto keys = options_.keys;
  const auto revision = co_await read_all(*etcd_, std::move(keys), kKeysOfAPage, [this](EtcdKeyValue&& kv) {
    if (!stopped_) sink_.put(kv);
    return !stopped_;
  });
  if (stopped_) co_return false;
  if (!revision) {
    note(watch_error_, revision.error());
    co_return false;
  }
  note_heard();
  ++stats_.listings;
  stats_.warm = true;
  stats_.revision = *revision;
  watch_ = etcd_->watch({.keys = options_.keys, .start_revision = *revision + 1});
  listed_ = true;
  sink_.end_listing(*revision);
  moved_.cancel();
  co_return true;
}

asio::awaitable<void> EtcdMirror::State::watch_changes() {
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
      is_open = true;  // it may have been, and is opened again in any case
    }
  }
}

void EtcdMirror::State::take(const EtcdEvents& batch) {
  note_heard();
  for (const EtcdEvent& event : batch.events) {
    ++stats_.events;
    stats_.revision = event.kv.mod_revision;
    if (event.type == EtcdEvent::Type::kPut) {
      sink_.put(event.kv);
    } else {
      sink_.erase(event.kv.key, event.kv.mod_revision);
    }
    sink_.on_event(event);
  }
  if (!batch.events.empty()) moved_.cancel();
}

void EtcdMirror::State::relist(std::string_view why) {
  spdlog::info("fleet: all keys of {} are read again: {}", options_.keys.key, why);
  listed_ = false;
  watch_.reset();  // what waits for it ends
}

asio::awaitable<void> EtcdMirror::State::check() {
  EtcdRange range{.keys = options_.keys, .limit = 1, .content = EtcdContent::kKeysOnly};
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

EtcdMirror::EtcdMirror(const asio::any_io_executor& executor, std::shared_ptr<Etcd> etcd,
                       EtcdMirrorOptions options, EtcdSink& sink)
    : state_(std::make_shared<State>(executor, std::move(etcd), std::move(options), sink)) {
  state_->start();
}

EtcdMirror::~EtcdMirror() {
  state_->stop();
}

EtcdMirrorStats EtcdMirror::stats() const {
  return state_->stats();
}

asio::awaitable<bool> EtcdMirror::wait_until_at(std::int64_t revision, milliseconds most) {
  return State::wait_until_at(state_, revision, most);
}

}  // namespace portway
