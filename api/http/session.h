// One connection of the server: a coroutine that reads a request, calls the handler, writes the answer, and
// begins again.
//
// A streaming session, whose answer has no end, has a second coroutine that sends, while the first one reads,
// to notice at once that the client has gone.
//
// What a client has not read yet is in three places: an answer's body or its next piece, which has a share of
// the budget (api/http/answer_budget.h) until it is sent; what the kernel holds unsent, which
// TCP_NOTSENT_LOWAT bounds; and what is in flight, at most the client's own receive buffer.
//
// Runs on the server's thread. Its coroutines keep it alive.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/answer_budget.h"
#include "api/http/framing.h"
#include "api/http/message.h"
#include "api/http/peer.h"
#include "api/http/request_parser.h"
#include "api/http/sessions.h"
#include "api/http/transport.h"
#include "base/error.h"

namespace portway {

class Session : public std::enable_shared_from_this<Session> {
 public:
  /// Joins `list`, one of `sessions`.
  Session(std::shared_ptr<Sessions> sessions, std::list<Session*>& list, SessionTransport transport,
          const Peer& peer);
  ~Session() { close(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Serves requests until the connection ends.
  void serve();
  /// Answers that there are too many clients, and closes.
  void turn_away();

  /// By ServerOptions::refuses, as it is now.
  bool is_refused() const { return sessions_->refuses(peer_); }

  const SessionSource& source() const { return source_->second; }

  /// Ends what waits on the socket with an error; leaves the list.
  void close();

  /// The stream may have something to send, or must end because the server stops.
  void wake();

 private:
  template <class Value>
  using Awaitable = boost::asio::awaitable<Value>;
  using error_code = boost::system::error_code;
  enum class OnDeadline : std::uint8_t { kCancelRead, kClose };

  void spawn(Awaitable<void> (Session::*run)());
  void move_to(std::list<Session*>& list);
  void enter(std::list<Session*>& list);
  void leave();
  void set_deadline(std::chrono::milliseconds limit, OnDeadline on_deadline);
  void clear_deadline();

  Awaitable<void> serve_all();
  Awaitable<void> refuse_connection();
  Awaitable<bool> handshake();
  Awaitable<bool> wait_for_request();
  Awaitable<bool> serve_one();

  Awaitable<bool> read_request(RequestParser& parser, Request& request, std::optional<Response>& early);
  Awaitable<error_code> read_header(RequestParser& parser);
  Awaitable<error_code> read_body(RequestParser& parser, const AnswerBudget::Payer& payer);
  Awaitable<error_code> read_more();
  std::string_view unparsed() const;

  RequestAdmission admit(const Request& request) const;
  bool take_body_share(const RequestParser& parser, const AnswerBudget::Payer& payer);
  Awaitable<Response> respond(const Request& request);
  Awaitable<Response> call_handler(const Request& request);
  Response fail(const Request& request, const Error& error) const;
  std::optional<AnswerBudget::Share> take_share(const Request& request, Response& response) const;

  Awaitable<bool> answer(Response response, AnswerFraming framing);
  Awaitable<void> answer_with_stream(Response response, AnswerFraming framing);
  Awaitable<void> send_stream(AnswerFraming framing, AnswerBudget::Payer payer);
  void cut(const AnswerFraming& framing);
  Awaitable<void> refuse(RequestOutline request, Error error);

  bool finish_sending();
  Awaitable<void> linger();
  Awaitable<void> discard_rest();

  const std::shared_ptr<Sessions> sessions_;
  std::list<Session*>* list_;  // null once closed
  std::list<Session*>::iterator place_;
  SessionTransport transport_;
  const Peer peer_;
  std::shared_ptr<const std::vector<std::string>> certificate_names_;  // of the client; null: none
  const SessionSources::iterator source_;
  const RequestLimits limits_;
  std::vector<AnswerBudget::Share> body_shares_;  // of the request under way
  std::size_t body_bytes_taken_ = 0;              // by these
  boost::beast::flat_buffer buffer_;              // read and not parsed yet

  boost::asio::steady_timer timer_;  // the deadline of what it does now
  bool timed_out_ = false;

  std::shared_ptr<BodyStream> stream_;    // while streaming
  boost::asio::steady_timer wake_timer_;  // until the stream's next heartbeat; cancelled by wake()
  bool woken_ = false;
};

}  // namespace portway
