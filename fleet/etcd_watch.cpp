// A watch is one request whose body and answer both stay open (HttpRequest::stays_open). Its events come
// as lines of JSON; on its body a sign of life is asked for.
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <iterator>
#include <utility>

#include "base/into.h"
#include "fleet/etcd.h"
#include "fleet/etcd_core.h"
#include "fleet/etcd_json.h"
#include "fleet/pauses.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = EtcdCore::Clock;

constexpr unsigned kWatchStatus = 200;
constexpr std::chrono::milliseconds kReopenMin{100};
constexpr std::chrono::milliseconds kReopenMax{5000};

std::size_t bytes_of(const EtcdEvent& event) {
  return sizeof event + event.kv.key.size() + event.kv.value.size();
}

/// Another endpoint may do better.
EtcdFailure failure_of_endpoint(const EtcdError& error) {
  return as_failure(error, EtcdRemedy::kMaybeNext);
}
EtcdFailure failure_of_endpoint(const HttpError& error) {
  return failure_of_endpoint(etcd_error_of(error));
}

EtcdError watch_closed() {
  return {.kind = EtcdErrorKind::kClosed, .detail = "the watch was closed"};
}

EtcdError not_created(const HttpEndpoint& endpoint) {
  return {.kind = EtcdErrorKind::kBadAnswer,
          .detail = endpoint.url + ": the stream does not begin with the watch's creation"};
}

}  // namespace

class EtcdWatch::State : public std::enable_shared_from_this<State> {
 public:
  template <class Value>
  using Awaitable = asio::awaitable<EtcdResult<Value>>;

  State(std::shared_ptr<EtcdCore> core, EtcdWatchRequest request)
      : core_(std::move(core)),
        request_(std::move(request)),
        next_revision_(std::max<std::int64_t>(request_.start_revision, 0)),
        timer_(core_->executor(), Clock::time_point::max()) {}

  /// The two are functions, not members, of what they keep alive.
  static Awaitable<EtcdEvents> next(std::shared_ptr<State> self) {
    const EtcdCore::Closing closing(*self->core_, [&self] { self->close(); });
    co_return co_await self->next_batch();
  }
  static asio::awaitable<void> ask_for_sign(std::shared_ptr<HttpConnection> connection) {
    const std::string request = etcd_progress_json();
    // If it fails, nothing comes, which is noticed.
    static_cast<void>(co_await connection->send_more(request));
  }

  void close() {
    is_closed_ = true;
    if (connection_ != nullptr) connection_->close();
    timer_.expires_at(Clock::time_point::max());
  }

  std::int64_t next_revision() const { return next_revision_; }

 private:
  Awaitable<EtcdEvents> next_batch();
  asio::awaitable<EtcdAttempt<EtcdWatchMessage>> read_message();
  std::optional<EtcdEvents> take_events(bool more_follows);
  EtcdResult<void> hold(std::vector<EtcdEvent> events);

  Awaitable<void> open();
  asio::awaitable<EtcdAttempt<EtcdWatchMessage>> open_at(std::size_t index);
  void drop();
  asio::awaitable<void> pause();

  void expect_sign();
  void on_silence();

  bool is_over() const { return is_closed_ || core_->is_closed(); }

  const std::shared_ptr<EtcdCore> core_;
  const EtcdWatchRequest request_;
  std::int64_t next_revision_;   // events before it were returned, or are of no interest; 0: not known yet
  std::vector<EtcdEvent> held_;  // of a revision at a fragment's end, until it is complete
  std::size_t held_bytes_ = 0;
  std::optional<EtcdError> final_;  // comes again and again

  std::shared_ptr<HttpConnection> connection_;  // null: to be opened
  std::size_t index_ = 0;                       // of its endpoint
  unsigned failures_ = 0;  // of streams, and of tries to open one, since one has brought something
  Pauses pauses_{kReopenMin, kReopenMax};

  asio::steady_timer timer_;  // of the pause, or of the silence while a message is waited for
  Clock::time_point waiting_since_;
  std::optional<Clock::time_point> sign_asked_at_;
  bool is_closed_ = false;
};

