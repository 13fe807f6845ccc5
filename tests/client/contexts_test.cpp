// Contexts: the file, its errors, which settings come first, and portway context.

#include "client/contexts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>

#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr const char* kNoInstances = R"({"instances":[]})";

class Contexts : public testing::Test {
 protected:
  Contexts() {
    key("one.key", "pwk_one");
    key("two.key", "pwk_two");
    key("other.key", "pwk_other");
    write_file("# mine\ncurrent = \"one\" # for now\n\n[contexts.one]\nserver = \"" + one_.url() +
               "\"\nkey_file = \"one.key\"\n\n[contexts.two]\nserver = \"" + two_.url() +
               "\"\nkey_file = \"" + path("two.key") + "\"\n");
  }

  std::string path(const std::string& name) const { return directory_.path() / "portway" / name; }
  std::string file() const { return path("contexts.toml"); }

  std::string key(const std::string& name, const std::string& text) const {
    const std::string written = directory_.write("portway/" + name, text);
    ::chmod(written.c_str(), 0600);
    return written;
  }

  void write_file(const std::string& text) const { directory_.write("portway/contexts.toml", text); }

  std::string text_of_file() const {
    std::ifstream stream(file());
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  using Variables = std::vector<std::pair<std::string, std::string>>;
  ClientRun run(const std::vector<std::string>& words, Variables environment = {}) {
    environment.emplace_back("XDG_CONFIG_HOME", directory_.path().string());
    return run_portway(words, environment);
  }

  /// Which server was asked, with which key: "one pwk_one".
  std::string asked(const std::vector<std::string>& options, const Variables& environment = {}) {
    const std::size_t before_one = one_.requests().size();
    const std::size_t before_two = two_.requests().size();
    std::vector<std::string> words = {"instances", "list"};
    words.insert(words.end(), options.begin(), options.end());
    const ClientRun ended = run(words, environment);
    if (ended.exit != 0) return ended.err;
    const bool first = one_.requests().size() > before_one;
    EXPECT_NE(first, two_.requests().size() > before_two);
    const std::string request = (first ? one_ : two_).requests().back();
    const std::size_t at = request.find("Bearer ");
    const std::string sent =
        at == std::string::npos ? "-" : request.substr(at + 7, request.find('\r', at) - at - 7);
    return (first ? "one " : "two ") + sent;
  }

  TemporaryDirectory directory_;
  FakeServer one_{"tcp", [](const std::string&) { return http_answer(200, kNoInstances); }};
  FakeServer two_{"tcp", [](const std::string&) { return http_answer(200, kNoInstances); }};
};

TEST_F(Contexts, AreUsedUnlessSomethingThatComesFirstIsGiven) {
  EXPECT_EQ(asked({}), "one pwk_one");
  EXPECT_EQ(asked({"--context", "two"}), "two pwk_two");
  EXPECT_EQ(asked({}, {{"PORTWAY_CONTEXT", "two"}}), "two pwk_two");
  EXPECT_EQ(asked({"--context", "one"}, {{"PORTWAY_CONTEXT", "two"}}), "one pwk_one");
  // An option comes before the context, an environment variable before one that no option names.
  const std::string other = path("other.key");
  EXPECT_EQ(asked({"--key-file", other}), "one pwk_other");
  EXPECT_EQ(asked({"--context", "two", "--key-file", other}), "two pwk_other");
  EXPECT_EQ(asked({}, {{"PORTWAY_API_KEY_FILE", other}}), "one pwk_other");
  EXPECT_EQ(asked({}, {{"PORTWAY_API_KEY", "pwk_variable"}}), "one pwk_variable");
  EXPECT_EQ(asked({"--context", "two"}, {{"PORTWAY_API_KEY_FILE", other}}), "two pwk_two");
  EXPECT_EQ(asked({"--context", "two"}, {{"PORTWAY_API_KEY", "pwk_variable"}}), "two pwk_two");
  EXPECT_EQ(asked({"--context", "two"}, {{"PORTWAY_SERVER", one_.url()}}), "two pwk_two");
}

TEST_F(Contexts, DoNotGiveTheirKeyToAnotherServer) {
  EXPECT_EQ(asked({"--server", two_.url()}), "two -");
  EXPECT_EQ(asked({}, {{"PORTWAY_SERVER", two_.url()}}), "two -");
  EXPECT_EQ(asked({}, {{"PORTWAY_SERVER", two_.url()}, {"PORTWAY_CONTEXT", "one"}}), "two -");
  EXPECT_EQ(asked({"--server", two_.url(), "--context", "one"}), "two pwk_one")
      << "whoever names both means it";
}

TEST_F(Contexts, AreNotNeeded) {
  std::filesystem::remove(file());
  EXPECT_EQ(asked({"--server", one_.url()}), "one -");
  EXPECT_THAT(run({"context", "list", "-o", "json"}).out, HasSubstr("\"contexts\": []"));
  const ClientRun unknown = run({"instances", "list", "--context", "one"});
  EXPECT_EQ(unknown.exit, 2);
  EXPECT_EQ(unknown.err, "portway: There is no context \"one\". Write [contexts.one] with a server into " +
                             file() + "; portway(1) shows such a file.\n");
  EXPECT_EQ(run_portway({"context", "list"}).exit, 0) << "without any place for a file";
}

TEST_F(Contexts, AreListedShownAndChosen) {
  EXPECT_EQ(run({"context", "show"}).out,
            "name:      one\nserver:    " + one_.url() + "\nkey_file:  " + path("one.key") + "\n");
  EXPECT_EQ(run({"context", "use", "two"}).out, "two: " + two_.url() + "\n");
  EXPECT_THAT(text_of_file(), testing::StartsWith("# mine\ncurrent = \"two\" # for now\n\n[contexts.one]\n"));
  EXPECT_EQ(asked({}), "two pwk_two");
  EXPECT_THAT(run({"context", "list"}).out, AllOf(HasSubstr("IN USE  NAME  SERVER"),
                                                  HasSubstr("\n-       one "), HasSubstr("\n*       two ")));
  EXPECT_THAT(run({"context", "list", "--context", "one"}).out, HasSubstr("\n*       one "));
  const auto shown = boost::json::parse(run({"context", "show", "one", "-o", "json"}).out);
  EXPECT_EQ(shown.at("context").at("server").as_string(), one_.url().c_str());
  const ClientRun unknown = run({"context", "use", "three"});
  EXPECT_EQ(unknown.exit, 2);
  EXPECT_THAT(unknown.err, HasSubstr("has one, two."));
  EXPECT_THAT(one_.requests(), IsEmpty()) << "no server is needed for that";
}

TEST_F(Contexts, ChosenForTheFirstTimeStandAtTheTop) {
  const std::string text = "[contexts.one]\nserver = \"http://a\"\n";
  write_file(text);
  EXPECT_THAT(run({"context", "show"}).err, HasSubstr("No context is in use."));
  EXPECT_EQ(run({"context", "use", "one"}).exit, 0);
  EXPECT_EQ(text_of_file(), "current = \"one\"\n" + text);
}

TEST_F(Contexts, AreWrittenThroughALinkWithTheFilesPermissions) {
  const std::string target = directory_.write("dotfiles/contexts.toml", text_of_file());
  ::chmod(target.c_str(), 0640);
  std::filesystem::remove(file());
  std::filesystem::create_symlink(target, file());
  EXPECT_EQ(run({"context", "use", "two"}).exit, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(file()));
  EXPECT_THAT(text_of_file(), HasSubstr("current = \"two\""));
  struct stat status {};
  ASSERT_EQ(::stat(target.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_.path() / "dotfiles"), {}), 1);
}

