// A request and its answer as the handlers see them: HTTP without its transport.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/endpoint.h"

namespace portway {

struct Request {
  std::string id;      // made by the server for every request; the answer's X-Request-Id
  std::string method;  // "GET"
  std::string target;  // as sent: path and query, still percent-encoded
  std::map<std::string, std::string, std::less<>> headers;  // by lower-case name; the last one wins
  std::string body;
  IpAddress peer;  // unspecified for a Unix socket

  /// Empty when there is none; `name` in lower case.
  std::string_view header(std::string_view name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string_view() : std::string_view(found->second);
  }
};

/// A body that goes on after its head: sent in chunks until it ends or the client has gone.
class BodyStream {
 public:
  virtual ~BodyStream() = default;
  /// What there is to send now; empty: nothing yet; nullopt: the end. Also called when nothing was sent for
  /// 15 seconds, so that it can yield a comment.
  virtual std::optional<std::string> read() = 0;
  /// Called once, before the first read(): `wake` is called on the server's thread whenever read() may have
  /// something; it only queues work.
  virtual void on_ready(std::function<void()> wake) = 0;
};

struct Response {
  unsigned status = 200;
  std::string body;  // not sent for HEAD and 204; its length is
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::shared_ptr<BodyStream> stream = nullptr;  // in place of `body`
};

}  // namespace portway
