// What is parsed without contacting a server: words, options, the environment, and the exit code for usage.

#include "client/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "client/server_address.h"
#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kUsage = 2;

Invocation parsed(const std::vector<std::string>& words, const Environment& environment = {}) {
  std::ostringstream out;
  Console console{.out = out, .err = out};
  Parsed result = parse_command_line(words, environment, console);
  EXPECT_TRUE(result.invocation.has_value()) << out.str();
  return result.invocation.value_or(Invocation{});
}

TEST(CommandLine, TakesGlobalOptionsBeforeAndAfterTheCommand) {
  for (const auto& words : {std::vector<std::string>{"-o", "json", "forwards", "list", "vm-1"},
                            std::vector<std::string>{"forwards", "list", "vm-1", "--output=json"}}) {
    const Invocation invocation = parsed(words);
    EXPECT_EQ(invocation.command->full_name(), "forwards list");
    EXPECT_TRUE(invocation.wants_data());
    EXPECT_EQ(invocation.arguments.text("INSTANCE"), "vm-1");
  }
}

TEST(CommandLine, PrefersTheOptionOverTheEnvironmentOverTheDefault) {
  const Environment environment = {{"PORTWAY_SERVER", "http://from-environment:1"}};
  EXPECT_EQ(parsed({"instances", "list"}).arguments.text("--server"), "http://127.0.0.1:8080");
  EXPECT_EQ(parsed({"instances", "list"}, environment).arguments.text("--server"),
            "http://from-environment:1");
  EXPECT_EQ(parsed({"instances", "list", "--server", "http://x"}, environment).arguments.text("--server"),
            "http://x");
}

TEST(CommandLine, RefusesWhatItDoesNotKnowAndNamesTheHelp) {
  for (const auto& words : std::vector<std::vector<std::string>>{
           {},
           {"instances"},
           {"instances", "dance"},
           {"forwards", "create"},
           {"forwards", "create", "vm-1", "http"},
           {"forwards", "create", "vm-1", "65536"},
           {"forwards", "create", "vm-1", "80", "--host-port", "0"},
           {"forwards", "delete", "vm-1", "f", "--connections", "perhaps"},
           {"instances", "get", ""},
           {"instances", "get", "vm-1", "vm-2"},
           {"instances", "list", "-o", "xml"},
           {"instances", "list", "--key", "pwk_secret"},
           {"completion", "tcsh"},
       }) {
    const ClientRun run = run_portway(words);
    EXPECT_EQ(run.exit, kUsage) << testing::PrintToString(words);
    EXPECT_THAT(run.err, HasSubstr("See portway"));
    EXPECT_THAT(run.err, HasSubstr("--help."));
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_EQ(std::ranges::count(run.err, '\n'), 1) << run.err;
  }
  EXPECT_THAT(run_portway({"forwards", "create"}).err, HasSubstr("See portway forwards create --help."));
}

TEST(CommandLine, ListsTheAvailableCommands) {
  EXPECT_THAT(run_portway({"dance"}).err, HasSubstr("There is no command \"portway dance\": "));
  EXPECT_THAT(run_portway({"--output", "json", "dance"}).err, HasSubstr("\"portway dance\""));
  EXPECT_THAT(run_portway({"--tempo", "fast", "dance"}).err, HasSubstr("There is no option --tempo."));
  const std::string instances = run_portway({"instances", "dance"}).err;
  EXPECT_THAT(instances, HasSubstr("There is no command \"portway instances dance\": "));
  EXPECT_THAT(instances, HasSubstr("list"));
  EXPECT_THAT(run_portway({"instances"}).err, HasSubstr("Give a command: "));
  EXPECT_THAT(run_portway({}).err, HasSubstr("instances"));
}

TEST(CommandLine, HasHelpForEveryCommandAndItsParameters) {
  for (const Command& command : commands()) {
    std::vector<std::string> words = {std::string(command.noun)};
    if (!command.verb.empty()) words.emplace_back(command.verb);
    words.emplace_back("--help");
    const ClientRun run = run_portway(words);
    EXPECT_EQ(run.exit, 0);
    EXPECT_THAT(run.out, HasSubstr(std::string(command.summary)));
    for (const Parameter& parameter : command.parameters) {
      EXPECT_THAT(run.out, HasSubstr(std::string(parameter.name)));
      EXPECT_THAT(run.out, HasSubstr(std::string(parameter.help)));
    }
  }
}

TEST(CommandLine, ListsItsExitCodesInItsHelp) {
  const std::string help = run_portway({"--help"}).out;
  for (const ExitMeaning& meaning : exit_meanings())
    EXPECT_THAT(help, HasSubstr(std::string(meaning.meaning)));
}

TEST(CommandLine, PrintsItsVersionWithoutAServer) {
  const ClientRun run = run_portway({"--version"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_EQ(run.out, "portway " PORTWAY_VERSION "\n");
}

TEST(CommandLine, FailsWhenItsOutputIsLost) {
  std::ostream nowhere(nullptr);
  std::ostringstream err;
  Console console{.out = nowhere, .err = err};
  EXPECT_EQ(run_client(std::vector<std::string>{"completion", "bash"}, {}, console), 1);
  EXPECT_THAT(err.str(), HasSubstr("standard output cannot be written"));
}

TEST(Commands, HaveAParameterForEveryPlaceholderInTheirPath) {
  for (const Command& command : commands()) {
    std::size_t placeholders = 0;
    for (const Parameter& parameter : command.parameters) {
      if (parameter.place != Place::kPath) continue;
      ++placeholders;
      EXPECT_THAT(std::string(command.path), HasSubstr("{" + std::string(parameter.name) + "}"));
    }
    EXPECT_EQ(std::ranges::count(command.path, '{'), placeholders) << command.full_name();
  }
}

TEST(ServerAddress, IsAUrlOrAUnixSocket) {
  const auto plain = parse_server_address("http://127.0.0.1:8080");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->host + "|" + plain->port + "|" + plain->prefix, "127.0.0.1|8080|");
  EXPECT_TRUE(plain->local());
  const auto tls = parse_server_address("https://api.example/portway/");
  ASSERT_TRUE(tls);
  EXPECT_EQ(tls->host + "|" + tls->port + "|" + tls->prefix, "api.example|443|/portway");
  EXPECT_FALSE(tls->local());
  const auto v6 = parse_server_address("http://[fd00::1]");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host + "|" + v6->port, "fd00::1|80");
  const auto socket = parse_server_address("unix:/run/portway/api.sock");
  ASSERT_TRUE(socket);
  EXPECT_EQ(socket->transport, Transport::kUnix);
  EXPECT_EQ(socket->host, "/run/portway/api.sock");
}

TEST(ServerAddress, SaysWhatToGiveWhenItIsInvalid) {
  for (const char* url : {"", "127.0.0.1:8080", "ftp://host", "http://", "http://key@host",
                          "http://host/?q=1", "unix:relative", "http://host:port"}) {
    const auto address = parse_server_address(url);
    ASSERT_FALSE(address) << url;
    EXPECT_EQ(address.error().exit, Exit::kUsage);
    EXPECT_THAT(address.error().remedy, HasSubstr("unix:/PATH"));
  }
}

TEST(ServerAddress, EscapesWhatWouldChangeAPath) {
  EXPECT_EQ(percent_encoded("a/b?c#d e%"), "a%2Fb%3Fc%23d%20e%25");
  EXPECT_EQ(percent_encoded("vm-1.x_~"), "vm-1.x_~");
}

}  // namespace
}  // namespace portway::test
