// A log's writer between threads that must not wait and a reader that may stall.
#include "control/line_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/forward.h"

namespace portway {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;

struct Ends {
  Fd read;
  Fd write;
};

Ends make_pipe() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

/// Fills the pipe with empty lines: nothing more can be written until somebody reads. Uses another open
/// file description: that of `pipe` stays as it is, also for those who share it.
void fill(const Ends& pipe) {
  const std::string path = fmt::format("/proc/self/fd/{}", pipe.write.get());
  const Fd other(::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  for (const char c = '\n'; ::write(other.get(), &c, 1) > 0;) {
  }
}

/// Until the other end is closed; without those of fill().
std::vector<std::string> read_lines(const Fd& from) {
  std::string text;
  std::array<char, 4096> buffer;
  for (ssize_t got; (got = ::read(from.get(), buffer.data(), buffer.size())) > 0;)
    text.append(buffer.data(), static_cast<std::size_t>(got));
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

std::string note(std::uint64_t lost) {
  return fmt::format("lost {}\n", lost);
}

TEST(LineWriter, WritesEachLineInOrder) {
  Ends pipe = make_pipe();
  auto writer = LineWriter::start(std::move(pipe.write)).value();
  for (int i = 0; i < 1000; ++i) writer->write(fmt::format("line {}\n", i));
  EXPECT_TRUE(writer->drain(20s));
  EXPECT_EQ(writer->dropped(), 0U);
  writer.reset();
  const auto lines = read_lines(pipe.read);
  ASSERT_EQ(lines.size(), 1000U);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(lines[static_cast<std::size_t>(i)], fmt::format("line {}", i));
}

/// No file of this process may have more bytes, for as long as it lives: as on a disk that is full.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  sighandler_t handler_;
};

TEST(LineWriter, EachLineIsWholeInTheFileOrCountedWhenTheDiskTakesAPartOfIt) {
  const std::string path = testing::TempDir() + "/portway-lines-" + to_string(make_uuid());
  Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  auto writer = LineWriter::start(std::move(file)).value();
  std::uint64_t asked = 0;
  const auto write = [&](int lines) {
    for (int i = 0; i < lines; ++i) writer->write(fmt::format("line {:05}\n", asked++));
    EXPECT_TRUE(writer->drain(20s));
  };
  for (const rlim_t room : {1'003, 5'007, 5'007, 20'005}) {  // none of them at a line's end
    const FileSizeLimit limit(room);
    write(2000);
  }
  write(10);
  std::uint64_t whole = 0;
  std::ifstream written(path);
  for (std::string line; std::getline(written, line);) {
    whole += line.size() == std::string_view("line 00000").size() && line.starts_with("line ") ? 1 : 0;
  }
  EXPECT_GT(whole, 1000U);
  EXPECT_EQ(whole + writer->dropped(), asked);
  std::filesystem::remove(path);
}

TEST(LineWriter, WritesWhatIsQueuedBeforeItEnds) {
  Ends pipe = make_pipe();
  LineWriter::start(std::move(pipe.write)).value()->write("last words\n");
  EXPECT_THAT(read_lines(pipe.read), ElementsAre("last words"));
}

// The control thread logged into a pipe that nobody read, and everything else stopped with it.
TEST(LineWriter, NeverWaitsForAReaderAndReportsLostLinesWhereTheyAreMissing) {
  Ends pipe = make_pipe();
  fill(pipe);
  constexpr int kLines = 10'000;
  auto writer =
      LineWriter::start(std::move(pipe.write), {.lines_max = 100, .end_wait = 20s, .lost_note = note})
          .value();
  for (int i = 0; i < kLines; ++i) writer->write(fmt::format("{}\n", i));
  const std::uint64_t lost = writer->dropped();
  EXPECT_GE(lost, kLines - 100U - 4096U) << "the queue is bounded";
  std::vector<std::string> lines;
  std::thread reader([&] { lines = read_lines(pipe.read); });
  EXPECT_TRUE(writer->drain(20s));
  writer->write("after\n");
  writer.reset();
  reader.join();

  std::uint64_t told = 0;
  int next = 0;  // the line that comes unless some are missing
  for (const std::string& line : lines) {
    if (line.starts_with("lost ")) {
      told += std::stoul(line.substr(5));
      next += std::stoi(line.substr(5));
    } else if (line != "after") {
      EXPECT_EQ(line, std::to_string(next++));
    }
  }
  EXPECT_EQ(next, kLines) << "every line is there or reported as lost, in its place";
  EXPECT_EQ(told, lost);
  EXPECT_EQ(lines.back(), "after");
}

TEST(LineWriter, DoesNotHoldUpTheEndForAReaderThatStalls) {
  Ends pipe = make_pipe();
  fill(pipe);
  auto writer = LineWriter::start(std::move(pipe.write), {.end_wait = 20ms}).value();
  for (int i = 0; i < 100; ++i) writer->write("nobody reads this\n");
  EXPECT_FALSE(writer->drain(1ms));
  writer.reset();  // returns
}

TEST(LineWriter, TakesWhateverTheDescriptorIs) {
  const std::string path = testing::TempDir() + "/portway-lines-" + to_string(make_uuid());
  {
    const auto writer =
        LineWriter::start(Fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600))).value();
    writer->write("into a file\n");
  }
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "into a file");
  std::filesystem::remove(path);

  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const Fd read(ends[0]);
  LineWriter::start(Fd(ends[1])).value()->write("into a socket, as journald's\n");
  EXPECT_THAT(read_lines(read), ElementsAre("into a socket, as journald's"));
}

