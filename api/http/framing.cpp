#include "api/http/framing.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/status.hpp>
#include <iterator>

namespace portway {
namespace {

namespace http = boost::beast::http;

bool is_http_11(const AnswerFraming& framing) {
  return framing.version == 11;
}

/// The length of its body is not known when its head is written.
bool is_open_ended(const Response& response) {
  return response.stream != nullptr || response.pieces != nullptr;
}

/// One line, whatever the value holds: a line break in it would start another field, or the body.
void append_field(std::string& head, std::string_view name, std::string_view value) {
  head += name;
  head += ": ";
  std::ranges::replace_copy_if(
      value, std::back_inserter(head), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  head += "\r\n";
}

}  // namespace

bool ends_with_connection(const Response& response, const AnswerFraming& framing) {
  if (response.stream != nullptr && !framing.is_to_head) return true;
  return response.pieces != nullptr && !is_http_11(framing);
}

std::string head_of(const Response& response, const AnswerFraming& framing, std::time_t now) {
  std::string head =
      fmt::format("HTTP/1.{} {} {}\r\n", framing.version % 10, response.status,
                  std::string_view(http::obsolete_reason(http::int_to_status(response.status))));
  append_field(head, "Server", "portway");
  append_field(head, "Date", fmt::format("{:%a, %d %b %Y %H:%M:%S} GMT", fmt::gmtime(now)));
  append_field(head, "X-Content-Type-Options", "nosniff");
  append_field(head, "X-Request-Id", framing.request_id);
  bool has_cache_control = false;
  for (const auto& [name, value] : response.headers) {
    append_field(head, name, value);
    has_cache_control = has_cache_control || boost::beast::iequals(name, "Cache-Control");
  }
  if (!has_cache_control) append_field(head, "Cache-Control", "no-store");
  if (response.status != 204) {
    append_field(head, "Content-Type", response.content_type);
    if (!is_open_ended(response)) {
      append_field(head, "Content-Length", std::to_string(whole_body(response).size()));
    } else if (response.stream_bytes) {
      append_field(head, "Content-Length", std::to_string(*response.stream_bytes));
    } else if (is_http_11(framing)) {
      append_field(head, "Transfer-Encoding", "chunked");
    }
  }
  if (is_http_11(framing) && !framing.keep_alive) append_field(head, "Connection", "close");
  if (!is_http_11(framing) && framing.keep_alive) append_field(head, "Connection", "keep-alive");
  head += "\r\n";
  return head;
}

bool has_body(const Response& response, const AnswerFraming& framing) {
  return response.status != 204 && !framing.is_to_head;
}

std::string_view whole_body(const Response& response) {
  return response.lasting_body.empty() ? std::string_view(response.body) : response.lasting_body;
}

std::string framed_piece(std::string_view piece, const AnswerFraming& framing) {
  if (!is_http_11(framing) || framing.has_length) return std::string(piece);
  return fmt::format("{:x}\r\n{}\r\n", piece.size(), piece);
}

}  // namespace portway
