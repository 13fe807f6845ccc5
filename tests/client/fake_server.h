// An HTTP server that gives the answers a test chooses, over TCP, TLS or a Unix socket; one connection at a
// time, each for one request.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/certificate.h"
#include "tests/support/temporary_directory.h"

namespace portway::test {

class FakeServer {
 public:
  /// The bytes of the answer to `request`, after which the connection closes; nullopt: it stays open
  /// without an answer.
  using Answer = std::function<std::optional<std::string>(const std::string& request)>;

  /// "tcp", "unix:/PATH", "tls:/PEM-FILE" with its certificate, or "mtls:/PEM-FILE", which also requires that
  /// certificate from its clients.
  FakeServer(const std::string& transport, Answer answer);
  ~FakeServer();

  std::string url() const;
  /// The requests received so far, head and body.
  std::vector<std::string> requests() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

/// "HTTP/1.1 STATUS ..." with a JSON body.
std::string http_answer(int status, const std::string& body);
/// The same with a problem document.
std::string problem_answer(int status, const std::string& body, const std::string& more_headers = "");

/// One run of `portway`, in this process.
struct ClientRun {
  int exit = 0;
  std::string out;
  std::string err;
};
ClientRun run_portway(const std::vector<std::string>& words,
                      const std::vector<std::pair<std::string, std::string>>& environment = {});

}  // namespace portway::test
