// The server behind TLS: who gets a connection, how it ends, and how its certificate is replaced.
#include "api/http/tls.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "base/forward.h"
#include "tests/api/http/running_server.h"
#include "tests/support/certificate.h"

namespace portway {
namespace {

using namespace test;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct ClientSettings {
  int version = 0;  // the highest; 0: any
  std::string protocols = std::string("\x08http/1.1");
  std::string certificate = {};  // PEM with the key
};

/// A blocking client; every call ends, since its socket's do.
class TlsClient {
 public:
  explicit TlsClient(const Endpoint& server, const ClientSettings& settings = {})
      : tcp_(server), context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free) {
    SSL_CTX_set_security_level(context_.get(), 0);  // to offer versions that are too old
    SSL_CTX_set_min_proto_version(context_.get(), TLS1_VERSION);
    SSL_CTX_set_max_proto_version(context_.get(), settings.version);
    SSL_CTX_set_alpn_protos(context_.get(), reinterpret_cast<const unsigned char*>(settings.protocols.data()),
                            static_cast<unsigned>(settings.protocols.size()));
    if (!settings.certificate.empty()) {
      SSL_CTX_use_certificate_chain_file(context_.get(), settings.certificate.c_str());
      SSL_CTX_use_PrivateKey_file(context_.get(), settings.certificate.c_str(), SSL_FILETYPE_PEM);
    }
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), tcp_.descriptor());
  }

  bool handshake() { return SSL_connect(ssl_.get()) == 1; }
  bool send(std::string_view bytes) {
    return SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) ==
           static_cast<int>(bytes.size());
  }
  /// Empty at the end, of whatever kind.
  std::string receive_some() {
    char buffer[16384];
    const int got = SSL_read(ssl_.get(), buffer, sizeof buffer);
    return {buffer, static_cast<std::size_t>(std::max(got, 0))};
  }
  std::string receive_to_end() {
    std::string all;
    for (std::string piece = receive_some(); !piece.empty(); piece = receive_some()) all += piece;
    return all;
  }
  /// The server has sent close_notify, rather than just closed.
  bool ended_cleanly() const { return (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) != 0; }

  /// The answer to a GET that closes; empty if there is no connection.
  std::string get() {
    if (!handshake() || !send("GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) return "";
    return receive_to_end();
  }

  SSL* ssl() { return ssl_.get(); }
  Client& tcp() { return tcp_; }

 private:
  Client tcp_;
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_;
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_{nullptr, SSL_free};
};

class Tls : public testing::Test {
 protected:
  Tls() {
    ::signal(SIGPIPE, SIG_IGN);
    std::filesystem::create_directory(directory_);
    make_certificate(pem_);
  }
  ~Tls() override { std::filesystem::remove_all(directory_); }

  ServerOptions options() const { return {.tls = {.certificate = pem_, .private_key = pem_}}; }
  std::string serial_of_server(TlsClient& client) {
    const std::unique_ptr<X509, void (*)(X509*)> certificate(SSL_get1_peer_certificate(client.ssl()),
                                                             X509_free);
    const ASN1_INTEGER* serial = X509_get0_serialNumber(certificate.get());
    return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(serial)),
            static_cast<std::size_t>(ASN1_STRING_length(serial))};
  }

  const std::string directory_ = "/tmp/portway-tls-" + to_string(make_uuid());
  const std::string pem_ = directory_ + "/server.pem";
};

TEST_F(Tls, Speaks12And13AndHttp11) {
  Running server(options());
  for (const auto& [version, name] : {std::pair(TLS1_2_VERSION, "TLSv1.2"), {TLS1_3_VERSION, "TLSv1.3"}}) {
    TlsClient client(server.endpoint(), {.version = version});
    EXPECT_THAT(client.get(), AllOf(HasSubstr("HTTP/1.1 200 OK"), HasSubstr("GET /ping ")));
    EXPECT_TRUE(client.ended_cleanly());
    EXPECT_STREQ(SSL_get_version(client.ssl()), name);
    const unsigned char* protocol = nullptr;
    unsigned length = 0;
    SSL_get0_alpn_selected(client.ssl(), &protocol, &length);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(protocol), length), "http/1.1");
  }
  EXPECT_GT(server.stats().tls_certificate_expiry, std::time(nullptr));
}

