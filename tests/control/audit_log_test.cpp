#include "control/audit_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace portway {
namespace {

namespace fs = std::filesystem;

using testing::ElementsAre;
using testing::HasSubstr;

class AuditLogTest : public testing::Test {
 protected:
  AuditLogTest() { fs::create_directories(directory_); }
  ~AuditLogTest() override { fs::remove_all(directory_); }

  std::unique_ptr<AuditLog> open(std::uint64_t bytes_max = 1 << 20, std::uint32_t files = 3) {
    auto opened = AuditLog::open({.path = path_, .bytes_max = bytes_max, .files = files});
    EXPECT_TRUE(opened) << opened.error().detail;
    return opened ? std::move(*opened) : nullptr;
  }
  static std::vector<std::string> lines_of(const std::string& path) {
    std::vector<std::string> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  static AuditEntry entry(const std::string& result = "ok", const std::string& actor = "key 1") {
    return {.actor = actor, .action = "POST /x", .status = result == "ok" ? 201U : 409U, .result = result};
  }

  const fs::path directory_ = testing::TempDir() + "/portway-audit-" + to_string(make_uuid());
  const std::string path_ = directory_ / "audit.log";
};

TEST_F(AuditLogTest, SaysWhoDidWhat) {
  AuditEntry entry{.time = Timestamp(std::chrono::milliseconds(1'700'000'000'123)),
                   .actor = "key 7",
                   .owner = "alice",
                   .key_id = "7",
                   .client = "192.0.2.1",
                   .action = "POST /instances/{id}/port-forwards",
                   .target = "/instances/vm-1/port-forwards?x=\"",
                   .status = 201,
                   .result = "ok",
                   .created = "/instances/vm-1/port-forwards/9",
                   .request_id = "r-1"};
  EXPECT_EQ(to_json_line(entry),
            R"({"time":"2023-11-14T22:13:20.123Z","actor":"key 7","owner":"alice","key_id":"7",)"
            R"("client":"192.0.2.1","action":"POST /instances/{id}/port-forwards",)"
            R"("target":"/instances/vm-1/port-forwards?x=\"","result":"ok","status":201,)"
            R"("created":"/instances/vm-1/port-forwards/9","request_id":"r-1"})");
}

TEST_F(AuditLogTest, GoesOnInTheFileThatIsThere) {
  open()->write(entry());
  open()->write(entry());
  EXPECT_EQ(lines_of(path_).size(), 2U);
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0640U);
}

TEST_F(AuditLogTest, IsRotatedAtItsSizeAndForgetsTheOldest) {
  const std::size_t line = to_json_line(entry()).size() + 1;
  for (int i = 0; i < 5; ++i) {
    auto log = open(2 * line, 3);  // each time: what is in the file counts
    for (int j = 0; j < 2; ++j) log->write(entry("ok", "key " + std::to_string(2 * i + j)));
  }
  std::vector<std::string> files;
  for (const auto& each : fs::directory_iterator(directory_)) files.push_back(each.path().filename());
  std::ranges::sort(files);
  EXPECT_THAT(files, ElementsAre("audit.log", "audit.log.1", "audit.log.2"));
  EXPECT_THAT(lines_of(path_), ElementsAre(HasSubstr("key 8"), HasSubstr("key 9")));
  EXPECT_THAT(lines_of(path_ + ".1"), ElementsAre(HasSubstr("key 6"), HasSubstr("key 7")));
  EXPECT_THAT(lines_of(path_ + ".2"), ElementsAre(HasSubstr("key 4"), HasSubstr("key 5")));
}

TEST_F(AuditLogTest, OfOneFileKeepsNoOther) {
  for (int i = 0; i < 3; ++i) open(1, 1)->write(entry("ok", "key " + std::to_string(i)));
  EXPECT_THAT(lines_of(path_), ElementsAre(HasSubstr("key 2")));
  EXPECT_FALSE(fs::exists(path_ + ".1"));
}

// One who is refused again and again must not push out what others have done.
TEST_F(AuditLogTest, LeavesOutRefusalsOfOneActorAndNoChanges) {
  {
    auto log = open();
    for (int i = 0; i < 100; ++i) log->write(entry("forbidden", "key 1"));
    log->write(entry("forbidden", "key 2"));
    for (int i = 0; i < 100; ++i) log->write(entry("ok", "key 1"));
  }
  std::size_t refused = 0;
  std::size_t made = 0;
  std::size_t of_another = 0;
  bool has_note = false;
  for (const std::string& line : lines_of(path_)) {
    refused += line.find("forbidden") != std::string::npos ? 1 : 0;
    made += line.find("\"ok\"") != std::string::npos ? 1 : 0;
    of_another += line.find("key 2") != std::string::npos ? 1 : 0;
    has_note = has_note || line.find("refused changes, of all actors") != std::string::npos;
  }
  EXPECT_LT(refused, 50U);
  EXPECT_EQ(made, 100U);
  EXPECT_EQ(of_another, 1U);
  EXPECT_TRUE(has_note);
}

TEST_F(AuditLogTest, WithoutItsDirectorySaysWhatToDo) {
  const auto opened = AuditLog::open({.path = directory_ / "none" / "audit.log"});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(opened.error().detail, HasSubstr("its directory must exist"));
}

}  // namespace
}  // namespace portway
