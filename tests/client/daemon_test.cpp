// The program against the real daemon, both in a network namespace of their own: what the manual page's
// examples do.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <chrono>
#include <fstream>

#include "tests/client/fake_server.h"
#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"

namespace portway::test {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

class ClientAndDaemon : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_.emplace();
    network_->ip("link add tap0 type veth peer name guest0");
    network_->ip("link set guest0 up");
    network_->ip("address add 198.19.0.1/24 dev tap0");
    network_->ip("link set tap0 up");
    network_->set("net/ipv4/conf/tap0/rp_filter", "1");
    config_ = directory_.write(
        "portway.toml",
        "[node]\npublic_hostname = \"compute-1.test\"\n"
        "[api]\nlisten = \"127.0.0.1:8080\"\nadmin_key_file = \"" +
            admin_key() + "\"\n[guests]\nnetworks = [\"198.19.0.0/24\"]\n[store]\npath = \"" +
            (directory_.path() / "portway.db").string() + "\"\n[proxy]\nworkers = 1\n");
    daemon_.emplace(SpawnOptions{.command = {PORTWAY_DAEMON, "--config", config_}, .network = &*network_});
    ASSERT_TRUE(daemon_->wait_for_output("listens on", 30s)) << daemon_->output();
  }

  std::string admin_key() const { return directory_.path() / "admin.key"; }

  struct Ended {
    int exit;
    std::string output;  // standard output and error
  };
  Ended portway(std::vector<std::string> words, const std::string& key_file = "") {
    words.insert(words.begin(), PORTWAY_CLIENT);
    words.push_back("--key-file=" + (key_file.empty() ? admin_key() : key_file));
    Process process({.command = std::move(words), .network = &*network_});
    const auto exit = process.wait(30s);
    EXPECT_TRUE(exit.has_value()) << "portway does not end";
    process.wait_for_output("\n\n\n", 1s);  // to the end of what it printed
    return {exit.value_or(-1), process.output()};
  }

  TemporaryDirectory directory_;
  std::string config_;
  std::optional<NetworkNamespace> network_;
  std::optional<Process> daemon_;
};

TEST_F(ClientAndDaemon, DrainAndUndrain) {
  Ended run = portway({"drain"});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr("draining:        true\n"), HasSubstr("draining_since:  20")));
  run = portway({"node", "status"});
  EXPECT_THAT(run.output, MatchesRegex("(.|\n)*draining: +true\n(.|\n)*"));
  run = portway(
      {"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner", "alice"});
  EXPECT_NE(run.exit, 0);
  EXPECT_THAT(run.output, HasSubstr("being drained"));
  run = portway({"undrain"});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_EQ(run.output, "draining:  false\n");
}

TEST_F(ClientAndDaemon, RegisterForwardListAndEnd) {
  Ended run = portway(
      {"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner", "alice"});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("guest_addresses:  198.19.0.2\n"));

  run = portway({"keys", "create", "--owner", "alice", "-o", "json"});
  ASSERT_EQ(run.exit, 0) << run.output;
  const std::string key =
      directory_.write("alice.key", boost::json::parse(run.output).at("secret").as_string().c_str());
  std::filesystem::permissions(key, std::filesystem::perms::owner_read);

  run = portway({"whoami"}, key);
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr("tenant"), HasSubstr("alice"), HasSubstr("full")));
  run = portway({"keys", "list"});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr("LAST USED"), HasSubstr("active")));

  run = portway({"forwards", "create", "vm-1", "3000", "--label", "dev-server"}, key);
  ASSERT_EQ(run.exit, 0) << run.output;
  ASSERT_THAT(run.output, MatchesRegex("compute-1\\.test:[0-9]+\n"));
  const std::string endpoint = run.output.substr(0, run.output.size() - 1);

  run = portway({"forwards", "list", "vm-1", "-o", "json"}, key);
  ASSERT_EQ(run.exit, 0) << run.output;
  const std::string id =
      boost::json::parse(run.output).at("port_forwards").at(0).at("id").as_string().c_str();
  run = portway({"forwards", "watch", "vm-1", "--count", "1"}, key);
  EXPECT_THAT(run.output,
              AllOf(HasSubstr(id), HasSubstr(endpoint), HasSubstr("dev-server"), HasSubstr("listening")));
  EXPECT_EQ(portway({"forwards", "get", "vm-1", id}, key).exit, 0);

  run = portway({"forwards", "update", "vm-1", id, "--guest-port", "3001", "--enabled", "false", "--metadata",
                 "env=dev"},
                key);
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr("3001"), HasSubstr("disabled"), HasSubstr("env")));
  ASSERT_EQ(portway({"forwards", "create", "vm-1", "3000", "--metadata", "env=prod"}, key).exit, 0);
  run = portway({"forwards", "delete-all", "vm-1", "--metadata", "env=prod"}, key);
  EXPECT_THAT(run.output, MatchesRegex("[0-9a-f-]{36}\n"));
  EXPECT_EQ(portway({"forwards", "delete", "vm-1", id, "--connections", "reset"}, key).exit, 0);
  EXPECT_EQ(portway({"forwards", "get", "vm-1", id}, key).exit, 4);
  run = portway({"instances", "stop", "vm-1"});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_EQ(portway({"forwards", "create", "vm-1", "3000"}, key).exit, 1);
  EXPECT_EQ(portway({"instances", "delete", "vm-1"}).exit, 0);
  EXPECT_EQ(portway({"instances", "get", "vm-1"}).exit, 4);
}

