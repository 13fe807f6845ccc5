// Reading is a loop of our own around the parser: one timer covers a whole header or body, and a composed
// read could miss its cancellation between two reads.
#include "api/http/session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <ctime>
#include <exception>
#include <string>
#include <utility>

#include "api/http/failure_log.h"
#include "api/http/problem.h"
#include "base/endpoint.h"
#include "base/into.h"
#include "base/log_fields.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t kReadBytes = 4096;
// For the client to take the last answer and close.
constexpr milliseconds kLingerTimeout(2000);
constexpr std::size_t kLingerBytes = 1024 * 1024;
// What an answer that is made in pieces takes: a piece, with its frame, and a compressor.
constexpr std::size_t kPiecesBytes = 64 * 1024;
// Smaller answers are not counted: a connection itself takes more.
constexpr std::size_t kUncountedBytes = 4096;

/// What an answer takes of the budget until it is sent.
std::size_t bytes_of(const Response& response) {
  if (response.pieces != nullptr) return kPiecesBytes;
  return response.body.size() <= kUncountedBytes ? 0 : response.body.size();
}

/// An IPv6 client has 2^64 addresses to choose from.
AnswerBudget::Payer payer_of(const std::string& caller, const Peer& peer) {
  if (!caller.empty()) return {.name = caller, .has_key = true};
  return {.name = source_name(peer), .has_key = peer.credentials.has_value()};
}

Error answer_too_large() {
  return {.code = ErrorCode::kResourceExhausted,
          .detail =
              "Too many bytes of answers wait to be read, by this caller or by all callers together: read "
              "the answers to other requests, or ask for less at a time (limit), and try again."};
}

void log_failure(const Request& request, std::string_view what) {
  const LogFields fields({{"request_id", request.id}});
  spdlog::error("API: {} {}: {}", request.method, in_quotes(request.target), what);
}

Response internal_error(const Request& request) {
  return problem({.code = ErrorCode::kInternal,
                  .detail = "Internal error of the daemon; its log says more under this request's id."},
                 request.id);
}

Error bodies_too_large() {
  return {.code = ErrorCode::kResourceExhausted,
          .detail =
              "Too many bytes of requests are on their way, of this caller or of all callers together: send "
              "fewer requests at a time, and try again."};
}

}  // namespace

Session::Session(std::shared_ptr<Sessions> sessions, std::list<Session*>& list, SessionTransport transport,
                 const Peer& peer)
    : sessions_(std::move(sessions)),
      list_(&list),
      place_(list.insert(list.end(), this)),
      transport_(std::move(transport)),
      peer_(peer),
      source_(sessions_->sources.try_emplace(source_name(peer)).first),
      limits_{.header_max_bytes = sessions_->options.header_max_bytes,
              .body_max_bytes = sessions_->options.body_max_bytes},
      buffer_(limits_.header_max_bytes + kReadBytes),
      timer_(transport_.executor()),
      wake_timer_(transport_.executor()) {
  ++source_->second.all;
  enter(list);
}

void Session::serve() {
  spawn(&Session::serve_all);
}

void Session::turn_away() {
  spawn(&Session::refuse_connection);
}

void Session::close() {
  transport_.close();
  timer_.cancel();
  wake_timer_.cancel();
  stream_.reset();
  if (list_ == nullptr) return;
  leave();
  list_->erase(place_);
  list_ = nullptr;
  if (--source_->second.all == 0) sessions_->sources.erase(source_);
}

void Session::wake() {
  woken_ = true;
  wake_timer_.cancel();
}

void Session::spawn(Awaitable<void> (Session::*run)()) {
  asio::co_spawn(
      transport_.executor(), [self = shared_from_this(), run] { return (self.get()->*run)(); },
      [self = shared_from_this()](const std::exception_ptr& failure) {
        self->close();
        if (failure) log_exception("a connection failed", failure);
      });
}

void Session::move_to(std::list<Session*>& list) {
  if (list_ == nullptr) return;
  leave();
  list.splice(list.end(), *list_, place_);
  list_ = &list;
  enter(list);
}

