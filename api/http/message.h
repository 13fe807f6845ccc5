// A request and its answer as the handlers see them: HTTP without its transport.
#pragma once

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

/// Who has connected to a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7)).
struct PeerCredentials {
  std::int32_t pid = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

struct Request {
  std::string id;      // made by the server for every request; the answer's X-Request-Id
  std::string method;  // "GET"
  std::string target;  // as sent: path and query, still percent-encoded
  std::map<std::string, std::string, std::less<>> headers;  // by lower-case name; the last one wins
  std::string body;
  IpAddress peer;                                                  // unspecified for a Unix socket
  std::optional<PeerCredentials> peer_credentials = std::nullopt;  // of a Unix socket only

  /// Empty when there is none; `name` in lower case.
  std::string_view header(std::string_view name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string_view() : std::string_view(found->second);
  }
};

/// A body that goes on after its head: sent piece by piece until it ends or the client has gone.
class BodyStream {
 public:
  BodyStream() = default;
  virtual ~BodyStream() = default;
  BodyStream(const BodyStream&) = delete;
  BodyStream& operator=(const BodyStream&) = delete;

  /// Called once by the server, before the first read(). `wake` may be called, on the server's thread,
  /// whenever read() may have something, as long as the stream lives; it does nothing once the client has
  /// gone.
  virtual void on_ready(std::function<void()> wake) = 0;

  /// What there is to send now; empty: nothing yet, and it is called again after the next wake; nullopt: the
  /// end.
  virtual std::optional<std::string> read() = 0;

  /// What keeps the connection alive: the server, which alone knows when something was last sent, asks for it
  /// and sends it after each ServerOptions::stream_heartbeat in which nothing was. Empty: this kind of body
  /// has no such thing.
  virtual std::string heartbeat() { return {}; }

  /// It is ended early, because what it is about is no more (control/streams.h): what there is still to send.
  /// Nothing of it is called afterwards.
  virtual std::string finish_early() { return {}; }
};

/// The next piece of a body that is made while it is read; empty: that was all.
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
  // Whose memory it takes, as a name that two callers do not share; empty: the client's, by its address.
  std::string payer = {};
  // Nothing was changed for it: it may be refused for want of memory (api/http/answer_budget.h).
  bool repeatable = true;
};

}  // namespace portway
