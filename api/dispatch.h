// From a request to its answer: finds the route, authenticates the caller, checks the query, calls the
// handler and makes a problem document of an error.
//
// Belongs to the control thread.
#pragma once

#include <boost/url/url_view.hpp>
#include <string_view>
#include <vector>

#include "api/http/failure_log.h"
#include "api/http/message.h"
#include "api/resources.h"
#include "api/router.h"

namespace portway {

class Dispatcher {
 public:
  explicit Dispatcher(ApiContext api);

  /// Throws only if memory runs out.
  Response handle(const Request& request);
  /// The same for the listener of the metrics, which requires no key and serves GET /metrics and GET /healthz
  /// only.
  Response handle_open_metrics(const Request& request);

  const std::vector<Route>& routes() const { return router_.routes(); }

 private:
  Response answer(const Request& request, std::string_view& pattern);
  Response fail(const Request& request, std::string_view pattern, const Error& error);
  Result<Principal> authenticate(const Request& request);
  Result<Response> serve(const Request& request, const boost::urls::url_view& url, Router::Match& match);

  const ApiContext api_;
  FailureLog failures_;
  const Router router_;
};

}  // namespace portway
