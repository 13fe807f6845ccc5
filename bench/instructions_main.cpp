// What instructions.py counts: the data plane at work in the simulator, without a kernel, COUNT times the
// same.
//
//   portway_instructions messages COUNT       64 bytes and their echo, on one connection
//   portway_instructions connections COUNT    connect, 64 bytes and their echo, close; one after another
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tests/proxy/harness.h"

namespace {

using portway::test::Backend;
using portway::test::Rig;

void exchange(Rig& rig, Rig::Pair& pair, const std::string& message, std::uint64_t received) {
  pair.client.send(message);
  if (!rig.run_until([&] { return pair.client.received_bytes() >= received; })) std::abort();
}

void messages(long count) {
  Rig rig(Backend::kSim);
  Rig::Pair pair = rig.open();
  pair.guest.echo();
  const std::string message(64, 'x');
  for (long i = 1; i <= count; ++i) exchange(rig, pair, message, static_cast<std::uint64_t>(64 * i));
}

void connections(long count) {
  Rig rig(Backend::kSim);
  const std::string message(64, 'x');
  for (long i = 0; i < count; ++i) {
    Rig::Pair pair = rig.open();
    pair.guest.echo();
    exchange(rig, pair, message, 64);
    pair.client.shutdown_write();
    if (!rig.run_until([&] { return pair.client.eof() && rig.counters().connections_active.get() == 0; }))
      std::abort();
    rig.drop(pair.client);
    rig.drop(pair.guest);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc == 3 ? argv[1] : "";
  const long count = argc == 3 ? std::strtol(argv[2], nullptr, 10) : 0;
  if (what == "messages" && count > 0) {
    messages(count);
  } else if (what == "connections" && count > 0) {
    connections(count);
  } else {
    std::fputs("portway_instructions messages|connections COUNT\n", stderr);
    return 2;
  }
  return 0;
}
