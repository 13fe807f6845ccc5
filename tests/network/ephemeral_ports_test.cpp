#include "network/ephemeral_ports.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace portway {
namespace {

class EphemeralOverlapTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "portway-ports-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    files_ = {directory_ / "range", directory_ / "reserved"};
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::optional<EphemeralOverlap> overlap(const PortRange& range, const PortRange& ephemeral,
                                          const std::string& reserved = "") {
    std::ofstream(files_.range) << ephemeral.first << '\t' << ephemeral.last << '\n';
    std::ofstream(files_.reserved) << reserved << '\n';
    return ephemeral_overlap(range, files_);
  }

  std::filesystem::path directory_;
  EphemeralPortFiles files_;
};

TEST_F(EphemeralOverlapTest, RangesApartAreFine) {
  EXPECT_FALSE(overlap({20000, 32767}, {32768, 60999}));
  EXPECT_FALSE(overlap({61000, 65535}, {32768, 60999}));
}

TEST_F(EphemeralOverlapTest, AnOverlapIsCountedAndTheSysctlNamed) {
  const auto found = overlap({30000, 40000}, {32768, 60999}, "8080,9148");
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->problem.starts_with("7233 ports of ports.range 30000-40000")) << found->problem;
  EXPECT_TRUE(found->remedy.find("leaves 20999 ports") != std::string::npos) << found->remedy;
  EXPECT_TRUE(found->remedy.ends_with("net.ipv4.ip_local_reserved_ports=8080,9148,32768-40000"))
      << found->remedy;
}

TEST_F(EphemeralOverlapTest, ReservedPortsDoNotCount) {
  EXPECT_FALSE(overlap({30000, 40000}, {32768, 60999}, "32768-40000"));
  EXPECT_FALSE(overlap({30000, 40000}, {32768, 60999}, "80,32768-35000,35001,35002-65535"));
  const auto found = overlap({30000, 40000}, {32768, 60999}, "32768-39999");
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->problem.starts_with("1 port")) << found->problem;
  EXPECT_TRUE(found->remedy.ends_with("=32768-40000")) << "not a longer list each time: " << found->remedy;
}

TEST_F(EphemeralOverlapTest, TheKernelHandsOutWhatIsNotReserved) {
  const auto ports = [&](const PortRange& range, const std::string& reserved) {
    (void)overlap({1, 1}, range, reserved);
    std::string text;
    for (const PortRange& run : ephemeral_ports(files_)) text += to_string(run) + " ";
    return text;
  };
  EXPECT_EQ(ports({32768, 60999}, ""), "32768-60999 ");
  EXPECT_EQ(ports({32768, 60999}, "80,32768-35000,35002,60999,61000-65535"), "35001-35001 35003-60998 ");
  EXPECT_EQ(ports({1024, 65535}, "1-1030,65535"), "1031-65534 ");
  EXPECT_EQ(ports({40000, 40001}, "30000-50000"), "");
  std::string many = "1025";
  for (int port = 1027; port < 65535; port += 2) many += "," + std::to_string(port);
  EXPECT_EQ(ports({1024, 1030}, many), "1024-1024 1026-1026 1028-1028 1030-1030 ");
  EXPECT_TRUE(ephemeral_ports({"/nonexistent/range", "/nonexistent/reserved"}).empty());
}

TEST_F(EphemeralOverlapTest, WithoutTheFilesNothingIsSaid) {
  EXPECT_FALSE(ephemeral_overlap({30000, 40000}, {"/nonexistent/range", "/nonexistent/reserved"}));
}

TEST_F(EphemeralOverlapTest, ReservingIsNotSuggestedIfTheNodeCouldNoLongerConnect) {
  const auto found = overlap({32768, 60999}, {32768, 60999});
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->remedy.find("would leave 0 ports") != std::string::npos) << found->remedy;
  EXPECT_EQ(found->remedy.find("ip_local_reserved_ports"), std::string::npos) << found->remedy;
  EXPECT_TRUE(found->remedy.find("ip_local_port_range=\"10000 32767\" (22768 ports)") != std::string::npos)
      << found->remedy;
}

