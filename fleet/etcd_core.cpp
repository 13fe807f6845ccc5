#include "fleet/etcd_core.h"

#include <algorithm>
#include <ctime>

#include "base/into.h"

namespace portway {
namespace {

namespace asio = boost::asio;

constexpr std::size_t kIdleMax = 4;
constexpr unsigned kHttpOk = 200;

/// Runs a function at the end of a scope.
class AtEnd {
 public:
  explicit AtEnd(std::function<void()> run) : run_(std::move(run)) {}
  ~AtEnd() { run_(); }
  AtEnd(const AtEnd&) = delete;
  AtEnd& operator=(const AtEnd&) = delete;

 private:
  const std::function<void()> run_;
};

}  // namespace

HttpRequest http_request_of(const EtcdCall& call, const std::string& token) {
  HttpRequest request{.method = "POST", .target = std::string(call.path), .body = call.body};
  request.fields = {{"Content-Type", "application/json"}};
  if (!token.empty()) request.fields.emplace_back("Authorization", token);
  // The gateway passes it on as the gRPC metadata "hasleader" (api/v3rpc/rpctypes/md.go).
  if (call.needs_leader) request.fields.emplace_back("Grpc-Metadata-Hasleader", "true");
  return request;
}

EtcdError etcd_error_of(const HttpError& error) {
  const auto kind = [&] {
    switch (error.kind) {
      case HttpErrorKind::kUnreachable:
        return EtcdErrorKind::kUnreachable;
      case HttpErrorKind::kTimeout:
        return EtcdErrorKind::kTimeout;
      case HttpErrorKind::kBadAnswer:
        return EtcdErrorKind::kBadAnswer;
      case HttpErrorKind::kTooLarge:
        return EtcdErrorKind::kTooLarge;
      case HttpErrorKind::kClosed:
        break;
    }
    return EtcdErrorKind::kClosed;
  }();
  return {.kind = kind, .detail = error.detail};
}

EtcdCore::Closing::Closing(EtcdCore& core, std::function<void()> close)
    : core_(core.shared_from_this()), place_(core.on_close_.insert(core.on_close_.end(), std::move(close))) {}

EtcdCore::Closing::~Closing() {
  core_->on_close_.erase(place_);
}

EtcdCore::EtcdCore(asio::any_io_executor executor, EtcdOptions options, std::vector<HttpEndpoint> endpoints)
    : executor_(std::move(executor)),
      options_(std::move(options)),
      tls_(tls_of(options_)),
      endpoints_(std::move(endpoints)),
      cluster_id_(options_.cluster_id),
      token_fetched_(executor_, Clock::time_point::max()) {}

void EtcdCore::close() {
  is_closed_ = true;
  // Each only closes sockets and timers, so that what waits for them goes on later.
  for (const std::function<void()>& close : on_close_) close();
  idle_.clear();
  token_fetched_.cancel();
}

EtcdError EtcdCore::closed() const {
  return {.kind = EtcdErrorKind::kClosed, .detail = "the client was closed"};
}

void EtcdCore::note_failure(std::size_t index) {
  if (preferred_ == index) preferred_ = (index + 1) % endpoints_.size();
}

EtcdResult<void> EtcdCore::check_cluster(const EtcdHeader& header) {
  if (cluster_id_ == 0) cluster_id_ = header.cluster_id;
  if (cluster_id_ == header.cluster_id) return {};
  return EtcdError{.kind = EtcdErrorKind::kWrongCluster,
                   .detail = "an answer is from cluster " + std::to_string(header.cluster_id) +
                             " instead of " + std::to_string(cluster_id_) + "; let " +
                             options_.endpoints_key + " name members of one cluster"};
}

EtcdCore::Connection EtcdCore::take_idle(std::size_t index) {
  for (auto entry = idle_.end(); entry != idle_.begin();) {
    --entry;
    if (entry->first != index) continue;
    Connection connection = std::move(entry->second);
    entry = idle_.erase(entry);
    if (connection->is_reusable()) return connection;
  }
  return nullptr;
}

void EtcdCore::keep_idle(std::size_t index, Connection connection) {
  if (is_closed_ || !connection->is_reusable()) return;
  if (idle_.size() == kIdleMax) idle_.erase(idle_.begin());
  idle_.emplace_back(index, std::move(connection));
}

/// RFC 9110, 5.6.7: "Mon, 30 Nov 2026 09:47:03 GMT".
void EtcdCore::note_date(std::string_view date) {
  std::tm parts{};
  const std::string text(date);
  const char* end = ::strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  if (end == nullptr || *end != 0) return;
  // It is cut off to the second.
  const Timestamp time =
      std::chrono::sys_seconds(std::chrono::seconds(::timegm(&parts))) + std::chrono::milliseconds(500);
  date_.emplace(time, Clock::now());
}

std::optional<Timestamp> EtcdCore::time() const {
  if (!date_) return std::nullopt;
  return date_->first + std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - date_->second);
}

