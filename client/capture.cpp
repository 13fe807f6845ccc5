#include "client/capture.h"

#include <ostream>
#include <system_error>

#include "client/output_file.h"
#include "client/request.h"

namespace portway {
namespace {

constexpr std::string_view kPcap = "application/vnd.tcpdump.pcap";

/// On success, the capture is complete and has been passed to `write`.
template <class Write>
Outcome<void> receive(const HttpClient& client, const Invocation& invocation, Write write) {
  const auto answer = client.stream(make_request(*invocation.command, invocation.arguments), kPcap, write);
  if (!answer) return answer.error();
  if (!answer->streamed) return refusal(*answer, client.options());
  if (answer->broke_off.empty()) return {};
  return Failure{Exit::kUnreachable,
                 client.options().server.url + ": the capture was cut off: " + answer->broke_off + "."};
}

}  // namespace

Outcome<void> run_capture(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::string& path = invocation.arguments.text("--write");
  if (path.empty()) {
    if (console.terminal) {
      return Failure{Exit::kUsage, "A capture is binary and is not written to a terminal.",
                     "Give a file with --write, or pipe the output into tcpdump -r -."};
    }
    return receive(*client, invocation, [&](std::string_view data) {
      return console.out.write(data.data(), static_cast<std::streamsize>(data.size())).good();
    });
  }
  OutputFile file;
  if (auto opened = file.open(path); !opened) return opened;
  auto received = receive(*client, invocation, [&file](std::string_view data) { return file.write(data); });
  if (!received) {
    Failure failure = received.error();
    if (const std::string where = file.give_up(); !where.empty()) failure.remedy = where;
    return failure;
  }
  if (const int error = file.finish(); error != 0) {
    return Failure{Exit::kRefused,
                   path + ": the capture could not be written completely: " +
                       std::system_category().message(error) + ".",
                   file.give_up()};
  }
  return {};
}

}  // namespace portway
