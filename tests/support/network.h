// Network namespaces for tests. They have no name and live as long as their object and the processes in
// them, so nothing is left behind however a test ends. Needs root. Failures throw std::system_error or
// std::runtime_error, which fails the test.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"

namespace portway::test {

class NetworkNamespace {
 public:
  /// A new one: loopback is up, congestion control is reno (the machine's may pace, which would hide
  /// effects).
  NetworkNamespace();

  int fd() const { return fd_.get(); }

  /// Calls `function` on a thread that is in this namespace, and waits for it. Sockets opened there stay
  /// there.
  void run(const std::function<void()>& function) const;

  /// `ip ARGUMENTS` in this namespace, split at blanks: ip("link set eth0 up").
  void ip(std::string_view arguments) const;
  /// The same for many lines of arguments, by one process.
  void ip_batch(const std::string& lines) const;

  /// Writes /proc/sys/NAME as this namespace sees it: set("net/ipv4/ip_forward", "0").
  void set(const std::string& name, const std::string& value) const;

  /// An IPv6 address may be used at once.
  void skip_address_detection() const;

  /// A path by which another process can name it, as long as this one lives.
  std::string path() const;
  /// Gives it a name: makes the file, and mounts the namespace there, as `ip netns` does.
  void mount_at(const std::string& file) const;

  /// The netfilter rules in force; empty if there are none.
  std::string nft_ruleset() const;

 private:
  Fd fd_;
};

/// A veth pair with one end in each, both up, each with its address ("198.18.0.1/24").
struct VethEnd {
  const NetworkNamespace& network;
  std::string name;
  std::string address;
};
void connect(const VethEnd& a, const VethEnd& b);

/// Runs a command in `network` to its end and returns what it printed; throws unless it exits with 0.
std::string run_command(const NetworkNamespace* network, std::vector<std::string> command);

}  // namespace portway::test
