#include "client/capture.h"

#include <fstream>
#include <ostream>

#include "client/request.h"

namespace portway {

Outcome<void> run_capture(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::string& path = invocation.arguments.text("--write");
  if (path.empty() && console.terminal) {
    return Failure{Exit::kUsage, "A capture is no text.",
                   "Name a file with --write, or pipe it into tcpdump -r -."};
  }
  std::ofstream file;
  if (!path.empty()) {
    file.open(path, std::ios::binary | std::ios::trunc);
    if (!file) return Failure{Exit::kUsage, path + " cannot be written.", "Name another file with --write."};
  }
  std::ostream& out = path.empty() ? console.out : file;
  const auto answer =
      client->stream(make_request(*invocation.command, invocation.arguments), [&out](std::string_view data) {
        return out.write(data.data(), static_cast<std::streamsize>(data.size())).good();
      });
  if (!answer) return answer.error();
  if (answer->status != 200) return refusal(*answer, client->options());
  out.flush();
  if (!out) return Failure{Exit::kRefused, "The capture could not be written whole.", "Is the disk full?"};
  return {};
}

}  // namespace portway
