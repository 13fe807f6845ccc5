// The packet program of steer.bpf.c in the kernel, and its maps of guests. It is taken out of the kernel when
// the object and the last filter that uses it are gone. Control thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "config/endpoint.h"
#include "config/error.h"
#include "network/steer.h"

struct bpf_object;

namespace portway {

class SteerProgram {
 public:
  /// kResourceExhausted when the kernel refuses; the detail says why and what would help. Needs CAP_BPF and
  /// CAP_NET_ADMIN, and Linux 5.2.
  static Result<std::unique_ptr<SteerProgram>> load();
  ~SteerProgram();
  SteerProgram(const SteerProgram&) = delete;
  SteerProgram& operator=(const SteerProgram&) = delete;

  /// For attaching; owned by this object.
  int fd() const { return program_; }
  /// As the kernel's listings name it.
  std::uint32_t id() const { return id_; }

  /// The guest behind this link has this address: on the other links with a guest, packets from it are
  /// dropped. `steered`: the answers that come in by this link and from this address may be steered. Replaces
  /// the link's guest; on an error nothing has changed.
  Result<void> set_guest(int link, const IpAddress& guest, bool steered);
  void remove_guest(int link);

  /// Packets that were dropped for their source address so far.
  std::uint64_t forged_packets() const;

 private:
  explicit SteerProgram(bpf_object* object);
  Result<void> put_into_kernel();
  Result<void> own(const IpAddress& address);
  void disown(const IpAddress& address);

  bpf_object* const object_;  // owns the descriptors
  int program_ = -1;
  int guests_ = -1;
  int owners_ = -1;
  int forged_ = -1;
  std::uint32_t id_ = 0;
  std::map<int, IpAddress> addresses_;      // by link, as in the map `guests`
  std::map<IpAddress, std::size_t> links_;  // how many links have an address; `owners` has those with one
};

/// The compiled program (made by embed.cmake).
std::span<const unsigned char> steer_object();

}  // namespace portway