/// Counts it for its source.
void Session::enter(std::list<Session*>& list) {
  SessionSource& source = source_->second;
  if (&list != &sessions_->turned_away) ++source.seats;
  if (&list == &sessions_->idle || &list == &sessions_->reading) ++source.waiting;
}

void Session::leave() {
  SessionSource& source = source_->second;
  if (list_ != &sessions_->turned_away) --source.seats;
  if (list_ == &sessions_->idle || list_ == &sessions_->reading) --source.waiting;
}

/// Replaces the deadline before.
void Session::set_deadline(milliseconds limit, OnDeadline on_deadline) {
  timed_out_ = false;
  timer_.expires_after(limit);
  timer_.async_wait([self = shared_from_this(), on_deadline](const error_code& error) {
    // If it was queued already when the deadline was moved, it comes without an error, but too early.
    if (error || self->timer_.expiry() > steady_clock::now()) return;
    self->timed_out_ = true;
    if (on_deadline == OnDeadline::kClose) return self->close();
    self->transport_.cancel();
  });
}

void Session::clear_deadline() {
  timer_.expires_at(steady_clock::time_point::max());
}

asio::awaitable<void> Session::serve_all() {
  if (!co_await handshake()) co_return;
  while (co_await wait_for_request()) {
    move_to(sessions_->reading);
    const bool continues = co_await serve_one();
    if (!continues) {
      co_await linger();
      co_return;
    }
  }
}

asio::awaitable<void> Session::refuse_connection() {
  if (!co_await handshake()) co_return;
  RequestOutline nothing = unread_request();
  Error error{.code = ErrorCode::kConnectionLimit,
              .detail =
                  "Too many clients are connected, or too many from this address; try again soon, and "
                  "reuse connections.",
              .limit = sessions_->options.connections_max};
  co_await refuse(std::move(nothing), std::move(error));
  co_await linger();
}

/// False if it failed; the client was sent the reason if possible.
asio::awaitable<bool> Session::handshake() {
  if (!transport_.has_tls()) co_return true;
  set_deadline(sessions_->options.header_timeout, OnDeadline::kClose);
  const auto outcome = co_await transport_.handshake();
  if (outcome == SessionTransport::Handshake::kDone) {
    auto names = transport_.client_names();
    if (!names.empty())
      certificate_names_ = std::make_shared<const std::vector<std::string>>(std::move(names));
    co_return true;
  }
  ++sessions_->stats.handshakes_failed;
  if (outcome == SessionTransport::Handshake::kGotPlainHttp) {
    RequestOutline nothing = unread_request();
    Error wrong_scheme = malformed("This port speaks HTTPS; use https:// instead of http://.");
    co_await refuse(std::move(nothing), std::move(wrong_scheme));
  }
  co_await linger();
  co_return false;
}

/// False if the client has gone or was silent for too long.
asio::awaitable<bool> Session::wait_for_request() {
  bool waits = false;
  for (;;) {
    buffer_.consume(empty_lines(unparsed()));
    if (buffer_.size() > 0) co_return true;
    if (sessions_->stopping) co_return false;
    if (!std::exchange(waits, true)) {
      move_to(sessions_->idle);
      set_deadline(sessions_->options.idle_timeout, OnDeadline::kClose);
    }
    if (co_await read_more()) co_return false;
  }
}

/// One request and its answer; false if it was the connection's last.
asio::awaitable<bool> Session::serve_one() {
  RequestParser parser(limits_);
  Request request;
  std::optional<Response> early;
  const bool has_request = co_await read_request(parser, request, early);
  // A session that was closed meanwhile may have lost its server, and the handler with it.
  if (!has_request || !transport_.is_open()) co_return false;
  if (is_refused()) {
    ++sessions_->stats.connections_refused_network;
    close();
    co_return false;
  }
  move_to(sessions_->busy);
  clear_deadline();
  if (!early) early = co_await respond(request);
  Response response = std::move(*early);
  body_shares_.clear();
  if (!transport_.is_open()) co_return false;  // closed meanwhile
  const auto share = take_share(request, response);
  AnswerFraming framing{.request_id = request.id,
                        .version = parser.version(),
                        .is_to_head = request.method == "HEAD",
                        .has_length = response.stream_bytes.has_value()};
  framing.keep_alive = parser.is_done() && parser.keep_alive() && !sessions_->stopping &&
                       !ends_with_connection(response, framing);
  if (response.stream != nullptr && !framing.is_to_head) {
    co_await answer_with_stream(std::move(response), std::move(framing));
    co_return false;
  }
  const bool keep_alive = framing.keep_alive;
  if (!co_await answer(std::move(response), std::move(framing))) co_return false;
  co_return keep_alive;
}

