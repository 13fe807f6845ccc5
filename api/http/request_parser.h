// Reads one HTTP/1.1 request from a connection's bytes, in whatever pieces they come (RFC 9110, RFC 9112).
// Without a socket; nothing here waits.
//
// It wraps Beast's parser, whose limit on the header covers only what it has not parsed yet: a client that
// cuts its segments just after a field's end would never meet it. So the header's bytes are counted here.
#pragma once

#include <boost/system/error_code.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "api/http/message.h"
#include "base/error.h"

namespace portway {

struct RequestLimits {
  std::size_t header_max_bytes;  // request line and header fields together
  std::size_t body_max_bytes;
};

/// A request as far as it was understood: enough to refuse it.
struct RequestOutline {
  std::string id;         // the answer's X-Request-Id
  std::string method;     // empty: not understood
  unsigned version = 11;  // of HTTP: 10 or 11
};

/// Of a request that was not read: with a new id.
RequestOutline unread_request();

class RequestParser {
 public:
  explicit RequestParser(const RequestLimits& limits);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  /// Parses what it can at the start of `bytes` and returns how many it has used. Call it again with the rest
  /// and what follows, first for the header until is_header_done(), then for the body until is_done(). An
  /// error is final; refusal() turns it into an answer.
  std::size_t parse_header(std::string_view bytes, boost::system::error_code& error);
  std::size_t parse_body(std::string_view bytes, boost::system::error_code& error);
  bool is_header_done() const;
  bool is_done() const;

  /// 10 or 11.
  unsigned version() const;
  RequestOutline outline() const;

  // After the header.

  /// What the parser accepts and two readers could still understand differently (RFC 9112, 3.2, 6.1 and 6.3).
  std::optional<Error> ambiguity() const;
  /// Everything but the body and the peer. Call it before the body is parsed: a trailer's fields are not the
  /// header's (RFC 9110, 6.5.1).
  Request request() const;
  /// The body's length, if the header says it.
  std::optional<std::uint64_t> announced_bytes() const;
  /// The client waits for 100 Continue before it sends the body.
  bool expects_continue() const;

  /// Of the body, so far.
  std::size_t body_bytes() const;

  // After the body.

  /// The client wants to send another request on this connection.
  bool keep_alive() const;
  std::string take_body();

 private:
  struct Parser;
  const std::unique_ptr<Parser> parser_;
  const std::size_t header_max_bytes_;
  std::size_t header_bytes_ = 0;  // parsed so far
};

/// How many bytes of empty lines `bytes` starts with; before a request they are ignored (RFC 9112, 2.2).
std::size_t empty_lines(std::string_view bytes);

/// The answer to a request that could not be read: an error of RequestParser, eof, timed_out, or
/// input_is_full(). Nothing if there is nobody to answer.
std::optional<Error> refusal(const boost::system::error_code& error, const RequestLimits& limits);

/// The parser does not use what has been read, and the buffer has no room for more.
boost::system::error_code input_is_full();

/// 400, with what to do about it.
Error malformed(std::string detail, std::string field = {});

}  // namespace portway
