// Any bytes to the HTTP server, over a real socket: it answers with HTTP or with nothing, and closes.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "api/http/server.h"
#include "base/fd.h"

namespace portway {
namespace {

class Fixture {
 public:
  Fixture()
      : directory_(std::filesystem::temp_directory_path() / ("portway-fuzz-" + std::to_string(::getpid()))) {
    std::filesystem::create_directory(directory_);
    ServerOptions options;
    options.listen = UnixPath{path()};
    options.body_max_bytes = 4096;
    server_ = Server::start(context_, options, [](const Request& request) {
                return answer_at_once({.status = 200, .body = request.target + request.body, .headers = {}});
              }).value();
  }
  ~Fixture() {
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  void feed(const std::uint8_t* data, std::size_t size) {
    const Fd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    if (::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      std::abort();
    (void)!::send(client.get(), data, size, MSG_NOSIGNAL);
    ::shutdown(client.get(), SHUT_WR);
    std::string answer;
    std::array<char, 4096> buffer;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (ssize_t got = -1; got != 0 && std::chrono::steady_clock::now() < deadline;) {
      context_.run_one_for(std::chrono::milliseconds(1));
      while ((got = ::recv(client.get(), buffer.data(), buffer.size(), 0)) > 0) {
        answer.append(buffer.data(), static_cast<std::size_t>(got));
      }
      if (got < 0 && errno != EAGAIN) break;
    }
    if (std::chrono::steady_clock::now() >= deadline || (!answer.empty() && !answer.starts_with("HTTP/1."))) {
      std::abort();
    }
  }

 private:
  std::string path() const { return directory_ / "api.sock"; }

  const std::filesystem::path directory_;
  boost::asio::io_context context_;
  std::unique_ptr<Server> server_;
};

}  // namespace
}  // namespace portway

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static portway::Fixture fixture;
  fixture.feed(data, size);
  return 0;
}