/// False if there is none: the client has gone, or its request was refused. `early` is the gate's: then the
/// rest of the body is not read, unless it is here already.
asio::awaitable<bool> Session::read_request(RequestParser& parser, Request& request,
                                            std::optional<Response>& early) {
  std::optional<Error> error;
  error_code failed = co_await read_header(parser);
  if (!failed) error = parser.ambiguity();
  if (!failed && !error) {
    request = parser.request();
    request.peer = peer_.origin.address;
    request.peer_credentials = peer_.credentials;
    request.certificate_names = certificate_names_;
    request.listener = sessions_->options.listener;
    RequestAdmission admission = parser.is_done() ? RequestAdmission() : admit(request);
    early = std::move(admission.refusal);
    if (early) {
      buffer_.consume(parser.parse_body(unparsed(), failed));
      co_return true;
    }
    request.pass = std::move(admission.pass);
    const AnswerBudget::Payer payer = payer_of(admission.payer, peer_);
    if (take_body_share(parser, payer)) {
      failed = co_await read_body(parser, payer);
    } else {
      error = bodies_too_large();
    }
  }
  if (failed == asio::error::no_memory) {
    error = bodies_too_large();
  } else if (failed)
    error = refusal(failed, limits_);
  if (error) {
    RequestOutline outline = parser.outline();
    co_await refuse(std::move(outline), std::move(*error));
  }
  if (failed || error) co_return false;
  request.body = parser.take_body();
  co_return true;
}

asio::awaitable<error_code> Session::read_header(RequestParser& parser) {
  set_deadline(sessions_->options.header_timeout, OnDeadline::kCancelRead);
  for (;;) {
    error_code error;
    buffer_.consume(parser.parse_header(unparsed(), error));
    if (error || parser.is_header_done()) co_return error;
    error = co_await read_more();
    if (error) co_return error;
  }
}

/// no_memory: it has grown, and there is no share for it.
asio::awaitable<error_code> Session::read_body(RequestParser& parser, const AnswerBudget::Payer& payer) {
  if (parser.is_done()) co_return error_code();
  if (buffer_.size() == 0 && parser.expects_continue()) {
    set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
    const error_code error = co_await transport_.write(kContinue, {});
    if (error) co_return error;
  }
  set_deadline(sessions_->options.body_timeout, OnDeadline::kCancelRead);
  for (;;) {
    error_code error;
    buffer_.consume(parser.parse_body(unparsed(), error));
    if (error || parser.is_done()) co_return error;
    if (!take_body_share(parser, payer)) co_return asio::error::no_memory;
    error = co_await read_more();
    if (error) co_return error;
  }
}

/// Memory for the body: for all of it, if its length is known, or for twice as much as there is. False if
/// there is none. All is given back when the request has been handled.
bool Session::take_body_share(const RequestParser& parser, const AnswerBudget::Payer& payer) {
  AnswerBudget* const budget = sessions_->options.bodies;
  if (budget == nullptr || parser.is_done()) return true;
  if (body_shares_.empty()) body_bytes_taken_ = kUncountedBytes;
  const auto announced = parser.announced_bytes();
  const std::size_t room = kReadBytes + parser.body_bytes();
  if (room <= body_bytes_taken_ && (!announced || *announced <= body_bytes_taken_)) return true;
  std::size_t wanted = announced ? static_cast<std::size_t>(*announced) : 2 * room;
  wanted = std::min(wanted, limits_.body_max_bytes);
  if (wanted <= body_bytes_taken_) return true;
  auto share = budget->take(payer, wanted - body_bytes_taken_);
  if (!share) return false;
  body_shares_.push_back(std::move(*share));
  body_bytes_taken_ = wanted;
  return true;
}