struct WrongFile {
  const char* text;
  const char* error;  // after the file's name
};

TEST_F(Contexts, NameTheLineAndTheRemedyOfAMistake) {
  for (const WrongFile& wrong : std::initializer_list<WrongFile>{
           {"a = \"\n", ":1: not TOML: "},
           {"\nservers = 1\n",
            ":2: \"servers\" is not known. At the top there are current and [contexts.NAME]."},
           {"contexts = 1\n", ":1: \"contexts\" must be tables. Write [contexts.NAME]."},
           {"[contexts]\none = \"x\"\n", ":2: \"one\" is not a table. Write [contexts.NAME]."},
           {"[contexts.\"a b\"]\nserver = \"http://a\"\n", ":1: \"a b\" cannot be the name of a context."},
           {"[contexts.one]\nkey_file = \"a\"\n", ":1: the context one has no server. Add server = "},
           {"[contexts.one]\nserver = 1\n", ":2: server must be a text."},
           {"[contexts.one]\nserver = \"\"\n", ":2: server must be a text."},
           {"[contexts.one]\nserver = \"ftp://a\"\n",
            ":2: \"ftp://a\" is not a server's address. Give http://"},
           {"[contexts.one]\nserver = \"http://a\"\nkey = \"pwk\"\n",
            ":3: \"key\" is not known. A context has server, "},
           {"current = \"two\"\n[contexts.one]\nserver = \"http://a\"\n",
            ":1: there is no context \"two\". "},
           {"current = 2\n", ":1: current must be the name of a context."},
       }) {
    write_file(wrong.text);
    for (const auto& words :
         {std::vector<std::string>{"instances", "list"}, {"context", "list"}, {"context", "use", "one"}}) {
      const ClientRun ended = run(words);
      EXPECT_EQ(ended.exit, 2) << wrong.text;
      EXPECT_THAT(ended.err, HasSubstr("portway: " + file() + wrong.error)) << wrong.text;
      EXPECT_EQ(std::ranges::count(ended.err, '\n'), 1) << ended.err;
    }
    EXPECT_EQ(asked({"--server", one_.url()}), "one -") << "it is not read then";
    EXPECT_EQ(text_of_file(), wrong.text);
  }
}

