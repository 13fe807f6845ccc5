// The only file with Beast's parser: it is expensive to compile.
#include "api/http/request_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <utility>

#include "base/forward.h"

namespace portway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using Head = http::request_parser<http::string_body>::value_type;

constexpr std::size_t kRequestIdMax = 64;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

char to_lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool is_safe_in_a_log(char c) {
  const char lower = to_lower(c);
  return (lower >= 'a' && lower <= 'z') || is_digit(c) || c == '.' || c == '_' || c == '-';
}

/// The client's own id if it can go into a log unchanged, else a new one.
std::string request_id(const Head& head) {
  const auto given = head["X-Request-Id"];
  const bool usable =
      !given.empty() && given.size() <= kRequestIdMax && std::ranges::all_of(given, is_safe_in_a_log);
  return usable ? std::string(given) : to_string(make_uuid());
}

}  // namespace

struct RequestParser::Parser : http::request_parser<http::string_body> {};

RequestParser::RequestParser(const RequestLimits& limits)
    : parser_(std::make_unique<Parser>()), header_max_bytes_(limits.header_max_bytes) {
  parser_->header_limit(static_cast<std::uint32_t>(limits.header_max_bytes));
  parser_->body_limit(limits.body_max_bytes);
}

RequestParser::~RequestParser() = default;

std::size_t RequestParser::parse_header(std::string_view bytes, error_code& error) {
  error = {};
  const std::size_t used = parser_->put(asio::buffer(bytes), error);
  header_bytes_ += used;
  if (error == http::error::need_more) error = {};
  if (!error && header_bytes_ > header_max_bytes_) error = http::error::header_limit;
  return used;
}

std::size_t RequestParser::parse_body(std::string_view bytes, error_code& error) {
  error = {};
  if (bytes.empty()) return 0;
  parser_->eager(true);
  const std::size_t used = parser_->put(asio::buffer(bytes), error);
  if (error == http::error::need_more) error = {};
  return used;
}

bool RequestParser::is_header_done() const {
  return parser_->is_header_done();
}

bool RequestParser::is_done() const {
  return parser_->is_done();
}

unsigned RequestParser::version() const {
  return parser_->get().version();
}

RequestOutline RequestParser::outline() const {
  const Head& head = parser_->get();
  return {.id = request_id(head), .method = std::string(head.method_string()), .version = head.version()};
}

RequestOutline unread_request() {
  return {.id = to_string(make_uuid()), .method = {}};
}

std::optional<Error> RequestParser::ambiguity() const {
  const Head& head = parser_->get();
  for (const auto field : {http::field::host, http::field::content_length, http::field::transfer_encoding,
                           http::field::authorization}) {
    const std::string name(http::to_string(field));
    if (head.count(field) > 1) return malformed(fmt::format("Send {} once.", name), name);
  }
  // Like Authorization it says who calls.
  if (head.count("Portway-Caller") > 1) return malformed("Send Portway-Caller once.", "Portway-Caller");
  if (head.version() == 11 && head.count(http::field::host) == 0) {
    return malformed("An HTTP/1.1 request needs a Host header.", "Host");
  }
  if (!std::ranges::all_of(head[http::field::content_length], is_digit)) {
    return malformed("Content-Length must be one decimal number.", "Content-Length");
  }
  if (head.count(http::field::transfer_encoding) == 0) return std::nullopt;
  if (head.version() < 11 || !beast::iequals(head[http::field::transfer_encoding], "chunked")) {
    return malformed("The only supported transfer coding is chunked, in HTTP/1.1.", "Transfer-Encoding");
  }
  return std::nullopt;
}

Request RequestParser::request() const {
  const Head& head = parser_->get();
  Request request;
  request.id = request_id(head);
  request.method = std::string(head.method_string());
  request.target = std::string(head.target());
  for (const auto& field : head) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(), to_lower);
    request.headers[std::move(name)] = std::string(field.value());
  }
  return request;
}

bool RequestParser::expects_continue() const {
  const Head& head = parser_->get();
  return head.version() == 11 && beast::iequals(head[http::field::expect], "100-continue");
}

std::optional<std::uint64_t> RequestParser::announced_bytes() const {
  const auto length = parser_->content_length();
  return length ? std::optional<std::uint64_t>(*length) : std::nullopt;
}

std::size_t RequestParser::body_bytes() const {
  return parser_->get().body().size();
}

bool RequestParser::keep_alive() const {
  return parser_->get().keep_alive();
}

std::string RequestParser::take_body() {
  return std::move(parser_->get().body());
}

std::size_t empty_lines(std::string_view bytes) {
  const std::size_t first = bytes.find_first_not_of("\r\n");
  return first == std::string_view::npos ? bytes.size() : first;
}

std::optional<Error> refusal(const error_code& error, const RequestLimits& limits) {
  if (error == asio::error::timed_out) {
    return Error{.code = ErrorCode::kRequestTimeout,
                 .detail = "The request was not complete in time; send it without pauses."};
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Error{
        .code = ErrorCode::kHeaderTooLarge,
        .detail = fmt::format("The request's header is larger than {} bytes.", limits.header_max_bytes),
        .limit = static_cast<std::int64_t>(limits.header_max_bytes)};
  }
  if (error == http::error::body_limit) {
    return Error{.code = ErrorCode::kBodyTooLarge,
                 .detail = fmt::format("The request's body is larger than {} bytes.", limits.body_max_bytes),
                 .limit = static_cast<std::int64_t>(limits.body_max_bytes)};
  }
  if (error == asio::error::eof) return malformed("The connection ended in the middle of a request.");
  if (error.category() != http::make_error_code(http::error::bad_method).category()) return std::nullopt;
  return malformed(fmt::format("This is not an HTTP/1.1 request: {}.", error.message()));
}

error_code input_is_full() {
  return http::error::buffer_overflow;
}

Error malformed(std::string detail, std::string field) {
  return {.code = ErrorCode::kMalformedRequest, .detail = std::move(detail), .field = std::move(field)};
}

}  // namespace portway
