#include "client/version.h"

#include <boost/json/object.hpp>
#include <ostream>

#include "client/output.h"
#include "client/request.h"

namespace portway {

Outcome<void> run_version(const Invocation& invocation, Console& console) {
  boost::json::object versions{{"client", PORTWAY_VERSION}};
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const auto server = ask(*client, {.method = "GET", .target = "/version"});
  if (server) versions["server"] = text_of(*server, "version");
  if (invocation.wants_data()) {
    console.out << as_data(invocation.format(), versions);
  } else {
    console.out << "client: " << PORTWAY_VERSION
                << "\nserver: " << (server ? text_of(versions, "server") : "no answer") << "\n";
  }
  if (!server) return server.error();
  return {};
}

}  // namespace portway
