// portway healthcheck: 0 for a daemon that answers, 1 and one line for anything else.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"
#include "tests/support/certificate.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::optional<std::string> healthy(const std::string& request) {
  if (request.starts_with("GET /healthz ")) return http_answer(200, R"({"status":"ok"})");
  if (request.starts_with("GET /readyz "))
    return problem_answer(
        503, R"({"title":"Service Unavailable","detail":"The disk.","code":"store_unavailable"})");
  return http_answer(404, "{}");
}

/// It fails with 1, and says why in one line.
void expect_unhealthy(const ClientRun& run, const std::string& why) {
  EXPECT_EQ(run.exit, 1) << run.err;
  EXPECT_EQ(run.out, "");
  EXPECT_THAT(run.err, HasSubstr(why));
  EXPECT_EQ(std::ranges::count(run.err, '\n'), 1) << run.err;
}

std::string port_in(const std::string& url) {
  return url.substr(url.rfind(':') + 1);
}

TEST(Healthcheck, IsSilentIfTheDaemonAnswers) {
  const FakeServer server("tcp", healthy);
  // A key is not needed, not read and not sent.
  const ClientRun run = run_portway({"healthcheck", "--server", server.url(), "--key-file", "/nowhere/key"},
                                    {{"PORTWAY_API_KEY", "pwk_x"}});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out + run.err, "");
  EXPECT_THAT(server.requests().at(0), Not(HasSubstr("uthorization")));
  EXPECT_THAT(run_portway({"healthcheck", "--server", server.url(), "-o", "json"}).out,
              HasSubstr("\"status\": \"ok\""));
  expect_unhealthy(run_portway({"healthcheck", "--ready", "--server", server.url()}), "The disk.");
}

TEST(Healthcheck, SaysWhatIsWrong) {
  std::string gone;
  {
    const FakeServer server("tcp", healthy);
    gone = server.url();
  }
  expect_unhealthy(run_portway({"healthcheck", "--server", gone}), "Connection refused");
  expect_unhealthy(run_portway({"healthcheck", "--server", "unix:/nowhere/api.sock"}), "No such file");
  expect_unhealthy(run_portway({"healthcheck", "--server", "nonsense"}), "is not a server address");
  const FakeServer hanging("tcp", [](const std::string&) { return std::nullopt; });
  expect_unhealthy(run_portway({"healthcheck", "--timeout", "1", "--server", hanging.url()}),
                   "no answer within 1 s");
  for (const char* body : {R"({"status":"UP"})", "[]", "hello"}) {
    const FakeServer other("tcp", [body](const std::string&) { return http_answer(200, body); });
    expect_unhealthy(run_portway({"healthcheck", "--server", other.url()}),
                     "Check that Portway's API listens");
  }
}

TEST(Healthcheck, WaitsThreeSecondsUnlessItIsToldOtherwise) {
  const FakeServer hanging("tcp", [](const std::string&) { return std::nullopt; });
  expect_unhealthy(run_portway({"healthcheck", "--server", hanging.url()}), "no answer within 3 s");
}

TEST(Healthcheck, TrustsAServerThatIsNamedAsOtherCommandsDo) {
  const TemporaryDirectory directory;
  const std::string pem = directory.path() / "server.pem";
  make_certificate(pem);
  const FakeServer server("tls:" + pem, healthy);
  EXPECT_EQ(run_portway({"healthcheck", "--server", server.url(), "--ca", pem}).exit, 0);
  expect_unhealthy(run_portway({"healthcheck", "--server", server.url()}), "certificate is not trusted");
  const FakeServer mutual("mtls:" + pem, healthy);
  EXPECT_EQ(run_portway({"healthcheck", "--server", mutual.url(), "--ca", pem, "--cert", pem}).exit, 0);
  expect_unhealthy(run_portway({"healthcheck", "--server", mutual.url(), "--ca", pem}),
                   "certificate required");
}

TEST(Healthcheck, FindsTheDaemonByItsConfiguration) {
  const TemporaryDirectory directory;
  const std::string pem = directory.path() / "server.pem";
  make_certificate(pem);
  const auto check = [&](const std::string& text,
                         const std::vector<std::pair<std::string, std::string>>& environment = {},
                         const std::vector<std::string>& more = {}) {
    const std::string file =
        directory.write("portway.toml", "[guests]\nnetworks = [\"198.19.0.0/16\"]\n" + text);
    std::vector<std::string> words = {"healthcheck", "--config", file, "--timeout", "2"};
    words.insert(words.end(), more.begin(), more.end());
    return run_portway(words, environment);
  };
  const std::string tls = "tls_certificate = \"" + pem + "\"\ntls_private_key = \"" + pem + "\"\n";
  const std::string unused = "127.0.0.1:1";

  const FakeServer plain("tcp", healthy);
  const std::string port = port_in(plain.url());
  EXPECT_EQ(check("[api]\nlisten = \"0.0.0.0:" + port + "\"\n").exit, 0);
  EXPECT_EQ(check("[api]\nlisten = \"" + unused + "\"\n", {{"PORTWAY_API_LISTEN", "127.0.0.1:" + port}}).exit,
            0)
      << "in a container, the daemon's environment is this one's";
  expect_unhealthy(check("[api]\nlisten = \"" + unused + "\"\n"), "Connection refused");

  const FakeServer secure("tls:" + pem, healthy);
  EXPECT_EQ(check("[api]\nlisten = \"0.0.0.0:" + port_in(secure.url()) + "\"\n" + tls).exit, 0)
      << "no name of the certificate needs to fit";

  const std::string socket = "unix:" + (directory.path() / "api.sock").string();
  const FakeServer unix_server(socket, healthy);
  EXPECT_EQ(check("[api]\nlisten = [\"" + unused + "\", \"" + socket + "\"]\n").exit, 0)
      << "the socket first";

  const FakeServer mutual("mtls:" + pem, healthy);
  const std::string wants_certificate =
      tls + "client_ca = \"" + pem + "\"\nlisten = \"127.0.0.1:" + port_in(mutual.url()) + "\"\n";
  expect_unhealthy(check("[api]\n" + wants_certificate), "certificate required");
  EXPECT_EQ(check("[api]\n" + wants_certificate, {}, {"--cert", pem}).exit, 0);
  const std::string metrics = "[metrics]\nlisten = \"127.0.0.1:" + port + "\"\n";
  EXPECT_EQ(check("[api]\n" + wants_certificate + metrics).exit, 0) << "it asks nobody for a certificate";

  expect_unhealthy(check("[api]\nlisten = \"127.0.0.1:0\"\n"), "port 0 only");
  expect_unhealthy(check("[api]\nlisten = \"nonsense\"\n"), "api.listen");
  expect_unhealthy(run_portway({"healthcheck", "--config", "/nowhere/portway.toml"}),
                   "/nowhere/portway.toml");
}

}  // namespace
}  // namespace portway::test
