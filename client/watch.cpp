#include "client/watch.h"

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <limits>
#include <ostream>
#include <thread>

#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

// Cursor home, then erase to the end of the screen (ECMA-48): redraws without flicker.
constexpr const char* kRedraw = "\x1b[H\x1b[J";

void show(const Invocation& invocation, const boost::json::object& answer, Console& console) {
  if (invocation.wants_json()) {
    console.out << boost::json::serialize(answer) << std::endl;  // one object per line, for jq
    return;
  }
  if (console.terminal) console.out << kRedraw;
  invocation.command->show(*invocation.command, answer, console);
  console.out << std::flush;
}

}  // namespace

Outcome<void> run_watch(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::chrono::seconds interval(invocation.arguments.number("--interval").value_or(2));
  const long count = invocation.arguments.number("--count").value_or(std::numeric_limits<long>::max());
  for (long i = 0; i < count && console.out.good(); ++i) {
    if (i > 0) std::this_thread::sleep_for(interval);
    const auto answer = fetch(*client, *invocation.command, invocation.arguments);
    if (!answer) return answer.error();
    if (i > 0 && !console.terminal && !invocation.wants_json()) console.out << "\n";
    show(invocation, *answer, console);
  }
  return {};
}

}  // namespace portway