TEST_F(Tls, RefusesWhatIsTooOldAndOtherProtocols) {
  Running server(options());
  EXPECT_FALSE(TlsClient(server.endpoint(), {.version = TLS1_1_VERSION}).handshake());
  EXPECT_FALSE(TlsClient(server.endpoint(), {.protocols = "\x02h2"}).handshake());
  EXPECT_NE(TlsClient(server.endpoint(), {.protocols = "\x02h2\x08http/1.1"}).get(), "");
  server.wait_until([](const ServerStats& stats) { return stats.handshakes_failed == 2; });
}

TEST_F(Tls, KeepsTheConnectionAndReadsRequestsByteByByte) {
  Running server(options());
  TlsClient client(server.endpoint());
  ASSERT_TRUE(client.handshake());
  for (int i = 0; i < 3; ++i) {
    for (const char c : std::string("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")) {
      client.send(std::string_view(&c, 1));
    }
    EXPECT_THAT(client.receive_some(), HasSubstr("POST / ab"));
  }
}

TEST_F(Tls, AnswersPipelinedRequestsThatAreOneRecord) {
  Running server(options());
  TlsClient client(server.endpoint());
  ASSERT_TRUE(client.handshake());
  client.send(kGet + kGet + "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const std::string all = client.receive_to_end();
  const std::size_t first = all.find("GET /ping ");
  ASSERT_NE(first, std::string::npos);
  EXPECT_LT(all.find("GET /ping ", first + 1), all.find("GET /last "));
}

TEST_F(Tls, DeliversALargeAnswerToItsEnd) {
  Running server(options(), [](const Request&) { return make_response(200, std::string(8 << 20, 'x')); });
  TlsClient client(server.endpoint());
  EXPECT_GT(client.get().size(), 8U << 20);
  EXPECT_TRUE(client.ended_cleanly());
}

TEST_F(Tls, GivesUpOnAClientThatDoesNotTakeItsAnswer) {
  ServerOptions settings = options();
  settings.write_timeout = 50ms;
  Running server(settings, [](const Request&) { return make_response(200, std::string(64 << 20, 'x')); });
  TlsClient client(server.endpoint());
  ASSERT_TRUE(client.handshake());
  client.send(kGet);
  server.wait_until(
      [](const ServerStats& stats) { return stats.connections_total == 1 && stats.connections == 0; });
}

TEST_F(Tls, AnswersAClientOfPlainHttp) {
  Running server(options());
  Client client(server.endpoint());
  client.send(kGet);
  Answer answer = client.receive();
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("https://"));
  EXPECT_EQ(client.receive_to_end(), "");
}

TEST_F(Tls, EndsAHandshakeThatComesTooSlowly) {
  ServerOptions settings = options();
  settings.header_timeout = 50ms;
  Running server(settings);
  Client silent(server.endpoint());
  EXPECT_EQ(silent.receive_to_end(), "");
  Client dripping(server.endpoint());
  dripping.send("\x16\x03\x01\x02");
  EXPECT_EQ(dripping.receive_to_end(), "");
  server.wait_until([](const ServerStats& stats) { return stats.handshakes_failed == 2; });
}

TEST_F(Tls, CountsHandshakesAmongTheConnections) {
  ServerOptions settings = options();
  settings.connections_max = 1;
  Running server(settings);
  Client silent(server.endpoint());
  server.wait_until([](const ServerStats& stats) { return stats.connections == 1; });
  TlsClient client(server.endpoint());
  EXPECT_NE(client.get(), "");
  EXPECT_EQ(silent.receive_to_end(), "");
  EXPECT_EQ(server.stats().connections_evicted, 1U);
}