EtcdWatch::State::Awaitable<EtcdEvents> EtcdWatch::State::next_batch() {
  while (!final_) {
    if (is_over()) co_return watch_closed();
    if (connection_ == nullptr) {
      const auto opened = co_await open();
      if (!opened) co_return opened.error();
      EtcdEvents none;
      none.revision = next_revision_ - 1;
      co_return none;
    }
    auto message = co_await read_message();
    if (!message) {
      if (is_over()) continue;
      const EtcdFailure failure = message.error();
      drop();
      ++failures_;
      core_->note_failure(index_);
      const EtcdErrorKind kind = failure.error.kind;
      if (kind == EtcdErrorKind::kCompacted || kind == EtcdErrorKind::kTooLarge) final_ = failure.error;
      if (failure.remedy == EtcdRemedy::kNone) co_return failure.error;
      continue;
    }
    failures_ = 0;
    pauses_.reset();
    if (message->events.empty()) continue;  // a sign of life
    if (const auto held = hold(std::move(message->events)); !held) {
      drop();
      final_ = held.error();
      continue;
    }
    if (auto batch = take_events(message->fragment)) co_return std::move(*batch);
  }
  co_return *final_;
}

/// A message of the right cluster that is no cancellation.
asio::awaitable<EtcdAttempt<EtcdWatchMessage>> EtcdWatch::State::read_message() {
  waiting_since_ = Clock::now();
  expect_sign();
  const auto line = co_await connection_->read_line(core_->options().answer_max, HttpConnection::kNoDeadline);
  timer_.expires_at(Clock::time_point::max());
  if (!line && line.error().kind == HttpErrorKind::kTooLarge)
    co_return as_failure(etcd_error_of(line.error()));
  if (!line) co_return failure_of_endpoint(line.error());
  auto message = parse_etcd_watch(*line);
  if (!message) {
    EtcdFailure failure = message.error();
    if (failure.error.kind == EtcdErrorKind::kBadAnswer) failure.remedy = EtcdRemedy::kMaybeNext;
    co_return failure;
  }
  if (const auto same = core_->check_cluster(message->header); !same) {
    co_return as_failure(same.error());
  }
  if (message->failure) co_return std::move(*message->failure);
  co_return message;
}

EtcdResult<void> EtcdWatch::State::hold(std::vector<EtcdEvent> events) {
  for (EtcdEvent& event : events) {
    if (event.kv.mod_revision < next_revision_) continue;  // was returned already
    held_bytes_ += bytes_of(event);
    held_.push_back(std::move(event));
  }
  // While it is JSON it is larger by a third, so this is about one revision in several fragments.
  if (held_bytes_ <= core_->options().answer_max) return {};
  return EtcdError{.kind = EtcdErrorKind::kTooLarge,
                   .detail = "one revision has too many changes to be kept"};
}

std::optional<EtcdEvents> EtcdWatch::State::take_events(bool more_follows) {
  // The last revision of a fragment may go on in the next one.
  auto end = held_.end();
  if (more_follows && !held_.empty()) {
    const std::int64_t last = held_.back().kv.mod_revision;
    end = std::find_if(held_.begin(), held_.end(),
                       [&](const EtcdEvent& event) { return event.kv.mod_revision == last; });
  }
  if (end == held_.begin()) return std::nullopt;
  EtcdEvents out{.events = {std::make_move_iterator(held_.begin()), std::make_move_iterator(end)}};
  held_.erase(held_.begin(), end);
  held_bytes_ = 0;
  for (const EtcdEvent& event : held_) held_bytes_ += bytes_of(event);
  out.revision = out.events.back().kv.mod_revision;
  next_revision_ = out.revision + 1;
  return out;
}

/// At the first endpoint where that is possible.
EtcdWatch::State::Awaitable<void> EtcdWatch::State::open() {
  co_await pause();
  const std::size_t count = core_->endpoints().size();
  const std::size_t first = core_->preferred();
  EtcdError last;
  std::string details;
  bool renewed = core_->options().user.empty();
  for (std::size_t tried = 0; tried < count && !is_over();) {
    index_ = (first + tried) % count;
    auto created = co_await open_at(index_);
    if (created) {
      core_->note_success(index_);
      if (next_revision_ == 0) next_revision_ = created->header.revision + 1;
      co_return EtcdResult<void>();
    }
    if (is_over()) break;
    drop();
    last = created.error().error;
    EtcdRemedy remedy = created.error().remedy;
    if (last.kind == EtcdErrorKind::kBadAnswer) remedy = EtcdRemedy::kMaybeNext;
    if (remedy == EtcdRemedy::kRenewToken && !renewed) {
      renewed = true;
      continue;
    }
    if (remedy == EtcdRemedy::kNone || remedy == EtcdRemedy::kRenewToken) break;
    core_->note_failure(index_);
    details += (details.empty() ? "" : "; ") + last.detail;
    last.detail = details;
    ++tried;
  }
  ++failures_;
  if (is_over()) last = watch_closed();
  if (last.kind == EtcdErrorKind::kCompacted) final_ = last;
  co_return last;
}

