// What is generated from the table of commands: completions, tested in real shells, and manual pages.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "client/command.h"
#include "client/completion.h"
#include "client/man_page.h"
#include "config/config_keys.h"
#include "tests/client/fake_server.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway::test {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;
using testing::Not;

std::string why_no_shell(const std::string& shell) {
  const std::string path = "/usr/bin/" + shell;
  return std::filesystem::exists(path) ? "" : path + " is needed: install the package " + shell;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// Candidates for the last word, which may be empty.
class Completion : public testing::Test {
 protected:
  std::vector<std::string> bash(const std::vector<std::string>& words) {
    std::string script = "source " + write("bash") + "\nCOMP_WORDS=(";
    for (const std::string& word : words) script += " '" + word + "'";
    script += ")\nCOMP_CWORD=" + std::to_string(words.size() - 1) +
              "\n_portway\n[[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\\n' \"${COMPREPLY[@]}\"";
    return lines_of(run_command(nullptr, {"bash", "-c", script}));
  }

  std::vector<std::string> fish(const std::string& line) {
    std::vector<std::string> words = lines_of(run_command(
        nullptr, {"fish", "--no-config", "-c", "source " + write("fish") + "; complete -C '" + line + "'"}));
    for (std::string& word : words) word = word.substr(0, word.find('\t'));  // a description follows
    return words;
  }

  /// The lines after pressing Tab, "<portway doctor >". zsh completes on a terminal only; zpty is one.
  std::vector<std::string> zsh(const std::vector<std::string>& lines) {
    std::string script =
        "export TERM=dumb; zmodload zsh/zpty; zpty z zsh -f -i\n"
        "until_shown() { zpty -r z shown \"*$1*\"; print -r -- \"$shown\"; }\n"
        "zpty -w z 'autoload -Uz compinit; compinit -u -D; source " +
        write("zsh") +
        "'\n"
        // Ctrl-X prints the line and empties it.
        "zpty -w z 'show() { print -r -- \"<$BUFFER>\"; BUFFER= }; zle -N show; bindkey \"^X\" show'\n"
        "zpty -w z \"PS1='pro''mpt: '\"; until_shown 'prompt: ' >/dev/null\n";
    for (const std::string& line : lines) {
      script += "zpty -w -n z '" + line + "'$'\\t\\x18'; until_shown '<portway*>'\n";
    }
    std::vector<std::string> completed;
    for (std::string& shown : lines_of(run_command(nullptr, {"zsh", "-f", "-c", script + "zpty -d z"}))) {
      const std::size_t first = shown.find("<portway");
      if (first == std::string::npos) continue;
      completed.push_back(shown.substr(first, shown.rfind('>') - first + 1));
    }
    return completed;
  }

 private:
  std::string write(const std::string& shell) { return directory_.write(shell, completion_script(shell)); }

  TemporaryDirectory directory_;
};

TEST_F(Completion, OffersNounsVerbsOptionsAndChoicesInBash) {
  PORTWAY_NEEDS(why_no_shell("bash"));
  EXPECT_THAT(bash({"portway", ""}), IsSupersetOf({"instances", "forwards", "keys", "doctor", "completion"}));
  EXPECT_THAT(bash({"portway", ""}), Not(Contains("man-page")));
  EXPECT_THAT(bash({"portway", "forwards", "w"}), ElementsAre("watch"));
  EXPECT_THAT(bash({"portway", "--server", "http://x", "-o", "json", "forwards", "l"}), ElementsAre("list"));
  EXPECT_THAT(bash({"portway", "forwards", "create", "vm-1", "--l"}), ElementsAre("--label"));
  EXPECT_THAT(bash({"portway", "forwards", "delete", "vm-1", "f", "--connections", ""}),
              ElementsAre("keep", "drain", "reset"));
  EXPECT_THAT(bash({"portway", "instances", "list", "-o", "j"}), ElementsAre("json"));
  EXPECT_THAT(bash({"portway", "completion", "f"}), ElementsAre("fish"));
  EXPECT_THAT(bash({"portway", "config", "check", "/etc/host"}), Contains("/etc/hosts"));
  EXPECT_THAT(bash({"portway", "forwards", "create", "vm-1", "--label", ""}), IsEmpty());
}

TEST_F(Completion, OffersNounsVerbsOptionsAndChoicesInFish) {
  PORTWAY_NEEDS(why_no_shell("fish"));
  EXPECT_THAT(fish("portway "), IsSupersetOf({"instances", "forwards", "keys", "doctor", "completion"}));
  EXPECT_THAT(fish("portway forwards w"), ElementsAre("watch"));
  EXPECT_THAT(fish("portway --server http://x -o json forwards li"), ElementsAre("list"));
  EXPECT_THAT(fish("portway forwards create vm-1 --l"), ElementsAre("--label"));
  EXPECT_THAT(fish("portway forwards delete vm-1 f --connections "), ElementsAre("drain", "keep", "reset"));
  EXPECT_THAT(fish("portway completion f"), ElementsAre("fish"));
  EXPECT_THAT(fish("portway config check /etc/host"), Contains("/etc/hosts"));
}

TEST_F(Completion, OffersNounsVerbsOptionsAndChoicesInZsh) {
  PORTWAY_NEEDS(why_no_shell("zsh"));
  EXPECT_THAT(zsh({"portway forwards wa", "portway forwards create vm-1 --la",
                   "portway forwards delete vm-1 f --connections=dr", "portway -o js", "portway compl",
                   "portway --server http://x completion fi"}),
              ElementsAre("<portway forwards watch >", "<portway forwards create vm-1 --label=>",
                          "<portway forwards delete vm-1 f --connections=drain >", "<portway -o json >",
                          "<portway completion >", "<portway --server http://x completion fish >"));
}

TEST_F(Completion, OffersIdsThatTheServerHas) {
  FakeServer server("tcp", [](const std::string& request) {
    if (request.starts_with("GET /instances?"))
      return http_answer(200, R"j({"instances":[{"id":"vm-1"},{"id":"vm-22"},{"id":"$(reboot)"}]})j");
    if (request.starts_with("GET /instances/vm-1/port-forwards?"))
      return http_answer(200, R"({"port_forwards":[{"id":"f-1"},{"id":"f-2"}]})");
    if (request.starts_with("GET /nodes?")) return http_answer(200, R"({"nodes":[{"id":"compute-7"}]})");
    if (request.starts_with("GET /api-keys?")) return http_answer(200, R"({"api_keys":[{"id":"k-1"}]})");
    return problem_answer(404, "{}");
  });
  const std::string client = PORTWAY_CLIENT;
  ::setenv("PATH", (client.substr(0, client.rfind('/')) + ":" + ::getenv("PATH")).c_str(), 1);
  ::setenv("PORTWAY_SERVER", server.url().c_str(), 1);
  const TemporaryDirectory home;
  ::setenv("PORTWAY_CONTEXTS",
           home.write("contexts.toml", "[contexts.compute-1]\nserver = \"http://a\"\n").c_str(), 1);
  if (why_no_shell("bash").empty()) {
    EXPECT_THAT(bash({"portway", "context", "use", ""}), ElementsAre("compute-1"));
    EXPECT_THAT(bash({"portway", "--context", "c"}), ElementsAre("compute-1"));
    EXPECT_THAT(bash({"portway", "instances", "list", "--watch", "--wi"}), ElementsAre("--wide"));
    EXPECT_THAT(bash({"portway", "instances", "get", ""}), ElementsAre("vm-1", "vm-22"));
    EXPECT_THAT(bash({"portway", "forwards", "get", "vm-2"}), ElementsAre("vm-22"));
    EXPECT_THAT(bash({"portway", "forwards", "get", "vm-1", ""}), ElementsAre("f-1", "f-2"));
    EXPECT_THAT(bash({"portway", "forwards", "get", "vm-9", ""}), IsEmpty());
    EXPECT_THAT(bash({"portway", "keys", "delete", ""}), ElementsAre("k-1"));
    EXPECT_THAT(bash({"portway", "nodes", "drain", ""}), ElementsAre("compute-7"));
    EXPECT_THAT(bash({"portway", "node", "status", "--node", ""}), ElementsAre("compute-7"));
  }
  if (why_no_shell("fish").empty()) {
    EXPECT_THAT(fish("portway context use "), ElementsAre("compute-1"));
    EXPECT_THAT(fish("portway --wide --context c"), ElementsAre("compute-1"));
    EXPECT_THAT(fish("portway --wide instances get "), ElementsAre("vm-1", "vm-22"));
    EXPECT_THAT(fish("portway forwards get vm-1 "), ElementsAre("f-1", "f-2"));
    EXPECT_THAT(fish("portway keys delete "), ElementsAre("k-1"));
    EXPECT_THAT(fish("portway nodes show "), ElementsAre("compute-7"));
  }
  if (why_no_shell("zsh").empty()) {
    EXPECT_THAT(zsh({"portway instances get vm-2", "portway keys delete ", "portway --wide context use ",
                     "portway --context co", "portway instances list --wat", "portway nodes undrain c"}),
                ElementsAre("<portway instances get vm-22 >", "<portway keys delete k-1 >",
                            "<portway --wide context use compute-1 >", "<portway --context compute-1 >",
                            "<portway instances list --watch >", "<portway nodes undrain compute-7 >"));
  }
  ::setenv("PORTWAY_SERVER", "http://127.0.0.1:1", 1);
  const ClientRun none =
      run_portway({"complete-ids", "instances", "-"}, {{"PORTWAY_SERVER", "http://127.0.0.1:1"}});
  EXPECT_EQ(none.exit, 0);
  EXPECT_EQ(none.out + none.err, "");
  ::unsetenv("PORTWAY_SERVER");
  ::unsetenv("PORTWAY_CONTEXTS");
}

/// Without troff's escapes.
std::string plain(std::string page) {
  for (const char* escape : {"\\-", "\\fB", "\\fI", "\\fR", "\\&"}) {
    const std::string text = escape;
    for (std::size_t found = 0; (found = page.find(text, found)) != std::string::npos;) {
      page.replace(found, text.size(), text == "\\-" ? "-" : "");
    }
  }
  return page;
}

TEST(ManPage, OfTheClientHasEveryCommandOptionVariableAndExitCode) {
  const std::string page = plain(client_man_page());
  for (const Command& command : commands()) {
    if (command.hidden) continue;
    EXPECT_THAT(page, HasSubstr("portway " + command.full_name()));
    EXPECT_THAT(page, HasSubstr(std::string(command.summary)));
    for (const Parameter& parameter : command.parameters)
      EXPECT_THAT(page, HasSubstr(std::string(parameter.name)));
  }
  for (const Parameter& parameter : global_parameters()) {
    EXPECT_THAT(page, HasSubstr(std::string(parameter.name)));
    EXPECT_THAT(page, HasSubstr(std::string(parameter.environment)));
  }
  for (const ExitMeaning& meaning : exit_meanings())
    EXPECT_THAT(page, HasSubstr(std::string(meaning.meaning)));
  EXPECT_THAT(page, HasSubstr("PORTWAY_API_KEY\n"));
  EXPECT_THAT(page, Not(HasSubstr("man-page")));
}

TEST(ManPage, OfTheConfigurationHasEveryKey) {
  const std::string page = plain(config_man_page());
  for (const ConfigKey& key : config_keys()) {
    EXPECT_THAT(page, HasSubstr("\n" + std::string(key.name.substr(key.name.rfind('.') + 1)) + " = "))
        << key.name;
  }
}

TEST(ManPage, OfTheDaemonHasEveryFlagItTakes) {
  std::ifstream file(PORTWAY_SOURCE_DIRECTORY "/client/portwayd.8");
  std::ostringstream text;
  text << file.rdbuf();
  const std::string page = plain(text.str());
  for (const std::string& line : lines_of(run_command(nullptr, {PORTWAY_DAEMON, "--help"}))) {
    const std::size_t flag = line.find("--");
    if (flag == std::string::npos) continue;
    EXPECT_THAT(page, HasSubstr(line.substr(flag, line.find_first_of(" ,", flag) - flag)));
  }
}

}  // namespace
}  // namespace portway::test
