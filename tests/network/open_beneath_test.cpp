// Which directory a path lies below. The tests of namespaces and of sockets open files there.
#include "network/open_beneath.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway {
namespace {

std::string find(std::string_view path, const std::vector<std::string>& directories) {
  const auto found = find_beneath(path, directories);
  return found ? found->directory + " " + found->name : "none";
}

TEST(FindBeneath, TakesTheFirstDirectory) {
  EXPECT_EQ(find("/run/fc/vm/v.sock", {"/srv", "/run/fc", "/run"}), "/run/fc vm/v.sock");
  EXPECT_EQ(find("/run/fcx/v.sock", {"/run/fc", "/run/"}), "/run/ fcx/v.sock");
  EXPECT_EQ(find("/x", {"/"}), "/ x");
}

TEST(FindBeneath, ADirectoryIsNotBelowItself) {
  for (const char* outside : {"/run", "/run/", "/run/.", "/run//", "/runx", "/runx/y", "/", "", "run/x", "x"})
    EXPECT_EQ(find(outside, {"/run"}), "none") << outside;
  EXPECT_EQ(find("/run/x", {}), "none");
}

// Sockets were compared as they are written, so the operator's /var/run/fc did not permit /run/fc/v.sock.
TEST(FindBeneath, OneDirectoryHasManySpellings) {
  EXPECT_EQ(find("/run/fc/v.sock", {"/var/run/fc"}), "/var/run/fc v.sock");
  EXPECT_EQ(find("/var/run/fc/v.sock", {"/run/fc"}), "/run/fc v.sock");
  EXPECT_EQ(find("/run/fc/v.sock", {"/run//fc/./"}), "/run//fc/./ v.sock");
  EXPECT_EQ(find("/run/./fc//vm/v.sock", {"/run/fc"}), "/run/fc vm/v.sock");
  EXPECT_EQ(find("/var/runner/v.sock", {"/run"}), "none");
}

TEST(FindBeneath, NoPathWithAParentComponent) {
  for (const char* path : {"/run/../etc/x", "/run/fc/../x", "/run/.."})
    EXPECT_EQ(find(path, {"/run", "/"}), "none") << path;
  EXPECT_EQ(find("/run/..x", {"/run"}), "/run ..x");
}

}  // namespace
}  // namespace portway