TEST_F(Contexts, AreRefusedIfEverybodyCanWriteThem) {
  ::chmod(file().c_str(), 0666);
  const ClientRun ended = run({"instances", "list"});
  EXPECT_EQ(ended.exit, 2);
  EXPECT_THAT(ended.err, HasSubstr("chmod o-w " + file()));
  EXPECT_THAT(one_.requests(), IsEmpty());
}

TEST_F(Contexts, WarnOfAKeyThatOthersCanReadAndFailWithoutTheirKey) {
  ::chmod(path("one.key").c_str(), 0644);
  const ClientRun open = run({"instances", "list"});
  EXPECT_EQ(open.exit, 0);
  EXPECT_THAT(open.err, HasSubstr("chmod 600 " + path("one.key")));
  std::filesystem::remove(path("one.key"));
  const ClientRun gone = run({"instances", "list"});
  EXPECT_EQ(gone.exit, 2);
  EXPECT_THAT(gone.err, HasSubstr(path("one.key")));
  EXPECT_THAT(one_.requests(), SizeIs(1));
}

TEST_F(Contexts, AreInTheHomeUnlessAVariableSaysWhere) {
  const std::string home = directory_.path() / "home";
  directory_.write("home/.config/portway/contexts.toml",
                   "current = \"home\"\n[contexts.home]\nserver = \"http://home\"\nkey_file = \"~/key\"\n");
  EXPECT_THAT(run_portway({"context", "show"}, {{"HOME", home}}).out,
              AllOf(HasSubstr("http://home"), HasSubstr("key_file:  " + home + "/key\n")));
  EXPECT_THAT(run_portway({"context", "show"}, {{"HOME", home}, {"XDG_CONFIG_HOME", "relative"}}).out,
              HasSubstr("http://home"));
  EXPECT_THAT(run_portway({"context", "show"}, {{"HOME", home}, {"PORTWAY_CONTEXTS", file()}}).out,
              HasSubstr(one_.url()));
}

TEST_F(Contexts, AreCompletedByName) {
  EXPECT_EQ(run({"complete-ids", "contexts", "-"}).out, "one\ntwo\n");
  write_file("wrong");
  const ClientRun wrong = run({"complete-ids", "contexts", "-"});
  EXPECT_EQ(wrong.out + wrong.err, "");
}

}  // namespace
}  // namespace portway::test
