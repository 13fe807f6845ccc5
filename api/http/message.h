// A request and its answer as the handlers see them: HTTP without its transport.
#pragma once

#include <any>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/endpoint.h"

namespace portway {

/// The process at the other end of a Unix socket (SO_PEERCRED, unix(7)).
struct PeerCredentials {
  std::int32_t pid = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

struct Request {
  std::string id;      // the answer's X-Request-Id: the client's own, or made by the server
  std::string method;  // "GET"
  std::string target;  // as sent: path and query, still percent-encoded
  std::map<std::string, std::string, std::less<>> headers;  // by lower-case name; the last one wins
  std::string body;
  IpAddress peer;                                                  // unspecified for a Unix socket
  std::optional<PeerCredentials> peer_credentials = std::nullopt;  // of a Unix socket only
  // TlsConnection::client_names(), shared by all requests of a connection; null: none.
  std::shared_ptr<const std::vector<std::string>> certificate_names = nullptr;
  std::size_t listener = 0;  // ServerOptions::listener
  std::any pass = {};        // RequestAdmission::pass; empty for a request without a body

  /// It changes nothing, and can be repeated.
  bool is_read() const { return method == "GET" || method == "HEAD"; }

  /// Empty if there is none; `name` in lower case.
  std::string_view header(std::string_view name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string_view() : std::string_view(found->second);
  }
};

/// A body that comes with time, mostly without a known end: sent piece by piece until it ends or the client
/// has gone.
class BodyStream {
 public:
  BodyStream() = default;
  virtual ~BodyStream() = default;
  BodyStream(const BodyStream&) = delete;
  BodyStream& operator=(const BodyStream&) = delete;

  /// Called once by the server, before the first read(). Call `wake` on the server's thread whenever read()
  /// may have something, as long as the stream lives; it does nothing once the client has gone.
  virtual void on_ready(std::function<void()> wake) = 0;

  /// What there is to send now. Empty: nothing yet; it is called again after the next wake. nullopt: the end.
  virtual std::optional<std::string> read() = 0;

  /// After the end: something of the body is missing. The server then cuts the connection, so that the client
  /// does not take it for whole.
  virtual bool is_broken() const { return false; }

  /// Keeps the connection alive: the server sends it after each ServerOptions::stream_heartbeat in which
  /// nothing else was sent. Empty: this kind of body has none.
  virtual std::string heartbeat() { return {}; }

  /// What it is about may have changed.
  virtual void on_change() {}

  /// Ends it early, because what it is about no longer exists: what there is still to send. Nothing of it is
  /// called afterwards.
  virtual std::string finish_early() { return {}; }
};

/// The next piece of a body that is made while it is read; empty: the end.
using NextPiece = std::function<std::string()>;

struct Response {
  unsigned status = 200;
  std::string body;  // not sent for HEAD and 204; its length is
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  // At most one of these is sent in place of `body`.
  std::string_view lasting_body = {};  // of static storage duration
  NextPiece pieces = nullptr;          // about 16 KiB each
  std::shared_ptr<BodyStream> stream = nullptr;
  // Of the stream. If it ends before, the connection ends, too: the client sees that something is missing.
  std::optional<std::uint64_t> stream_bytes = std::nullopt;
  // Whose share of the budget it takes, as a name that no two callers share; empty: the client's address.
  std::string payer = {};
  // The request changed nothing: its answer may be refused if memory is short (api/http/answer_budget.h).
  bool repeatable = true;
};

}  // namespace portway
