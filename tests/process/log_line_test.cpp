#include "process/log_line.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

namespace portway {
namespace {

const std::vector<LogField> kFields = {{"request_id", "r-1"}, {"actor", ""}, {"status", "503"}};
const LogLine kLine{
    .time = std::chrono::system_clock::time_point(std::chrono::milliseconds(1'700'000'000'123)),
    .level = LogLevel::kWarning,
    .text = "the disk is \"full\"",
    .fields = kFields};

TEST(LogLine, IsTextForPeople) {
  EXPECT_EQ(to_text(kLine),
            "2023-11-14T22:13:20.123Z warning the disk is \"full\" (request_id=r-1, status=503)\n");
  EXPECT_EQ(to_text({.time = kLine.time, .level = LogLevel::kError, .text = "x"}),
            "2023-11-14T22:13:20.123Z error x\n");
}

TEST(LogLine, IsAnObjectForPrograms) {
  EXPECT_EQ(to_json(kLine),
            R"({"time":"2023-11-14T22:13:20.123Z","level":"warning","message":"the disk is \"full\"",)"
            R"("request_id":"r-1","status":"503"})"
            "\n");
}

TEST(LogLine, IsAnEntryOfTheJournal) {
  EXPECT_EQ(to_journal(kLine),
            "SYSLOG_IDENTIFIER=portwayd\nPRIORITY=4\nMESSAGE=the disk is \"full\"\n"
            "PORTWAY_REQUEST_ID=r-1\nPORTWAY_STATUS=503\n");
}

// Nobody can add a field to an entry by a line feed in a name that it has chosen.
TEST(LogLine, GivesTheJournalTheSizeOfAValueWithLineFeeds) {
  using std::string_literals::operator""s;
  EXPECT_EQ(to_journal({.level = LogLevel::kInfo, .text = "a\nPRIORITY=0"}),
            "SYSLOG_IDENTIFIER=portwayd\nPRIORITY=6\nMESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n"s);
}

}  // namespace
}  // namespace portway
