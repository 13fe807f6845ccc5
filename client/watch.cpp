#include "client/watch.h"

#include <boost/json/object.hpp>
#include <limits>
#include <optional>
#include <ostream>
#include <thread>

#include "client/interrupt.h"
#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

void print(const Invocation& invocation, const boost::json::object& answer, Console& console) {
  if (invocation.wants_data()) {
    console.out << as_data_item(invocation.format(), answer) << std::flush;
    return;
  }
  if (console.terminal) console.out << kRedraw;
  invocation.command->show(*invocation.command, answer, invocation.format(), console);
  console.out << std::flush;
}

}  // namespace

Outcome<void> run_watch(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::chrono::seconds interval(invocation.arguments.number("--interval").value_or(2));
  const long count = invocation.arguments.number("--count").value_or(std::numeric_limits<long>::max());
  std::optional<EndsWhenInterrupted> ends;
  StaleNote stale(console);
  for (long i = 0; i < count && console.out.good(); ++i) {
    if (i > 0) std::this_thread::sleep_for(interval);
    const auto answer = fetch(*client, *invocation.command, invocation.arguments);
    if (!answer) return answer.error();
    stale.look_at(*answer);
    if (!ends) ends.emplace();
    const WithoutInterrupts whole;
    if (i > 0 && !console.terminal && !invocation.wants_data()) console.out << "\n";
    print(invocation, *answer, console);
  }
  return {};
}

}  // namespace portway