TEST_F(ClientAndDaemon, ReportRefusalsByExitCode) {
  Ended run = portway({"forwards", "create", "vm-9", "3000"});
  EXPECT_EQ(run.exit, 4);
  EXPECT_THAT(run.output, HasSubstr("code: not_found"));
  ASSERT_EQ(portway({"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
                     "alice"})
                .exit,
            0);
  run = portway({"forwards", "create", "vm-1", "22"});
  EXPECT_EQ(run.exit, 5);
  EXPECT_THAT(run.output, HasSubstr("code: blocked_port"));
  run = portway(
      {"instances", "put", "vm-2", "--guest-address", "127.0.0.1", "--tap", "tap0", "--owner", "alice"});
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.output, HasSubstr("field: guest_address"));
  const std::string stranger =
      directory_.write("stranger.key", "pwk_0000000000000000000000000000000000000000000");
  EXPECT_EQ(portway({"instances", "list"}, stranger).exit, 5);
}

TEST_F(ClientAndDaemon, FollowAListOverARestartUntilInterrupted) {
  const auto put = [this](const std::string& id) {
    return portway(
               {"instances", "put", id, "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner", "alice"})
        .exit;
  };
  Process list({.command = {PORTWAY_CLIENT, "instances", "list", "--watch", "--key-file=" + admin_key()},
                .network = &*network_});
  ASSERT_TRUE(list.wait_for_output("ID", 30s)) << list.output();
  EXPECT_EQ(put("vm-1"), 0);
  EXPECT_TRUE(list.wait_for_output("vm-1  running", 30s)) << list.output();
  daemon_->signal(SIGTERM);
  ASSERT_TRUE(daemon_->wait(30s).has_value());
  EXPECT_TRUE(list.wait_for_output("reconnecting", 30s)) << list.output();
  daemon_.emplace(SpawnOptions{.command = {PORTWAY_DAEMON, "--config", config_}, .network = &*network_});
  ASSERT_TRUE(daemon_->wait_for_output("listens on", 30s)) << daemon_->output();
  EXPECT_EQ(portway({"instances", "stop", "vm-1"}).exit, 0);
  EXPECT_TRUE(list.wait_for_output("vm-1  stopped", 30s)) << list.output();
  list.signal(SIGINT);
  EXPECT_EQ(list.wait(30s), 0) << list.output();
}

TEST_F(ClientAndDaemon, ChangeOnlyWhatHasTheETagThatIsMeant) {
  ASSERT_EQ(portway({"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
                     "alice"})
                .exit,
            0);
  const auto shown = boost::json::parse(portway({"instances", "get", "vm-1", "-o", "json"}).output);
  const std::string etag = shown.at("etag").as_string().c_str();
  Ended run = portway({"instances", "update", "vm-1", "--owner", "bob", "--if-match", etag});
  EXPECT_EQ(run.exit, 0) << run.output;
  run = portway({"instances", "update", "vm-1", "--owner", "carol", "--if-match", etag});
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.output, HasSubstr("(code: precondition_failed, status: 412, "));
}

TEST_F(ClientAndDaemon, PassDoctorsChecks) {
  ASSERT_EQ(portway({"instances", "put", "vm-1", "--guest-address", "198.19.0.2", "--tap", "tap0", "--owner",
                     "alice"})
                .exit,
            0);
  const Ended run = portway({"doctor", "--config", config_});
  EXPECT_EQ(run.exit, 0) << run.output;
  EXPECT_THAT(run.output,
              AllOf(HasSubstr("is ready, version " PORTWAY_VERSION), HasSubstr("The API accepts the key.")));
  EXPECT_THAT(run.output, Not(HasSubstr("\nfail ")));
  EXPECT_THAT(run.output, Not(HasSubstr("tap0 (vm-1)")));
}