/// Waits for bytes and adds them to the buffer.
asio::awaitable<error_code> Session::read_more() {
  const std::size_t room = std::min(kReadBytes, buffer_.max_size() - buffer_.size());
  if (room == 0) co_return input_is_full();
  // The deadline may have passed while no read was there to cancel.
  if (timed_out_) co_return asio::error::timed_out;
  error_code error;
  const asio::mutable_buffer free = buffer_.prepare(room);
  const std::size_t got = co_await transport_.read(free, error);
  buffer_.commit(got);
  if (error && timed_out_) co_return asio::error::timed_out;
  co_return error;
}

std::string_view Session::unparsed() const {
  const auto bytes = buffer_.data();
  return {static_cast<const char*>(bytes.data()), bytes.size()};
}

RequestAdmission Session::admit(const Request& request) const {
  if (!sessions_->options.gate) return {};
  try {
    return sessions_->options.gate(request);
  } catch (const std::exception& exception) {
    log_failure(request, exception.what());
  } catch (...) {
    log_failure(request, "an unknown exception");
  }
  return {.refusal = internal_error(request)};
}

/// The handler's answer, unless it is one stream too many.
asio::awaitable<Response> Session::respond(const Request& request) {
  Response response = co_await call_handler(request);
  const unsigned streams_max = sessions_->options.streams_max;
  if (response.stream == nullptr || sessions_->streaming.size() < streams_max) co_return response;
  ++sessions_->stats.streams_refused;
  co_return fail(request, {.code = ErrorCode::kConnectionLimit,
                           .detail = "Too many streams are open; end one, or try again later.",
                           .limit = streams_max});
}

asio::awaitable<Response> Session::call_handler(const Request& request) {
  try {
    co_return co_await sessions_->handler(request);
  } catch (const std::exception& exception) {
    log_failure(request, exception.what());
  } catch (...) {
    log_failure(request, "an unknown exception");
  }
  co_return internal_error(request);
}

/// The server's own answer to a request that the handler has seen.
Response Session::fail(const Request& request, const Error& error) const {
  const std::string path = request.target.substr(0, request.target.find('?'));
  sessions_->failures.report(request.method, path, {.id = request.id, .client = source_name(peer_)}, error);
  return problem(error, request.id);
}

/// Memory for the answer until it is sent. If there is none, the answer becomes a refusal, unless its request
/// has changed something: then it is sent all the same.
std::optional<AnswerBudget::Share> Session::take_share(const Request& request, Response& response) const {
  AnswerBudget* const budget = sessions_->options.answers;
  const std::size_t bytes = bytes_of(response);
  if (budget == nullptr || bytes == 0) return std::nullopt;
  const AnswerBudget::Payer payer = payer_of(response.payer, peer_);
  if (!response.repeatable) return budget->take_anyway(payer, bytes);
  auto share = budget->take(payer, bytes);
  if (!share) response = fail(request, answer_too_large());
  return share;
}

/// False if the client did not take it.
asio::awaitable<bool> Session::answer(Response response, AnswerFraming framing) {
  const bool bodiless = !has_body(response, framing);
  const std::string head = head_of(response, framing, std::time(nullptr));
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  error_code error = co_await transport_.write(head, bodiless ? std::string_view() : whole_body(response));
  if (error || bodiless || response.pieces == nullptr) co_return !error;
  for (bool more = true; more && !error && transport_.is_open();) {
    const std::string piece = response.pieces();
    more = !piece.empty();
    const std::string bytes = framed_piece(piece, framing);
    error = co_await transport_.write(bytes, {});
  }
  co_return !error;
}

/// The connection's last answer. While it is sent, whatever the client sends is thrown away; once the client
/// has finished sending, it is taken to have gone.
asio::awaitable<void> Session::answer_with_stream(Response response, AnswerFraming framing) {
  move_to(sessions_->streaming);
  const std::string head = head_of(response, framing, std::time(nullptr));
  AnswerBudget::Payer payer = payer_of(response.payer, peer_);
  stream_ = std::move(response.stream);
  stream_->on_ready([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->wake();
  });
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  const error_code error = co_await transport_.write(head, {});
  if (error || stream_ == nullptr) co_return;
  clear_deadline();
  asio::co_spawn(
      transport_.executor(),
      [self = shared_from_this(), framing = std::move(framing), payer = std::move(payer)] {
        return self->send_stream(framing, payer);
      },
      [self = shared_from_this()](const std::exception_ptr& failure) {
        if (!failure) return;
        self->close();
        log_exception("a stream failed", failure);
      });
  co_await discard_rest();
  close();
}