/// The value that a remedy suggests: the last one of its kind in the text.
std::string after(const std::string& text, const std::string& name) {
  const std::size_t at = text.rfind(name);
  return at == std::string::npos ? "" : text.substr(at + name.size());
}

// On any node: after following a remedy there is no warning, and the node can still connect.
TEST_F(EphemeralOverlapTest, ARemedyLeavesNoOverlapAndEnoughPorts) {
  const auto every_other = [](int first, int last) {
    std::string list = std::to_string(first);
    for (int port = first + 2; port <= last; port += 2) list += "," + std::to_string(port);
    return list;
  };
  const std::string long_list = every_other(2001, 19999);
  struct Shape {
    PortRange range;
    PortRange ephemeral;
    std::string reserved;
  };
  const std::vector<Shape> shapes = {{{30000, 40000}, {32768, 60999}, ""},
                                     {{32768, 60999}, {32768, 60999}, ""},
                                     {{30000, 60000}, {32768, 60999}, ""},
                                     {{1024, 65535}, {32768, 60999}, ""},
                                     {{1024, 65535}, {1024, 65535}, ""},
                                     {{20000, 32767}, {1024, 65535}, ""},
                                     {{10000, 65535}, {1024, 65535}, ""},
                                     {{1024, 60000}, {1024, 65535}, "8080,9000-9100"},
                                     {{20000, 32767}, {16384, 33000}, ""},
                                     {{1024, 65535}, {60000, 60999}, ""},
                                     {{1024, 65535}, {1024, 65535}, "1024-60000"},
                                     {{40000, 40000}, {32768, 60999}, ""},
                                     {{20000, 32767}, {1024, 65535}, long_list},
                                     {{20000, 32767}, {1024, 65535}, every_other(15001, 45001)},
                                     {{1024, 65535}, {1024, 65535}, long_list},
                                     {{32768, 60999}, {32768, 60999}, "33000,34000-35000"}};
  for (const Shape& shape : shapes) {
    const auto found = overlap(shape.range, shape.ephemeral, shape.reserved);
    ASSERT_TRUE(found) << to_string(shape.range);
    SCOPED_TRACE(to_string(shape.range) + " in " + to_string(shape.ephemeral) + ": " + found->remedy);
    EXPECT_LT(found->remedy.size(), 1000U) << "for a line of a log";
    PortRange range = shape.range;
    std::string reserved = shape.reserved;
    bool followed = false;
    if (const auto text = after(found->remedy, "Set ports.range to "); !text.empty()) {
      range = parse_port_range(text.substr(0, text.find_first_not_of("0123456789-"))).value();
      EXPECT_GE(range.first, 1024);
      followed = true;
    }
    if (auto text = after(found->remedy, "ip_local_reserved_ports="); !text.empty()) {
      const std::string also = "\"$(sysctl -n net.ipv4.ip_local_reserved_ports),";
      if (text.starts_with(also)) text = reserved + "," + text.substr(also.size());
      reserved = text.substr(0, text.find('"'));
      followed = true;
    }
    if (followed) {
      EXPECT_FALSE(overlap(range, shape.ephemeral, reserved));
    }
    if (const auto text = after(found->remedy, "ip_local_port_range=\""); !text.empty()) {
      PortRange ephemeral;
      std::istringstream(text) >> ephemeral.first >> ephemeral.last;
      EXPECT_GE(ephemeral.size(), kEphemeralPortsMin);
      EXPECT_NE(ephemeral.first % 2, ephemeral.last % 2);
      EXPECT_FALSE(overlap(shape.range, ephemeral, shape.reserved));
      followed = true;
    }
    EXPECT_TRUE(followed);
  }
}

}  // namespace
}  // namespace portway
