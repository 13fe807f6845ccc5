// What an HTTP client asks, of whom, what it is answered, and what can go wrong. Plain values.
#pragma once

#include <boost/system/result.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace portway {

enum class HttpErrorKind : std::uint8_t {
  kUnreachable,  // no connection, or it broke
  kTimeout,      // the deadline has passed
  kBadAnswer,    // what came is not HTTP
  kTooLarge,     // an answer, or a line of one, of more bytes than the caller takes
  kClosed,       // close() was called meanwhile
};

struct HttpError {
  HttpErrorKind kind = HttpErrorKind::kUnreachable;
  std::string detail = {};  // with the endpoint's URL and, where there is one, the remedy
  // The server has not got all of the request, or refused the client before it: it was not carried out.
  bool not_sent = false;
};

template <class T>
using HttpResult = boost::system::result<T, HttpError>;

/// HttpResult::value() calls it if nobody checked for an error first: a mistake of ours.
[[noreturn]] void throw_exception_from_error(const HttpError& error, const boost::source_location& where);

/// One URL, taken apart.
struct HttpEndpoint {
  std::string url;   // without a path, for messages
  bool tls = false;  // https
  std::string host;  // a name, or an address without brackets
  std::string port;
  std::string authority;  // for the header Host
};

/// How URLs of one kind are written.
struct HttpUrlRules {
  std::string_view example;       // "https://node-1.example:8443"
  std::string default_port = {};  // empty: that of the scheme
  std::string user_remedy = {};   // what to do about a user or a password in the URL
};

/// "http://198.18.0.1:2379", "https://node-1.example/". The error's detail says what is wrong, without the
/// URL, in which a password may be: "has an unknown scheme; begin it with http:// or https://".
Result<HttpEndpoint> parse_http_endpoint(const std::string& url, const HttpUrlRules& rules);

using HttpFields = std::vector<std::pair<std::string, std::string>>;

/// Of the first field of that name, in whatever case; empty: there is none.
std::string_view field_of(const HttpFields& fields, std::string_view name);

/// How a client checks servers, and proves who it is. The files are read for each connection, so that renewed
/// ones are used.
struct HttpTls {
  std::string ca = {};           // PEM file: the authorities of the servers; empty: those of the system
  std::string certificate = {};  // PEM file: the client's own; empty: none
  std::string private_key = {};  // PEM file
  // For errors: what the configuration keys tls_ca, tls_certificate and tls_private_key begin with, and what
  // to do about a certificate that is not trusted.
  std::string key_prefix = {};
  std::string untrusted_remedy = {};  // the server's: "see fleet.tls_ca"
  std::string refused_remedy = {};    // the client's: "give it one that ... has signed"
};

struct HttpRequest {
  std::string method = "GET";
  std::string target = "/";  // path and query, percent-encoded
  // All but Host and those of the framing: Connection, Content-Length, Transfer-Encoding.
  HttpFields fields = {};
  std::string body = {};
  bool stays_open = false;  // the body is sent in chunks, and this is the first one
};

struct HttpHead {
  unsigned status = 0;
  HttpFields fields = {};                              // as they came: names as sent, some more than once
  std::optional<std::uint64_t> length = std::nullopt;  // of the body, by Content-Length

  std::string_view field(std::string_view name) const { return field_of(fields, name); }
};

struct HttpAnswer {
  HttpHead head;
  std::string body;
};

}  // namespace portway