/// Silence is counted from what was sent last, not from the last wake: a stream that is woken often and has
/// nothing to send neither sends more for it nor misses its heartbeats.
///
/// What its client has not read takes a share of the memory of unread answers. If there is none, the stream
/// is cut: the client can ask for the rest.
asio::awaitable<void> Session::send_stream(AnswerFraming framing, AnswerBudget::Payer payer) {
  AnswerBudget* const budget = sessions_->options.answers;
  auto heartbeat_at = steady_clock::now() + sessions_->options.stream_heartbeat;
  while (stream_ != nullptr && !sessions_->stopping) {
    woken_ = false;
    std::optional<std::string> piece = stream_->read();
    if (!piece && stream_->is_broken()) co_return cut(framing);
    if (!piece) break;
    error_code error;
    if (piece->empty()) {
      const auto now = steady_clock::now();
      if (now < heartbeat_at) {
        // If read() itself woke it, it continues after what else is ready.
        wake_timer_.expires_at(woken_ ? now : heartbeat_at);
        co_await wake_timer_.async_wait(into(error));
        continue;
      }
      heartbeat_at = now + sessions_->options.stream_heartbeat;
      piece = stream_->heartbeat();
      if (piece->empty()) continue;
    }
    const std::string bytes = framed_piece(*piece, framing);
    const bool counts = budget != nullptr && bytes.size() > kUncountedBytes;
    const auto share = counts ? budget->take(payer, bytes.size()) : std::optional<AnswerBudget::Share>();
    if (counts && !share) co_return close();
    set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
    error = co_await transport_.write(bytes, {});
    if (error) co_return close();
    clear_deadline();
    heartbeat_at = steady_clock::now() + sessions_->options.stream_heartbeat;
  }
  if (stream_ == nullptr) co_return;  // closed
  stream_.reset();
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  const std::string end = framed_piece({}, framing);
  error_code error;
  if (!end.empty()) error = co_await transport_.write(end, {});
  // The other coroutine continues to read until the client closes.
  if (error || !finish_sending()) close();
}

/// Ends an answer whose body is not whole. Where the connection's end is the body's, it is reset: a client of
/// HTTP/1.0 has no other sign.
void Session::cut(const AnswerFraming& framing) {
  if (framing.version < 11 && !framing.has_length) transport_.reset();
  close();
}

/// The connection's last answer.
asio::awaitable<void> Session::refuse(RequestOutline request, Error error) {
  sessions_->failures.report(request.method.empty() ? "-" : request.method, "-",
                             {.id = request.id, .client = source_name(peer_)}, error);
  Response response = problem(error, request.id);
  if (response.status < 500) ++sessions_->stats.requests_refused;
  AnswerFraming framing{
      .request_id = request.id, .version = request.version, .is_to_head = request.method == "HEAD"};
  co_await answer(std::move(response), std::move(framing));
}

/// Nothing more is sent; the client gets a short time to close. False if it has closed already.
bool Session::finish_sending() {
  if (!transport_.finish_writing()) return false;
  if (list_ != &sessions_->turned_away) move_to(sessions_->idle);
  set_deadline(kLingerTimeout, OnDeadline::kClose);
  return true;
}

/// Lets the client read the last answer: closing while bytes of it are unread would reset the connection.
asio::awaitable<void> Session::linger() {
  if (finish_sending()) co_await discard_rest();
}

asio::awaitable<void> Session::discard_rest() {
  error_code error;
  for (std::size_t discarded = 0; !error && discarded < kLingerBytes;) {
    discarded += buffer_.size();
    buffer_.consume(buffer_.size());
    error = co_await read_more();
  }
}

}  // namespace portway
