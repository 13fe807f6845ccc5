// A BPF program with its maps in the kernel, from an object that the daemon carries (CMakeLists.txt makes
// NAME_object() of NAME.bpf.c). The kernel frees it once this object and everything that attaches it are
// gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/endpoint.h"
#include "base/error.h"
#include "network/bpf_address.h"

struct bpf_object;
struct bpf_program;

namespace portway {

class BpfObject {
 public:
  /// kResourceExhausted when the kernel refuses; the detail says why and what would help, and names
  /// `kernel_needed` ("Linux 5.9"). Needs CAP_BPF and CAP_NET_ADMIN.
  /// `constants` are the object's read-only data, if it has any that are known only at load time.
  static Result<std::unique_ptr<BpfObject>> load(std::span<const unsigned char> bytes,
                                                 std::string_view kernel_needed,
                                                 std::span<const std::byte> constants = {});
  ~BpfObject();
  BpfObject(const BpfObject&) = delete;
  BpfObject& operator=(const BpfObject&) = delete;

  /// Looks up a program or map by its name in the source. This object owns the descriptors.
  bpf_program* program(const char* name) const;
  int program_fd(const char* name) const;
  int map_fd(const char* name) const;

  /// The error for a call that failed with this errno.
  Error refused(std::string_view what, int error) const;

 private:
  BpfObject(bpf_object* object, std::string_view kernel_needed)
      : object_(object), kernel_needed_(kernel_needed) {}

  bpf_object* const object_;
  const std::string_view kernel_needed_;  // a literal
};

BpfAddress to_bpf_address(const IpAddress& address);

std::span<const unsigned char> steer_object();
std::span<const unsigned char> refuse_object();

}  // namespace portway
