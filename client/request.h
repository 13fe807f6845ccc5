// Commands that send one request: from a row of the table and its arguments to the API's answer.
#pragma once

#include <boost/json/object.hpp>

#include "client/command.h"
#include "client/http.h"

namespace portway {

/// A server whose address does not come from --server.
struct KnownServer {
  std::string url;
  std::string certificate_file = {};  // PEM: its certificate, whose name is not checked; empty: as --ca
};

/// A client for the given server, key and certificates, or those of the context in use. Warns on
/// `console.err` about a key that others can read or that would be sent over a network in clear text.
Outcome<HttpClient> make_client(const Invocation& invocation, Console& console);
/// The same for the server `known`, to which a context does not apply.
Outcome<HttpClient> make_client(const Invocation& invocation, Console& console, const KnownServer& known);

/// The command's request. `cursor` continues a list.
HttpRequest make_request(const Command& command, const Arguments& arguments, std::string_view cursor = {});

/// "/nodes/ID" if the command is for one of a gateway's nodes (Place::kNode), which the path then follows.
std::string at_node(const Command& command, const Arguments& arguments);

/// Says once that a gateway answers from what it knew before etcd went away.
class StaleNote {
 public:
  explicit StaleNote(Console& console) : console_(console) {}
  void look_at(const boost::json::object& answer);

 private:
  Console& console_;
  bool said_ = false;
};

/// Sends the request and returns the JSON object of the answer, with the answer's ETag as "etag" if it has
/// one; an empty object for a success without a body. Every other answer is a failure.
Outcome<boost::json::object> ask(const HttpClient& client, const HttpRequest& request);

/// Sends the command's request and joins the pages of a list. An empty object for an answer without a body.
Outcome<boost::json::object> fetch(const HttpClient& client, const Command& command,
                                   const Arguments& arguments);

/// The failure for an answer that is not the one wanted: the exit code comes from its status, the message
/// from its problem document (RFC 9457).
Failure refusal(const HttpAnswer& answer, const HttpOptions& options);

/// The failure of a command in words of the command line, if its server is a node and it is for a gateway, or
/// the other way round.
Failure explained(const HttpClient& client, const Command& command, const Arguments& arguments,
                  Failure failure);

/// Fetches the answer and shows it.
Outcome<void> run_request(const Invocation& invocation, Console& console);

}  // namespace portway