asio::awaitable<EtcdAttempt<EtcdWatchMessage>> EtcdWatch::State::open_at(std::size_t index) {
  const auto token = co_await core_->token(Clock::now() + core_->options().request_timeout);
  if (!token) co_return as_failure(token.error());
  if (is_over()) co_return as_failure(watch_closed());
  const HttpEndpoint& endpoint = core_->endpoints()[index];
  connection_ = std::make_shared<HttpConnection>(core_->executor(), endpoint);
  const auto connection = connection_;
  const auto opened =
      co_await connection->open(core_->tls(), Clock::now() + core_->options().connect_timeout);
  if (!opened) co_return failure_of_endpoint(opened.error());

  EtcdWatchRequest request = request_;
  request.start_revision = next_revision_;
  HttpRequest create = http_request_of({.path = "/v3/watch", .body = etcd_watch_json(request)}, *token);
  create.stays_open = true;
  const auto deadline = Clock::now() + core_->options().request_timeout;
  const auto sent = co_await connection->send(create, deadline);
  if (!sent) co_return failure_of_endpoint(sent.error());
  const auto head = co_await connection->read_head(deadline);
  if (!head) co_return failure_of_endpoint(head.error());
  const std::size_t answer_max = core_->options().answer_max;
  if (head->status != kWatchStatus) {
    const auto answer = co_await connection->read_answer(answer_max, deadline);
    if (!answer) co_return failure_of_endpoint(answer.error());
    EtcdFailure failure = etcd_failure_of(head->status, answer->body);
    failure.error.detail = endpoint.url + ": " + failure.error.detail;
    if (failure.remedy == EtcdRemedy::kRenewToken) core_->forget_token(*token);
    co_return failure;
  }
  const auto line = co_await connection->read_line(answer_max, deadline);
  if (!line) co_return failure_of_endpoint(line.error());
  auto message = parse_etcd_watch(*line);
  if (!message) co_return message;
  if (const auto same = core_->check_cluster(message->header); !same) {
    co_return as_failure(same.error());
  }
  if (message->failure) {
    if (message->failure->remedy == EtcdRemedy::kRenewToken) core_->forget_token(*token);
    co_return std::move(*message->failure);
  }
  if (!message->created) co_return failure_of_endpoint(not_created(endpoint));
  co_return message;
}

void EtcdWatch::State::drop() {
  if (connection_ != nullptr) connection_->close();
  connection_ = nullptr;
  // It comes again, whole.
  held_.clear();
  held_bytes_ = 0;
  sign_asked_at_.reset();
}

/// Before the stream is opened: not after the first failure, then longer and longer.
asio::awaitable<void> EtcdWatch::State::pause() {
  if (failures_ < 2) co_return;
  timer_.expires_after(pauses_.next());
  error_code ignored;
  co_await timer_.async_wait(into(ignored));
}

/// Sets the timer to the moment at which silence means something.
void EtcdWatch::State::expect_sign() {
  const auto heard_at = std::max(connection_->heard_at(), waiting_since_);
  if (sign_asked_at_ && heard_at > *sign_asked_at_) sign_asked_at_.reset();
  timer_.expires_at(sign_asked_at_ ? *sign_asked_at_ + core_->options().request_timeout
                                   : heard_at + core_->options().silence_max);
  timer_.async_wait([weak = weak_from_this()](const error_code& error) {
    const auto self = weak.lock();
    // It may have been set anew after this was due.
    if (error || self == nullptr || self->timer_.expiry() > Clock::now() || self->connection_ == nullptr)
      return;
    self->on_silence();
  });
}

void EtcdWatch::State::on_silence() {
  const auto heard_at = std::max(connection_->heard_at(), waiting_since_);
  const auto now = Clock::now();
  if (sign_asked_at_ && heard_at <= *sign_asked_at_) {
    connection_->close(HttpErrorKind::kTimeout);
    return;
  }
  if (heard_at + core_->options().silence_max <= now) {
    sign_asked_at_ = now;
    asio::co_spawn(core_->executor(), ask_for_sign(connection_), asio::detached);
  }
  expect_sign();
}

EtcdWatch::EtcdWatch(std::shared_ptr<State> state) : state_(std::move(state)) {}

EtcdWatch::~EtcdWatch() {
  state_->close();
}

std::unique_ptr<EtcdWatch> EtcdWatch::make(std::shared_ptr<EtcdCore> core, EtcdWatchRequest request) {
  return std::unique_ptr<EtcdWatch>(
      new EtcdWatch(std::make_shared<State>(std::move(core), std::move(request))));
}

asio::awaitable<EtcdResult<EtcdEvents>> EtcdWatch::next() {
  return State::next(state_);
}

std::int64_t EtcdWatch::next_revision() const {
  return state_->next_revision();
}

}  // namespace portway