/// The daemon with another configuration, and the program with its address.
class ClientAndSecureDaemon : public testing::Test {
 protected:
  void start(const std::string& api) {
    const std::string config = directory_.write(
        "portway.toml", "[api]\nadmin_key_file = \"" + admin_key() + "\"\n" + api + "[store]\npath = \"" +
                            (directory_.path() / "portway.db").string() + "\"\n[proxy]\nworkers = 1\n");
    daemon_.emplace(SpawnOptions{.command = {PORTWAY_DAEMON, "--config", config}, .network = nullptr});
    ASSERT_TRUE(daemon_->wait_for_output("listens on", 30s)) << daemon_->output();
  }
  /// Its exit code; `words` say where the server is.
  int list_instances(std::vector<std::string> words) {
    // No key at all, unless a file is named.
    words.insert(words.begin(), {"/usr/bin/env", "PORTWAY_API_KEY=", PORTWAY_CLIENT, "instances", "list"});
    Process process({.command = std::move(words), .network = nullptr});
    const int exit = process.wait(30s).value_or(-1);
    process.wait_for_output("\n\n\n", 1s);
    output_ = process.output();
    return exit;
  }
  std::string admin_key() const { return directory_.path() / "admin.key"; }

  TemporaryDirectory directory_;
  std::optional<Process> daemon_;
  std::string output_;
};

TEST_F(ClientAndSecureDaemon, TalkOverAUnixSocketWithAKeyOrAsAnAdminUser) {
  const std::string socket = "unix:" + (directory_.path() / "api.sock").string();
  start("listen = \"" + socket + "\"\nadmin_uids = [" + std::to_string(::geteuid()) + "]\n");
  EXPECT_EQ(list_instances({"--server=" + socket, "--key-file=" + admin_key()}), 0) << output_;
  const std::string nobodys = directory_.write("bad.key", "pwk_0000000000000000000000000000000000000000000");
  EXPECT_EQ(list_instances({"--server=" + socket, "--key-file=" + nobodys}), 5) << output_;
  EXPECT_EQ(list_instances({"--server=" + socket}), 0) << output_;
  daemon_->signal(SIGTERM);
  EXPECT_EQ(daemon_->wait(30s), 0) << daemon_->output();
  EXPECT_FALSE(std::filesystem::exists(directory_.path() / "api.sock"));
}

TEST_F(ClientAndSecureDaemon, TalkOverTlsWithACertificateOnEachSide) {
  const std::string server = directory_.path() / "server.pem";
  const std::string client = directory_.path() / "client.pem";
  make_certificate(server);
  make_certificate(client);
  start("listen = \"127.0.0.1:0\"\ntls_certificate = \"" + server + "\"\ntls_private_key = \"" + server +
        "\"\nclient_ca = \"" + client + "\"\n");
  const std::string log = daemon_->output();
  EXPECT_THAT(log, HasSubstr("expires soon"));
  const std::size_t url_at = log.find("https://");
  ASSERT_NE(url_at, std::string::npos) << log;
  const std::string url = log.substr(url_at, log.find(',', url_at) - url_at);
  const std::string key = "--key-file=" + admin_key();
  EXPECT_EQ(list_instances({"--server=" + url, key, "--ca=" + server, "--cert=" + client}), 0) << output_;
  EXPECT_NE(list_instances({"--server=" + url, key, "--ca=" + server}), 0);
  EXPECT_NE(list_instances({"--server=" + url, key, "--cert=" + client}), 0);
  EXPECT_THAT(output_, HasSubstr("the server's certificate is not trusted"));
}

TEST_F(ClientAndSecureDaemon, TalkFromAGuestsNetworkOnlyIfThatIsAllowed) {
  const std::string guests = "[guests]\nnetworks = [\"127.0.0.0/8\"]\n";
  for (const bool allowed : {false, true}) {
    start(std::string("listen = \"127.0.0.1:0\"\n") + (allowed ? "allow_guests = true\n" : "") + guests);
    const std::string log = daemon_->output();
    const std::size_t url_at = log.find("http://");
    const std::string url = log.substr(url_at, log.find(',', url_at) - url_at);
    EXPECT_EQ(list_instances({"--server=" + url, "--key-file=" + admin_key()}) == 0, allowed) << output_;
    daemon_.reset();
  }
}

TEST_F(ClientAndDaemon, ReportTheSameVersionAndThatTheDaemonIsGone) {
  Ended run = portway({"version"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_EQ(run.output, "client: " PORTWAY_VERSION "\nserver: " PORTWAY_VERSION "\n");
  daemon_->signal(SIGTERM);
  ASSERT_TRUE(daemon_->wait(30s).has_value());
  run = portway({"instances", "list"});
  EXPECT_EQ(run.exit, 3);
  EXPECT_THAT(run.output, HasSubstr("Check that portwayd is running."));
}

}  // namespace
}  // namespace portway::test
