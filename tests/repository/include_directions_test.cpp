// Dependencies point one way: a folder may include itself and the folders named beside it. The data plane
// knows neither the control plane nor the API, and the HTTP server knows nothing of Portway.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace portway::test {
namespace {

const std::set<std::string> kBelowControl = {"base", "config", "network", "lifecycle", "proxy"};

std::set<std::string> with(std::set<std::string> folders, const std::set<std::string>& more) {
  folders.insert(more.begin(), more.end());
  return folders;
}

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"base", {}},
    {"config", {"base"}},
    {"network", {"base", "config"}},
    {"lifecycle", {"base", "config", "network"}},
    {"handover", {"base"}},
    {"api/http", {"base"}},
    {"proxy", {"base", "config", "network"}},
    {"control", kBelowControl},
    {"metrics", with(kBelowControl, {"control", "api/http"})},
    {"api", with(kBelowControl, {"control", "metrics", "api/http"})},
    {"client", {"base", "config", "network", "proxy"}},
    {"fleet", {"base"}},
    {"process", with(kBelowControl, {"control", "api/http", "fleet"})},
    {"daemon",
     with(kBelowControl, {"handover", "control", "metrics", "api", "api/http", "fleet", "process"})},
    {"gateway", with(kBelowControl, {"control", "metrics", "api", "api/http", "fleet", "process"})},
};

/// The folder of the table that a file, named from the top, is in; empty if in none.
std::string folder_of(const std::string& path) {
  std::string found;
  for (const auto& [folder, allowed] : kMayInclude) {
    if (path.starts_with(folder + "/") && folder.size() > found.size()) found = folder;
  }
  return found;
}

TEST(IncludeDirections, PointFromTheDaemonToTheBaseAndNeverBack) {
  // Ours are in quotation marks and start with the folder; a bare name would hide where it is from.
  const std::regex include(R"re(\s*#\s*include\s*"([^"]*)".*)re");
  const std::filesystem::path top = PORTWAY_SOURCE_DIRECTORY;
  std::set<std::string> seen;
  for (const auto& [folder, allowed] : kMayInclude) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(top / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".c") continue;
      if (folder_of(std::filesystem::relative(entry.path(), top)) != folder) continue;
      seen.insert(folder);
      std::ifstream file(entry.path());
      int number = 0;
      for (std::string line; std::getline(file, line);) {
        ++number;
        std::smatch match;
        if (!std::regex_match(line, match, include)) continue;
        const std::string from = folder_of(match[1]);
        EXPECT_TRUE(from == folder || allowed.contains(from))
            << entry.path().string() << ":" << number << ": " << line;
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
