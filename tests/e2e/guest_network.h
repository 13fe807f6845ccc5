// The machines of the end-to-end tests, in network namespaces:
//
//   client 198.18.0.2 --veth-- 198.18.0.1 host 198.19.0.1 --tap0-- 198.19.0.2 guest
//          fd00:18::2          fd00:18::1      fd00:19::1          fd00:19::2
//
// The guest is another namespace behind a veth end called tap0, or a virtual machine behind a real tap. Both
// run guest_service. The host has neither forwarding nor netfilter: whatever arrives came through the daemon.
#pragma once

#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "tests/support/network.h"
#include "tests/support/process.h"

namespace portway::test {

inline constexpr const char* kHostAddress = "198.18.0.1";
inline constexpr const char* kGuestAddress = "198.19.0.2";
inline constexpr const char* kHostAddress6 = "fd00:18::1";
inline constexpr const char* kGuestAddress6 = "fd00:19::2";
inline constexpr const char* kTap = "tap0";
inline constexpr const char* kSilentAddress = "198.19.0.77";  // behind kSilentTap, where nobody answers
inline constexpr const char* kSilentTap = "silent0";

enum class GuestKind { kVeth, kVirtualMachine };
inline std::ostream& operator<<(std::ostream& out, GuestKind kind) {
  return out << (kind == GuestKind::kVeth ? "Veth" : "VirtualMachine");
}

/// A virtual machine that runs guest_service, and its address and its gateway's in each family.
struct MachineOptions {
  std::string tap = kTap;
  std::string address = "198.19.0.2/24";
  std::string gateway = "198.19.0.1";
  std::string name = "guest";  // its HTTP service says it
  std::string address6 = "fd00:19::2/64";
  std::string gateway6 = "fd00:19::1";
};
/// Boots it behind a tap in this namespace, from the one image that all have.
std::unique_ptr<Process> boot_machine(const NetworkNamespace& network, const MachineOptions& options);

class GuestNetwork {
 public:
  /// Returns when the guest's services listen. If they do not, throws with the guest's output.
  explicit GuestNetwork(GuestKind kind);

  const NetworkNamespace& host() const { return host_; }
  const NetworkNamespace& client() const { return client_; }

  /// Null if it is a virtual machine.
  const NetworkNamespace* guest() const { return guest_ ? &*guest_ : nullptr; }

  /// Stops its virtual processors, or its services.
  void pause_guest();
  void resume_guest();
  /// The virtual machine dies; behind a veth, the guest's end loses its carrier.
  void kill_guest();

 private:
  void start_veth_guest();
  void start_virtual_machine();

  const GuestKind kind_;
  NetworkNamespace host_;
  NetworkNamespace client_;
  std::optional<NetworkNamespace> guest_;
  std::unique_ptr<Process> guest_process_;
};

}  // namespace portway::test
