#include "client/backup.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <system_error>

#include "client/output.h"
#include "client/output_file.h"
#include "client/request.h"

namespace portway {
namespace {

constexpr std::string_view kSqlite = "application/vnd.sqlite3";
constexpr std::chrono::seconds kSilenceMax(60);

/// The first bytes of the file (https://www.sqlite.org/fileformat.html, 1.3).
class Header {
 public:
  void add(std::string_view data) {
    const std::size_t more = std::min(data.size(), bytes_.size() - have_);
    std::copy_n(data.begin(), more, bytes_.begin() + static_cast<std::ptrdiff_t>(have_));
    have_ += more;
  }
  /// Whether they are those of a store of `size` bytes.
  bool is_store_of(std::uint64_t size) const {
    if (have_ < bytes_.size() || std::memcmp(bytes_.data(), "SQLite format 3", 16) != 0) return false;
    const std::uint64_t page = number(16, 2) == 1 ? 65'536 : number(16, 2);
    return number(68, 4) == 0x50574159 && page * number(28, 4) == size;  // "PWAY"
  }

 private:
  std::uint64_t number(std::size_t at, std::size_t length) const {
    std::uint64_t value = 0;
    for (std::size_t i = at; i < at + length; ++i) value = value << 8 | bytes_[i];
    return value;
  }

  std::array<std::uint8_t, 72> bytes_{};
  std::size_t have_ = 0;
};

Outcome<void> receive(const HttpClient& client, const Invocation& invocation, OutputFile& file) {
  Header header;
  const auto write = [&](std::string_view data) {
    header.add(data);
    return file.write(data);
  };
  const auto answer =
      client.stream(make_request(*invocation.command, invocation.arguments), kSqlite, write, kSilenceMax);
  if (!answer) return answer.error();
  if (!answer->streamed)
    return explained(client, *invocation.command, invocation.arguments, refusal(*answer, client.options()));
  const std::string& server = client.options().server.url;
  if (!answer->broke_off.empty()) {
    return Failure{Exit::kUnreachable, server + ": the backup was cut off: " + answer->broke_off + ".",
                   "Try again; the daemon's log may say more."};
  }
  if (file.error() == 0 && !header.is_store_of(file.size())) {
    return Failure{Exit::kUnreachable, server + ": what it has sent is not a whole backup of a store.",
                   "Check --server, and whether a proxy stands between you and Portway's API."};
  }
  if (const int error = file.finish(); error != 0) {
    return Failure{Exit::kRefused, invocation.arguments.text("FILE") + ": the backup could not be written: " +
                                       std::system_category().message(error) + "."};
  }
  return {};
}

}  // namespace

Outcome<void> run_backup(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const std::string& path = invocation.arguments.text("FILE");
  OutputFile file;
  if (auto opened = file.open(path, 0600); !opened) return opened;
  if (auto received = receive(*client, invocation, file); !received) {
    file.remove();
    return received;
  }
  if (invocation.wants_data()) {
    console.out << as_data(invocation.format(), boost::json::object{{"file", path}, {"bytes", file.size()}});
  } else {
    console.out << fmt::format("{}: {} bytes\n", path, file.size());
  }
  return {};
}

}  // namespace portway
