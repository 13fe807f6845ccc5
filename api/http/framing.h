// How an answer is written on the wire (RFC 9110, RFC 9112): pure functions, without a socket.
#pragma once

#include <ctime>
#include <string>
#include <string_view>

#include "api/http/message.h"

namespace portway {

/// What the request decides about the form of its answer.
struct AnswerFraming {
  std::string request_id;
  unsigned version = 11;    // of HTTP: 10 or 11
  bool is_to_head = false;  // the method is HEAD: no body is sent
  bool keep_alive = false;  // another request may follow on the connection
  bool has_length = false;  // Response::stream_bytes is known
};

/// Whether only the connection's end can end this answer. Then no other request can follow.
bool ends_with_connection(const Response& response, const AnswerFraming& framing);

/// The answer up to its body, made at `now`.
std::string head_of(const Response& response, const AnswerFraming& framing, std::time_t now);

/// False for HEAD and 204.
bool has_body(const Response& response, const AnswerFraming& framing);

/// The body of an answer that is neither made in pieces nor a stream.
std::string_view whole_body(const Response& response);

/// A piece of a body whose length is not known before its end (RFC 9112, 7.1). Empty: what ends the body.
std::string framed_piece(std::string_view piece, const AnswerFraming& framing);

/// 100 Continue: the client may send the request's body.
inline constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

}  // namespace portway
