// portway node backup against a server of ours: only a whole backup becomes the file. The real daemon's:
// tests/daemon/backup_test.py.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// Two pages of 4096 bytes.
std::string a_store() {
  std::string bytes(8192, '\0');
  bytes.replace(0, 15, "SQLite format 3");
  bytes[16] = 0x10;  // the page's size
  bytes[31] = 2;     // how many pages
  bytes.replace(68, 4, "PWAY");
  return bytes;
}

std::string backup_answer(const std::string& body, std::size_t length = 8192) {
  return "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.sqlite3\r\nContent-Length: " +
         std::to_string(length) + "\r\n\r\n" + body;
}

ClientRun backup_with(const std::string& answer, const std::string& file,
                      const std::vector<std::string>& more = {}) {
  const FakeServer server("tcp", [&](const std::string&) { return answer; });
  std::vector<std::string> words = {"node", "backup", file, "--server", server.url()};
  words.insert(words.end(), more.begin(), more.end());
  ClientRun run = run_portway(words);
  for (const std::string& request : server.requests()) {
    EXPECT_THAT(request, HasSubstr("POST /v1/node/backup HTTP/1.1"));
  }
  return run;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename());
  return names;
}

TEST(Backup, ReplacesAFileOnlyWhenItIsWhole) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("portway.backup", "yesterday's");
  const auto stays = [&](const ClientRun& run, int exit, const std::string& why) {
    EXPECT_EQ(run.exit, exit) << run.err;
    EXPECT_THAT(run.err, HasSubstr(why));
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(bytes_of(file), "yesterday's");
    EXPECT_THAT(names_in(directory.path()), ElementsAre("portway.backup"));
  };
  stays(backup_with(
            problem_answer(429, R"({"title":"Too Many Requests","detail":"Later.","code":"stream_limit"})"),
            file),
        6, "stream_limit");
  stays(backup_with(backup_answer(a_store().substr(0, 5000)), file), 3, "the backup was cut off");
  stays(backup_with(backup_answer(a_store().substr(0, 4096), 4096), file), 3, "not a whole backup");
  stays(backup_with(backup_answer("", 0), file), 3, "not a whole backup");
  stays(backup_with(backup_answer(std::string(8192, 'x')), file), 3, "not a whole backup");
  std::string other_program = a_store();
  other_program[68] = 'x';
  stays(backup_with(backup_answer(other_program), file), 3, "not a whole backup");
  stays(backup_with("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>", file), 3,
        "an answer of another kind");

  const ClientRun run = backup_with(backup_answer(a_store()), file);
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, file + ": 8192 bytes\n");
  EXPECT_EQ(bytes_of(file), a_store());
  EXPECT_THAT(names_in(directory.path()), ElementsAre("portway.backup"));
  struct stat status {};
  ASSERT_EQ(::stat(file.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST(Backup, SaysAsDataWhatItHasWritten) {
  const TemporaryDirectory directory;
  const std::string file = directory.path() / "new";
  const ClientRun run = backup_with(backup_answer(a_store()), file, {"-o", "json"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("\"file\": \"" + file + "\""), HasSubstr("\"bytes\": 8192")));
}

TEST(Backup, IsNotAskedForIfItCannotBeWritten) {
  const ClientRun run = backup_with(backup_answer(a_store()), "/nowhere/backup");
  EXPECT_EQ(run.exit, 2);
  EXPECT_THAT(run.err, AllOf(HasSubstr("/nowhere/backup"), HasSubstr("Give another file")));
}

}  // namespace
}  // namespace portway::test
