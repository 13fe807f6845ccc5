#include "gateway/node_client.h"

#include <algorithm>
#include <array>
#include <boost/beast/core/string.hpp>
#include <stdexcept>

#include "fleet/http_tls.h"
#include "gateway/node_pool.h"
#include "gateway/node_stream.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using Clock = HttpConnection::Clock;

constexpr std::size_t kPieceMax = 64U << 10;

constexpr auto kNodeErrorKindNames = std::to_array<std::string_view>({
    "unreachable",
    "unknown_outcome",
    "timeout",
    "busy",
    "bad_answer",
    "closed",
});
static_assert(kNodeErrorKindNames.size() == kNodeErrorKinds, "every kind has its name, in the same order");

// Of the framing, or of the one connection (RFC 9110, 7.6.1).
constexpr auto kOwnFields =
    std::to_array<std::string_view>({"Connection", "Content-Length", "Expect", "Host", "Keep-Alive",
                                     "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"});

bool is_own_field(const std::pair<std::string, std::string>& field) {
  return std::ranges::any_of(kOwnFields,
                             [&](std::string_view own) { return boost::beast::iequals(field.first, own); });
}

bool is_token_of_line(std::string_view text) {
  return !text.empty() && std::ranges::none_of(text, [](unsigned char c) { return c <= ' ' || c == 0x7f; });
}

NodeError node_error_of(const HttpError& error, bool repeatable) {
  const bool no_answer = error.kind == HttpErrorKind::kUnreachable || error.kind == HttpErrorKind::kTimeout;
  if (error.kind == HttpErrorKind::kClosed) return {.kind = NodeErrorKind::kClosed, .detail = error.detail};
  if (error.not_sent) return {.kind = NodeErrorKind::kUnreachable, .detail = error.detail, .not_sent = true};
  if (!no_answer) return {.kind = NodeErrorKind::kBadAnswer, .detail = error.detail};
  if (!repeatable) {
    return {.kind = NodeErrorKind::kUnknownOutcome,
            .detail =
                error.detail + "; whether the request was carried out is unknown: read before you repeat it"};
  }
  const bool late = error.kind == HttpErrorKind::kTimeout;
  return {.kind = late ? NodeErrorKind::kTimeout : NodeErrorKind::kUnreachable, .detail = error.detail};
}

/// One request and its answer.
class NodeCall {
 public:
  template <class Value>
  using Awaitable = asio::awaitable<HttpResult<Value>>;

  NodeCall(std::unique_ptr<NodeLease> lease, NodeRequest request)
      : lease_(std::move(lease)),
        options_(lease_->pool().options()),
        whole_max_(request.whole_max),
        repeatable_(request.repeatable),
        deadline_(Clock::now() + request.answer_timeout.value_or(options_.answer_timeout)) {
    std::erase_if(request.headers, is_own_field);
    request_ = {.method = std::move(request.method),
                .target = std::move(request.target),
                .fields = std::move(request.headers),
                .body = std::move(request.body)};
  }

  Awaitable<NodeAnswer> run() {
    bool kept = lease_->take_idle();
    for (bool again = false;; again = true) {
      const auto head = co_await ask(kept);
      if (head) co_return co_await take_body(*head);
      if (again || !may_repeat_) co_return head.error();
      kept = false;
    }
  }

 private:
  /// The head of the answer. After an error, `may_repeat_` says whether to ask again.
  Awaitable<HttpHead> ask(bool kept) {
    may_repeat_ = false;
    if (!kept) {
      const auto opened = co_await lease_->open(std::min(deadline_, Clock::now() + options_.connect_timeout));
      if (!opened) co_return opened.error();
    }
    const auto connection = lease_->connection();
    const auto asked_at = Clock::now();
    const auto sent = co_await connection->send(request_, deadline_);
    if (!sent) {
      may_repeat_ = sent.error().kind == HttpErrorKind::kUnreachable;
      co_return sent.error();
    }
    auto head = co_await connection->read_head(deadline_);
    if (!head) {
      const bool unheard = connection->heard_at() < asked_at;
      may_repeat_ = head.error().kind == HttpErrorKind::kUnreachable && kept &&
                    (head.error().not_sent || (unheard && repeatable_));
    } else if (head->status < 200) {
      co_return HttpError{
          .kind = HttpErrorKind::kBadAnswer,
          .detail = connection->endpoint().url + ": an interim answer that was not asked for"};
    }
    co_return head;
  }