TEST_F(Tls, AsksForClientCertificatesIfConfigured) {
  const std::string known = directory_ + "/known.pem";
  const std::string stranger = directory_ + "/stranger.pem";
  make_certificate(known);
  make_certificate(stranger);
  ServerOptions settings = options();
  settings.tls.client_ca = known;
  int calls = 0;
  Running server(settings, [&calls](const Request& request) {
    ++calls;
    return echo(request);
  });
  EXPECT_EQ(TlsClient(server.endpoint()).get(), "");
  EXPECT_EQ(TlsClient(server.endpoint(), {.certificate = stranger}).get(), "");
  server.wait_until([](const ServerStats& stats) { return stats.handshakes_failed == 2; });
  EXPECT_THAT(TlsClient(server.endpoint(), {.certificate = known}).get(), HasSubstr("200 OK"));
  EXPECT_EQ(calls, 1);
}

TEST_F(Tls, KnowsTheNamesInAVerifiedClientCertificate) {
  std::string many = "DNS:first.example";
  std::vector<std::string> most = {"first.example"};
  for (int i = 1; i < 40; ++i) {
    many += ",DNS:n" + std::to_string(i);
    if (most.size() < TlsConnection::kClientNamesMax) most.push_back("n" + std::to_string(i));
  }
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"DNS:Gateway.Example.com,IP:127.0.0.1,DNS:b_1", {"gateway.example.com", "b_1"}},
      {"DNS:*.example.com,DNS:" + std::string(254, 'a'), {}},  // and not the CN
      {many, most},
      {"IP:127.0.0.1", {}},  // its CN, "portway test", is no host name
      {"", {}},
  };
  for (const auto& [names, known] : cases) {
    const std::string client = directory_ + "/client.pem";
    make_certificate(client, {}, names);
    ServerOptions settings = options();
    settings.tls.client_ca = client;
    std::vector<std::vector<std::string>> seen;
    Running server(settings, [&seen](const Request& request) {
      seen.push_back(request.certificate_names ? *request.certificate_names : std::vector<std::string>());
      return echo(request);
    });
    TlsClient connection(server.endpoint(), {.certificate = client});
    ASSERT_TRUE(connection.handshake());
    for (int i = 0; i < 2; ++i) {
      connection.send(kGet);
      EXPECT_THAT(connection.receive_some(), HasSubstr("200 OK"));
    }
    EXPECT_THAT(seen, testing::Each(known)) << names;
    EXPECT_EQ(seen.size(), 2U);
  }
}

TEST_F(Tls, KnowsNoNamesOfACertificateThatItDoesNotVerify) {
  const std::string client = directory_ + "/client.pem";
  make_certificate(client, {}, "DNS:gateway.example.com");
  bool has_names = true;
  Running server(options(), [&has_names](const Request& request) {
    has_names = request.certificate_names != nullptr;
    return echo(request);
  });
  EXPECT_THAT(TlsClient(server.endpoint(), {.certificate = client}).get(), HasSubstr("200 OK"));
  EXPECT_FALSE(has_names);
}

TEST_F(Tls, TakesANewCertificateWhileConnectionsContinue) {
  Running server(options());
  TlsClient before(server.endpoint());
  ASSERT_TRUE(before.handshake());
  make_certificate(pem_, {.ends = std::chrono::hours(24 * 90)});
  EXPECT_TRUE(server.on_its_thread([&] { return server.server().reload_tls(); }));
  EXPECT_GT(server.stats().tls_certificate_expiry, std::time(nullptr) + 89 * 86400);
  TlsClient after(server.endpoint());
  ASSERT_TRUE(after.handshake());
  EXPECT_NE(serial_of_server(before), serial_of_server(after));
  before.send(kGet);
  EXPECT_THAT(before.receive_some(), HasSubstr("200 OK"));
}