EtcdCore::Awaitable<std::string> EtcdCore::token(Clock::time_point deadline) {
  while (fetching_token_ && !is_closed_) {
    boost::system::error_code ignored;
    co_await token_fetched_.async_wait(into(ignored));
  }
  if (is_closed_) co_return closed();
  if (options_.user.empty()) co_return std::string();
  if (token_) co_return *token_;
  fetching_token_ = true;
  const AtEnd fetched([this] {
    fetching_token_ = false;
    token_fetched_.cancel();
  });
  const EtcdCall call{.path = "/v3/auth/authenticate",
                      .body = etcd_authenticate_json(options_.user, options_.password),
                      .repeatable = true};
  const auto answer = co_await try_endpoints(call, "", deadline);
  if (!answer && answer.error().no_users) co_return token_.emplace();
  if (!answer) co_return answer.error().error;
  auto parsed = parse_etcd_token(*answer);
  if (!parsed) co_return parsed.error();
  if (const auto same = check_cluster(parsed->header); !same) co_return same.error();
  token_ = std::move(parsed->token);
  co_return *token_;
}

void EtcdCore::forget_token(std::string_view token) {
  if (token_ == token) token_.reset();
}

EtcdCore::Awaitable<std::string> EtcdCore::call(EtcdCall call) {
  const auto deadline = Clock::now() + options_.request_timeout;
  for (bool renewed = options_.user.empty();; renewed = true) {
    const auto token = co_await this->token(deadline);
    if (!token) {
      EtcdError error = token.error();
      // The call itself was not sent.
      if (error.kind == EtcdErrorKind::kTimeout && !call.repeatable) error.kind = EtcdErrorKind::kUnreachable;
      co_return error;
    }
    auto answer = co_await try_endpoints(call, *token, deadline);
    if (answer) co_return std::move(*answer);
    if (answer.error().remedy == EtcdRemedy::kRenewToken) forget_token(*token);
    if (answer.error().remedy != EtcdRemedy::kRenewToken || renewed) co_return answer.error().error;
  }
}

EtcdCore::Deadlines EtcdCore::deadlines_for(const EtcdCall& call, int endpoints_left,
                                            Clock::time_point deadline) const {
  const auto now = Clock::now();
  // Each endpoint has an equal share of the time that is left, so that one that is silent leaves some to the
  // others.
  const auto share = now + std::max(deadline - now, Clock::duration::zero()) / endpoints_left;
  return {.connect = std::min(share, now + options_.connect_timeout),
          // What cannot be repeated may as well be waited for.
          .answer = call.repeatable ? share : deadline};
}

