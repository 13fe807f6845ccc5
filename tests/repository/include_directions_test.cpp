// Dependencies point one way: a folder may include only those named beside it. The data plane never knows the
// API.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace portway::test {
namespace {

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"config", {"config"}},
    {"metrics", {"config", "metrics"}},
    {"lifecycle", {"config", "lifecycle"}},
    {"network", {"config", "metrics", "network"}},
    {"proxy", {"config", "metrics", "network", "proxy"}},
    {"api", {"config", "metrics", "lifecycle", "network", "proxy", "api"}},
    {"client", {"config", "metrics", "network", "proxy", "client"}},
};

TEST(IncludeDirections, PointFromTheApiToTheConfigAndNeverBack) {
  // Ours are in quotation marks and start with the folder; a bare name would hide where it is from.
  const std::regex include(R"re(\s*#\s*include\s*"(?:([^"/]+)/)?[^"]*".*)re");
  std::set<std::string> seen;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(PORTWAY_SOURCE_DIRECTORY "/" + folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".c") continue;
      seen.insert(folder);
      std::ifstream file(entry.path());
      int number = 0;
      for (std::string line; std::getline(file, line);) {
        ++number;
        std::smatch match;
        if (!std::regex_match(line, match, include)) continue;
        EXPECT_TRUE(allowed.contains(match[1])) << entry.path().string() << ":" << number << ": " << line;
      }
    }
  }
  EXPECT_EQ(seen.size(), kMayInclude.size()) << "a folder without sources";
}

TEST(IncludeDirections, CoverEveryFolderOfTheProduct) {
  const std::set<std::string> others = {"tests", "bench", "build"};
  for (const auto& entry : std::filesystem::directory_iterator(PORTWAY_SOURCE_DIRECTORY)) {
    const std::string name = entry.path().filename();
    if (!std::filesystem::exists(entry.path() / "CMakeLists.txt") || others.contains(name)) continue;
    EXPECT_TRUE(kMayInclude.contains(name)) << name << "/ has no rule";
  }
}

}  // namespace
}  // namespace portway::test
