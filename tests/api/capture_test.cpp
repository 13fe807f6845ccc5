// What a capture lets in: TCP of the forward's port, at each of the guest's addresses.

#include "api/capture.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;

constexpr std::uint16_t kPort = 3000;
constexpr std::size_t kFileHeaderBytes = 24;
constexpr std::size_t kPacketHeaderBytes = 16;

IpAddress address(const char* text) {
  return boost::asio::ip::make_address(text);
}

/// Each packet's family, and whether it is from the port or to it.
std::vector<std::string> packets_of(const std::string& file) {
  std::vector<std::string> found;
  for (std::size_t at = kFileHeaderBytes; at + kPacketHeaderBytes <= file.size();) {
    std::uint32_t size = 0;
    std::memcpy(&size, file.data() + at + 8, sizeof size);
    const auto* packet = reinterpret_cast<const unsigned char*>(file.data()) + at + kPacketHeaderBytes;
    const bool v6 = packet[12] == 0x86;
    const std::size_t tcp = v6 ? 54 : 34;
    const int from = packet[tcp] << 8 | packet[tcp + 1];
    const int to = packet[tcp + 2] << 8 | packet[tcp + 3];
    found.push_back(std::string(v6 ? "IPv6" : "IPv4") + (from == kPort ? " from"
                                                         : to == kPort ? " to"
                                                                       : " ?"));
    at += kPacketHeaderBytes + size;
  }
  return found;
}

class CaptureTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    host_ = std::make_unique<NetworkNamespace>();
    guest_ = std::make_unique<NetworkNamespace>();
    for (const NetworkNamespace* network : {host_.get(), guest_.get()}) {
      network->skip_address_detection();
    }
    test::connect({*guest_, "eth0", "198.19.0.2/24"}, {*host_, "tap0", "198.19.0.1/24"});
    for (const char* more : {"198.19.0.3/24", "fd00:19::2/64 nodad", "fd00:19::3/64 nodad"})
      guest_->ip(std::string("address add ") + more + " dev eth0");
    host_->ip("address add fd00:19::1/64 nodad dev tap0");
  }

  /// A SYN, which the guest refuses: two packets.
  static void ask(const char* guest, std::uint16_t port) {
    const Endpoint to(address(guest), port);
    const Fd fd(::socket(to.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), to.data(), static_cast<socklen_t>(to.size())), -1);
    EXPECT_EQ(errno, ECONNREFUSED);
  }

  /// What is captured of these guests if everything is requested, IPv4 last.
  std::vector<std::string> captured(const std::vector<Endpoint>& guests) const {
    std::string file;
    host_->run([&] {
      boost::asio::io_context context;
      const CaptureOptions options{.tap = "tap0",
                                   .link = static_cast<std::int32_t>(::if_nametoindex("tap0")),
                                   .guests = [guests] { return guests; }};
      const auto stream = start_capture(context, options, [](const std::string&) {}).value();
      stream->on_ready([] {});
      for (const std::uint16_t port : {std::uint16_t{3001}, kPort}) {
        for (const char* guest : {"198.19.0.3", "fd00:19::3", "fd00:19::2", "198.19.0.2"}) ask(guest, port);
      }
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      const auto complete = [&] {
        const auto found = packets_of(file);
        return !found.empty() && found.back() == "IPv4 from";
      };
      while (!complete() && std::chrono::steady_clock::now() < deadline) {
        context.restart();
        context.run_one_for(std::chrono::milliseconds(100));
        file += stream->read().value_or("");
      }
    });
    return packets_of(file);
  }

  std::unique_ptr<NetworkNamespace> host_;
  std::unique_ptr<NetworkNamespace> guest_;
};

TEST_F(CaptureTest, IsOfTheForwardsPortAtEachOfTheGuestsAddresses) {
  using Packets = std::vector<std::string>;
  const Endpoint v4(address("198.19.0.2"), kPort);
  const Endpoint v6(address("fd00:19::2"), kPort);
  EXPECT_EQ(captured({v4}), (Packets{"IPv4 to", "IPv4 from"}));
  EXPECT_EQ(captured({v4, v6}), (Packets{"IPv6 to", "IPv6 from", "IPv4 to", "IPv4 from"}));
  EXPECT_EQ(captured({v6, v4}), (Packets{"IPv6 to", "IPv6 from", "IPv4 to", "IPv4 from"}));
}

TEST_F(CaptureTest, FollowsAGuestWhoseAddressChanges) {
  host_->run([&] {
    boost::asio::io_context context;
    std::string file;
    IpAddress now = address("198.19.0.2");
    const CaptureOptions options{.tap = "tap0",
                                 .link = static_cast<std::int32_t>(::if_nametoindex("tap0")),
                                 .guests = [&now] { return std::vector{Endpoint(now, kPort)}; }};
    const auto stream = start_capture(context, options, [](const std::string&) {}).value();
    stream->on_ready([] {});
    stream->on_change();  // of something else
    ask("198.19.0.3", kPort);
    ask("198.19.0.2", kPort);
    now = address("fd00:19::2");
    stream->on_change();
    ask("198.19.0.2", kPort);
    ask("fd00:19::2", kPort);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (packets_of(file).size() < 4 && std::chrono::steady_clock::now() < deadline) {
      context.restart();
      context.run_one_for(std::chrono::milliseconds(100));
      file += stream->read().value_or("");
    }
    EXPECT_EQ(packets_of(file), (std::vector<std::string>{"IPv4 to", "IPv4 from", "IPv6 to", "IPv6 from"}));
  });
}

}  // namespace
}  // namespace portway
