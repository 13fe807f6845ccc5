// From a request to its answer: finds the route, authenticates the caller, checks the query, calls the
// handler and makes a problem document of an error.
//
// Belongs to the control thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/url/url_view.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "api/fair_use.h"
#include "api/http/failure_log.h"
#include "api/http/message.h"
#include "api/http/server_options.h"
#include "api/router.h"
#include "config/config.h"
#include "control/api_stats.h"
#include "control/audit_log.h"
#include "control/auth.h"

namespace portway {

/// What a dispatcher asks and tells; all of it outlives the dispatcher.
struct DispatchContext {
  KeyRing& keys;
  const Config::Api& config;  // may change
  ApiStats& stats;
  std::function<void(const AuditEntry&)> audit = nullptr;  // null: nobody wants to know
  /// Whether there may be keys that `keys` does not have yet: one that is not known is then no wrong one.
  /// Null: there are none.
  std::function<bool()> keys_pending = nullptr;
};

class Dispatcher {
 public:
  /// `clock` is for tests.
  Dispatcher(DispatchContext context, std::vector<Route> routes,
             std::function<Buckets::Time()> clock = std::chrono::steady_clock::now);

  /// Throws only if memory runs out. `request` outlives it. A change waits for the disk; everything else is
  /// answered at once.
  boost::asio::awaitable<Response> handle(const Request& request);
  /// Asked before the body of a request is read: refuses what its header is enough to refuse, and has
  /// handle() know the caller.
  RequestAdmission admit(const Request& request);
  /// The same for the listener of the metrics, which requires no key and serves GET /metrics and GET /healthz
  /// only.
  boost::asio::awaitable<Response> handle_open_metrics(const Request& request);

  const std::vector<Route>& routes() const { return router_.routes(); }

 private:
  boost::asio::awaitable<Response> answer(const Request& request, std::string_view& pattern);
  static Response unrouted(const Request& request, const Router::Match& match);
  Response fail(const Request& request, std::string_view pattern, const Error& error,
                const std::optional<Principal>& caller = std::nullopt);
  void audit(const Request& request, const Route& route, const Principal& caller,
             const Result<Response>& response) const;
  Result<Principal> authenticate(const Request& request);
  Result<void> let_in(const Request& request, const Route& route, std::optional<Principal>& caller);
  boost::asio::awaitable<Result<Response>> serve(const Request& request, const boost::urls::url_view& url,
                                                 Router::Match& match, std::optional<Principal>& caller);

  const DispatchContext context_;
  FailureLog failures_;
  FairUse fair_use_;
  const Router router_;
};

}  // namespace portway