TEST(LineWriter, WaitsAsWellWhereSomebodyElseMadeTheDescriptorNonBlocking) {
  Ends pipe = make_pipe();
  fill(pipe);
  ::fcntl(pipe.write.get(), F_SETFL, O_NONBLOCK);
  auto writer = LineWriter::start(std::move(pipe.write), {.end_wait = 20s}).value();
  for (int i = 0; i < 5000; ++i) writer->write(fmt::format("line {}\n", i));
  std::vector<std::string> lines;
  std::thread reader([&] { lines = read_lines(pipe.read); });
  EXPECT_TRUE(writer->drain(20s));
  EXPECT_EQ(writer->dropped(), 0U);
  writer.reset();
  reader.join();
  EXPECT_EQ(lines.back(), "line 4999");
}

TEST(LineWriter, CountsWhatIsRefusedAndContinuesWhereItIsRedirectedTo) {
  Ends pipe = make_pipe();
  auto writer = LineWriter::start(Fd(::open("/dev/full", O_WRONLY | O_CLOEXEC)), {.lost_note = note}).value();
  for (int i = 0; i < 3; ++i) writer->write("refused\n");
  EXPECT_TRUE(writer->drain(20s));
  EXPECT_EQ(writer->dropped(), 3U);
  writer->redirect(Fd());
  writer->write("nowhere\n");
  EXPECT_TRUE(writer->drain(20s));
  EXPECT_EQ(writer->dropped(), 4U);
  writer->redirect(std::move(pipe.write));
  writer->write("here\n");
  writer.reset();
  EXPECT_THAT(read_lines(pipe.read), ElementsAre("lost 4", "here"));
}

TEST(LineWriter, WritesWhatIsQueuedToWhereItWasMeantToGo) {
  Ends first = make_pipe();
  Ends second = make_pipe();
  fill(first);
  auto writer = LineWriter::start(std::move(first.write), {.end_wait = 20s}).value();
  writer->write("one\n");
  writer->write("two\n");
  writer->redirect(std::move(second.write));
  writer->write("three\n");
  std::vector<std::string> lines;
  std::thread reader([&] { lines = read_lines(first.read); });
  writer.reset();
  reader.join();
  EXPECT_THAT(lines, ElementsAre("one", "two"));
  EXPECT_THAT(read_lines(second.read), ElementsAre("three"));
}

// A disk that hangs at open(2) blocked the caller.
TEST(LineWriter, NobodyWaitsForATargetThatTakesItsTimeToOpen) {
  Ends first = make_pipe();
  Ends second = make_pipe();
  auto writer = LineWriter::start(std::move(first.write), {.end_wait = 20s}).value();
  std::promise<void> asked;
  std::promise<void> goes_on;
  int told = 0;
  const auto done = [&](const Result<void>& opened) { told += opened ? 1 : 100; };
  writer->write("one\n");
  writer->reopen(
      [&]() -> Result<Fd> {
        asked.set_value();
        goes_on.get_future().wait();
        return Error{.code = ErrorCode::kInvalidConfig, .detail = "not today"};
      },
      done);
  writer->write("two\n");
  asked.get_future().wait();
  // Again while it hangs, twice: of those the last one's is the same as the first one's.
  writer->reopen([&]() -> Result<Fd> { return std::move(second.write); }, done);
  writer->reopen([&]() -> Result<Fd> { return Fd(); }, done);
  writer->write("three\n");
  EXPECT_FALSE(writer->drain(0s));
  goes_on.set_value();
  EXPECT_TRUE(writer->drain(20s));
  EXPECT_EQ(told, 101);
  EXPECT_EQ(writer->dropped(), 0U);
  writer.reset();
  EXPECT_THAT(read_lines(first.read), ElementsAre("one", "two"));
  EXPECT_THAT(read_lines(second.read), ElementsAre("three"));
}

TEST(LineWriter, KeepsEachThreadsLinesInOrder) {
  Ends pipe = make_pipe();
  auto writer = LineWriter::start(std::move(pipe.write),
                                  {.lines_max = 1'000'000, .bytes_max = 1 << 30, .end_wait = 20s})
                    .value();
  std::vector<std::string> lines;
  std::thread reader([&] { lines = read_lines(pipe.read); });
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&writer, thread] {
      for (int i = 0; i < 2000; ++i) writer->write(fmt::format("{} {}\n", thread, i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  writer.reset();
  reader.join();
  std::map<int, int> next;
  for (const std::string& line : lines) {
    int thread = 0;
    int number = 0;
    std::istringstream(line) >> thread >> number;
    EXPECT_EQ(number, next[thread]++);
  }
  EXPECT_EQ(lines.size(), 8000U);
}

}  // namespace
}  // namespace portway
