// The packet program of steer.bpf.c in the kernel, and its map of guests. It is taken out of the kernel when
// the object and the last filter that uses it are gone. Control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "config/endpoint.h"
#include "config/error.h"

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

  /// Packets that come in by this link and from this address may be steered. Replaces the link's guest.
  Result<void> set_guest(int link, const IpAddress& guest);
  void remove_guest(int link);

 private:
  explicit SteerProgram(bpf_object* object);
  Result<void> put_into_kernel();

  bpf_object* const object_;  // owns the two descriptors
  int program_ = -1;
  int guests_ = -1;
  std::uint32_t id_ = 0;
};

/// The compiled program (made by embed.cmake).
std::span<const unsigned char> steer_object();

}  // namespace portway
