// The image installs exactly what packages.txt lists, runs without root and has a health check. It cannot
// be built where the tests run, so its text is read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

namespace portway::test {
namespace {

using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;

std::ifstream open_source(const std::string& name) {
  std::ifstream file(PORTWAY_SOURCE_DIRECTORY "/" + name);
  EXPECT_TRUE(file.is_open()) << name;
  return file;
}

/// The Dockerfile's instructions, without comments, continuation lines joined; those of each stage by
/// themselves.
std::vector<std::vector<std::string>> dockerfile_stages() {
  std::ifstream file = open_source("Dockerfile");
  std::vector<std::vector<std::string>> stages;
  std::string instruction;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line.starts_with('#')) continue;
    const bool continues = line.ends_with('\\');
    if (continues) line.pop_back();
    instruction += line;
    if (continues) continue;
    if (instruction.starts_with("FROM ")) stages.emplace_back();
    if (!stages.empty()) stages.back().push_back(instruction);
    instruction.clear();
  }
  return stages;
}

std::vector<std::string> instructions(const std::vector<std::string>& stage, const std::string& start) {
  std::vector<std::string> found;
  for (const std::string& instruction : stage) {
    if (instruction.starts_with(start)) found.push_back(instruction);
  }
  return found;
}

TEST(Dockerfile, InstallsTheSharedListsSectionsAndNothingElse) {
  const auto stages = dockerfile_stages();
  ASSERT_THAT(stages, SizeIs(2));
  for (const auto& stage : stages) {
    EXPECT_THAT(stage, Contains(StartsWith("COPY packages.txt install-packages.sh ")));
    EXPECT_THAT(stage, Each(Not(HasSubstr("apt-get"))));
  }
  EXPECT_THAT(instructions(stages[0], "RUN ./install-packages.sh"),
              ElementsAre("RUN ./install-packages.sh build"));
  EXPECT_THAT(instructions(stages[1], "RUN /tmp/install-packages.sh"),
              ElementsAre(StartsWith("RUN /tmp/install-packages.sh runtime &&")));
}

TEST(Dockerfile, RunsTheDaemonWithoutRootAndChecksItsHealth) {
  const auto stages = dockerfile_stages();
  ASSERT_THAT(stages, SizeIs(2));
  const auto& runtime = stages[1];
  EXPECT_THAT(runtime, Contains("USER portway"));
  EXPECT_THAT(runtime, Contains(StartsWith("ENTRYPOINT [\"/usr/local/bin/portwayd\"]")));
  EXPECT_THAT(instructions(runtime, "HEALTHCHECK"), ElementsAre(HasSubstr("/healthz")));
}

}  // namespace
}  // namespace portway::test