  Awaitable<NodeAnswer> take_body(HttpHead head) {
    const auto connection = lease_->connection();
    NodeAnswer answer{.status = head.status, .headers = std::move(head.fields)};
    const std::string_view type = answer.header("Content-Type");
    bool is_whole = false;
    if (has_no_body(head.status) || may_be_whole(head.length, type)) {
      while (!is_whole && answer.body.size() <= whole_max_) {
        const auto piece = co_await connection->read_body(kPieceMax, deadline_);
        if (!piece) co_return piece.error();
        is_whole = piece->empty();
        answer.body += *piece;
      }
    }
    if (is_whole) {
      lease_->give_back();
      co_return answer;
    }
    const milliseconds silence_max =
        type.starts_with("text/event-stream") ? options_.events_silence_max : options_.stream_silence_max;
    answer.stream_bytes = head.length;
    answer.stream = stream_from_node(std::move(lease_), std::exchange(answer.body, {}), silence_max);
    co_return answer;
  }

  bool has_no_body(unsigned status) const {
    return request_.method == "HEAD" || status == 204 || status == 304;
  }
  bool may_be_whole(const std::optional<std::uint64_t>& length, std::string_view type) const {
    if (length) return *length <= whole_max_;
    return type.starts_with("application/json") || type.starts_with("application/problem+json");
  }

  std::unique_ptr<NodeLease> lease_;
  const NodeClientOptions& options_;
  const std::size_t whole_max_;
  const bool repeatable_;
  const Clock::time_point deadline_;
  HttpRequest request_;
  bool may_repeat_ = false;
};

asio::awaitable<NodeResult<NodeAnswer>> ask_node(std::shared_ptr<NodePool> pool, std::string url,
                                                 NodeRequest request) {
  const auto endpoint = parse_http_endpoint(
      url, {.example = "https://node-1.example:8443", .user_remedy = "register the node without one"});
  if (!endpoint) {
    const std::string shown = url.find('@') == std::string::npos ? in_quotes(url) : "a node's URL";
    co_return NodeError{.kind = NodeErrorKind::kUnreachable, .detail = shown + " " + endpoint.error().detail};
  }
  if (!is_token_of_line(request.method) || !is_token_of_line(request.target)) {
    co_return NodeError{.kind = NodeErrorKind::kUnreachable,
                        .detail = endpoint->url + ": the request's method or target is malformed"};
  }
  auto lease = pool->lease(*endpoint);
  if (!lease) co_return lease.error();
  const bool repeatable = request.repeatable;
  NodeCall call(std::move(*lease), std::move(request));
  auto answer = co_await call.run();
  if (!answer) co_return node_error_of(answer.error(), repeatable);
  co_return std::move(*answer);
}

asio::awaitable<NodeResult<NodeAnswer>> ask_and_count(std::shared_ptr<NodePool> pool, std::string url,
                                                      NodeRequest request) {
  ++pool->counters().requests;
  auto answer = co_await ask_node(pool, std::move(url), std::move(request));
  if (!answer) ++pool->counters().errors[static_cast<std::size_t>(answer.error().kind)];
  co_return answer;
}

}  // namespace

std::string_view to_string(NodeErrorKind kind) {
  return kNodeErrorKindNames[static_cast<std::size_t>(kind)];
}

void throw_exception_from_error(const NodeError& error, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected " + std::string(to_string(error.kind)) + ": " + error.detail);
}

Result<std::unique_ptr<NodeClient>> NodeClient::create(const asio::any_io_executor& executor,
                                                       NodeClientOptions options) {
  if (const auto checked = check_http_tls(options.tls); !checked) return checked.error();
  return std::unique_ptr<NodeClient>(
      new NodeClient(std::make_shared<NodePool>(executor, std::move(options))));
}

NodeClient::~NodeClient() {
  close();
}

void NodeClient::close() {
  pool_->close();
}

NodeClientStats NodeClient::stats() const {
  return pool_->stats();
}

asio::awaitable<NodeResult<NodeAnswer>> NodeClient::send(const std::string& url, NodeRequest request) {
  return ask_and_count(pool_, url, std::move(request));
}

}  // namespace portway