asio::awaitable<EtcdCore::Attempt> EtcdCore::try_endpoints(const EtcdCall& call, std::string token,
                                                           Clock::time_point deadline) {
  EtcdFailure last;
  std::string details;
  const std::size_t first = preferred_;
  for (std::size_t tried = 0; tried < endpoints_.size(); ++tried) {
    const std::size_t index = (first + tried) % endpoints_.size();
    const Deadlines deadlines = deadlines_for(call, static_cast<int>(endpoints_.size() - tried), deadline);
    auto answer = co_await try_endpoint(call, token, index, deadlines);
    if (is_closed_) co_return as_failure(closed());
    if (answer) {
      note_success(index);
      co_return answer;
    }
    last = answer.error();
    const EtcdRemedy remedy = last.remedy;
    if (remedy == EtcdRemedy::kMaybeNext || remedy == EtcdRemedy::kTryNext) note_failure(index);
    if (remedy == EtcdRemedy::kMaybeNext && !call.repeatable) {
      last.error.kind = EtcdErrorKind::kUnknownOutcome;
      last.error.detail += "; whether the request was carried out is unknown: read before you repeat it";
      co_return last;
    }
    if (remedy != EtcdRemedy::kTryNext && remedy != EtcdRemedy::kMaybeNext) co_return last;
    // What was not carried out at all endpoints was not carried out.
    if (!call.repeatable) last.error.kind = EtcdErrorKind::kUnreachable;
    details += (details.empty() ? "" : "; ") + last.error.detail;
  }
  last.error.detail = std::move(details);
  co_return last;
}

asio::awaitable<EtcdCore::Attempt> EtcdCore::try_endpoint(const EtcdCall& call, std::string token,
                                                          std::size_t index, Deadlines deadlines) {
  if (Connection idle = take_idle(index)) {
    const auto asked_at = Clock::now();
    auto answer = co_await ask(call, token, index, idle, deadlines);
    const bool is_final = answer || idle->heard_at() >= asked_at || is_closed_ ||
                          answer.error().error.kind == EtcdErrorKind::kTimeout ||
                          (answer.error().remedy == EtcdRemedy::kMaybeNext && !call.repeatable);
    if (is_final) co_return answer;
    // The server had closed it just then.
  }
  const auto connection = std::make_shared<HttpConnection>(executor_, endpoints_[index]);
  {
    const Closing closing(*this, [&connection] { connection->close(); });
    const auto opened = co_await connection->open(tls_, deadlines.connect);
    if (!opened) co_return as_failure(etcd_error_of(opened.error()), EtcdRemedy::kTryNext);
  }
  co_return co_await ask(call, token, index, connection, deadlines);
}

asio::awaitable<EtcdCore::Attempt> EtcdCore::ask(const EtcdCall& call, std::string token, std::size_t index,
                                                 Connection connection, Deadlines deadlines) {
  if (is_closed_) co_return as_failure(closed());
  const Closing closing(*this, [&connection] { connection->close(); });
  const HttpRequest request = http_request_of(call, token);
  const auto sent = co_await connection->send(request, deadlines.answer);
  if (!sent) co_return as_failure(etcd_error_of(sent.error()), EtcdRemedy::kTryNext);
  auto answer = co_await connection->read_answer(options_.answer_max, deadlines.answer);
  if (!answer) {
    const HttpErrorKind kind = answer.error().kind;
    const bool may_come = kind == HttpErrorKind::kUnreachable || kind == HttpErrorKind::kTimeout;
    EtcdRemedy remedy = may_come ? EtcdRemedy::kMaybeNext : EtcdRemedy::kNone;
    if (answer.error().not_sent) remedy = EtcdRemedy::kTryNext;
    co_return as_failure(etcd_error_of(answer.error()), remedy);
  }
  note_date(answer->head.field("Date"));
  keep_idle(index, connection);
  if (answer->head.status == kHttpOk) co_return std::move(answer->body);
  EtcdFailure failure = etcd_failure_of(answer->head.status, answer->body);
  failure.error.detail = endpoints_[index].url + ": " + failure.error.detail;
  co_return failure;
}

}  // namespace portway