TEST_F(Tls, KeepsItsCertificateWhenTheNewOneIsBad) {
  Running server(options());
  std::ofstream(pem_) << "nothing";
  const auto reloaded = server.on_its_thread([&] { return server.server().reload_tls(); });
  ASSERT_FALSE(reloaded);
  EXPECT_EQ(reloaded.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(reloaded.error().detail, HasSubstr(pem_));
  EXPECT_NE(TlsClient(server.endpoint()).get(), "");
}

TEST_F(Tls, SaysWhichFileIsBadAndWhy) {
  const std::string other = directory_ + "/other.pem";
  make_certificate(other);
  const auto refusal = [](const TlsFiles& files) {
    const auto loaded = TlsContext::load(files);
    if (loaded) return std::string("it was accepted");
    EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidConfig);
    return loaded.error().detail;
  };
  EXPECT_THAT(refusal({.certificate = directory_ + "/none", .private_key = pem_}),
              AllOf(HasSubstr("/none"), HasSubstr("No such file"), HasSubstr("readable PEM file")));
  EXPECT_THAT(refusal({.certificate = pem_, .private_key = directory_ + "/none"}), HasSubstr("/none"));
  EXPECT_THAT(refusal({.certificate = pem_, .private_key = other}),
              AllOf(HasSubstr("api.tls_private_key: " + other), HasSubstr("it is not the key of " + pem_)));
  EXPECT_THAT(refusal({.certificate = pem_, .private_key = pem_, .client_ca = directory_ + "/none"}),
              HasSubstr("api.client_ca: "));
  make_certificate(other, {.ends = std::chrono::seconds(-60)});
  EXPECT_THAT(refusal({.certificate = other, .private_key = other}), HasSubstr("it has expired; renew it"));
  make_certificate(other, {.begins = std::chrono::hours(1)});
  EXPECT_THAT(refusal({.certificate = other, .private_key = other}), HasSubstr("clock"));

  boost::asio::io_context context;
  ServerOptions bad = options();
  bad.tls.private_key = other;
  EXPECT_FALSE(Server::start(context, bad, echo_at_once));
}

TEST_F(Tls, EndsAStreamWithItsGoodbyeWhenTheServerStops) {
  class Silent : public BodyStream {
   public:
    void on_ready(std::function<void()>) override {}
    std::optional<std::string> read() override { return std::string(std::exchange(first_, "")); }

   private:
    const char* first_ = "data: 1\n\n";
  };
  Running server(options(), [](const Request&) {
    return Response{.status = 200, .body = {}, .headers = {}, .stream = std::make_shared<Silent>()};
  });
  TlsClient client(server.endpoint());
  ASSERT_TRUE(client.handshake());
  client.send(kGet);
  EXPECT_THAT(client.receive_some(), HasSubstr("Transfer-Encoding: chunked"));
  EXPECT_EQ(client.receive_some(), "9\r\ndata: 1\n\n\r\n");
  EXPECT_EQ(server.stats().streams, 1U);
  server.stop();
  EXPECT_EQ(client.receive_to_end(), "0\r\n\r\n");
  EXPECT_TRUE(client.ended_cleanly());
}

TEST_F(Tls, SurvivesAThousandHandshakesOfGarbage) {
  Running server(options());
  std::mt19937 random(20'240'608);
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = "\x16\x03\x01";
    for (std::size_t n = random() % 300; n > 0; --n) bytes += static_cast<char>(random());
    Client client(server.endpoint());
    client.send(std::string_view(bytes).substr(i % 4));
    client.finish();
    client.receive_to_end();
  }
  EXPECT_NE(TlsClient(server.endpoint()).get(), "");
  server.wait_until([](const ServerStats& stats) { return stats.connections == 0; });
}

}  // namespace
}  // namespace portway
