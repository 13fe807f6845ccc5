// Commands that are one request: from a row of the table and its arguments to the API's answer.
#pragma once

#include <boost/json/object.hpp>

#include "client/command.h"
#include "client/http.h"

namespace portway {

/// A server that is known otherwise than by --server.
struct KnownServer {
  std::string url;
  std::string certificate_file = {};  // PEM: the certificate that it has, whatever name is in it; "": as --ca
};

/// A client for the server, key and certificates that were given; warns on `console.err` of a key that others
/// can read or that would cross a network in clear text.
Outcome<HttpClient> make_client(const Invocation& invocation, Console& console);
/// The same for this server.
Outcome<HttpClient> make_client(const Invocation& invocation, Console& console, const KnownServer& known);

/// The command's request. `cursor` continues a list.
HttpRequest make_request(const Command& command, const Arguments& arguments, std::string_view cursor = {});

/// The JSON object that answers the request; an empty one for an answer without a body. Every other answer is
/// a failure.
Outcome<boost::json::object> ask(const HttpClient& client, const HttpRequest& request);

/// Sends the command's request; a list's pages are put together. An empty object for an answer without a
/// body.
Outcome<boost::json::object> fetch(const HttpClient& client, const Command& command,
                                   const Arguments& arguments);

/// What an answer that is no success means: the exit code from its status, the words from its problem
/// document (RFC 9457).
Failure refusal(const HttpAnswer& answer, const HttpOptions& options);

/// Fetches and shows.
Outcome<void> run_request(const Invocation& invocation, Console& console);

}  // namespace portway
