#include "client/upgrade.h"

#include <boost/json/object.hpp>
#include <chrono>
#include <ostream>
#include <string>
#include <thread>

#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kUpgradeMax(60);
constexpr std::chrono::milliseconds kAskAgainAfter(100);
constexpr std::string_view kPid = "process.pid";

}  // namespace

Outcome<void> run_upgrade(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const auto started = fetch(*client, *invocation.command, invocation.arguments);
  if (!started) return started.error();
  const auto deadline = steady_clock::now() + kUpgradeMax;
  while (steady_clock::now() < deadline) {
    std::this_thread::sleep_for(kAskAgainAfter);  // the old process says no more once the new one serves
    const auto now =
        ask(*client,
            {.method = "GET", .target = at_node(*invocation.command, invocation.arguments) + "/v1/node"});
    if (!now) {
      // Its connections end with the old process; the new one takes over the listener. A gateway says 503.
      if (now.error().exit == Exit::kUnreachable || now.error().exit == Exit::kBusy) continue;
      return now.error();
    }
    if (text_of(*now, kPid) != text_of(*started, kPid)) {
      if (invocation.wants_data()) {
        console.out << as_data(invocation.format(), *now);
      } else {
        show_resource(*invocation.command, *now, invocation.format(), console);
      }
      return {};
    }
    if (text_of(*now, "process.upgrading") != "true") {
      return Failure{Exit::kRefused,
                     "The new process did not take over; the old one continues: " +
                         text_of(*now, "process.upgrade_failure"),
                     "See the daemon's log."};
    }
  }
  return Failure{Exit::kUnreachable, "There is no answer yet from the new process.",
                 "See the daemon's log, and portway node status."};
}

}  // namespace portway
