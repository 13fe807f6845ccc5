#include "network/bpf_object.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>

#include <boost/asio/ip/address_v6.hpp>
#include <cerrno>
#include <cstring>

namespace portway {
namespace {

/// What to do about an error of bpf(2).
std::string remedy(int error, std::string_view kernel_needed) {
  switch (error) {
    case EPERM:
      return "it needs CAP_BPF and CAP_NET_ADMIN, both of the initial user namespace; a seccomp filter or "
             "the kernel's lockdown refuses it too";
    case EACCES:
      return "the kernel's verifier or a security module refuses the program";
    case ENOSYS:
      return "the kernel is built without bpf(2), or a seccomp filter hides it";
    case ENOMEM:
      return "memory or RLIMIT_MEMLOCK is used up";
    case E2BIG:
      return "there are more entries than the program's map takes";
    default:
      return fmt::format("the kernel may be too old: it needs {} with BPF", kernel_needed);
  }
}

Error error_of(std::string_view what, int error, std::string_view kernel_needed) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("bpf: {}: {}; {}", what, std::strerror(error), remedy(error, kernel_needed))};
}

}  // namespace

Result<std::unique_ptr<BpfObject>> BpfObject::load(std::span<const unsigned char> bytes,
                                                   std::string_view kernel_needed,
                                                   std::span<const std::byte> constants) {
  // The library would write to standard error; what went wrong is in our error.
  libbpf_set_print([](libbpf_print_level, const char*, va_list) { return 0; });
  bpf_object* opened = bpf_object__open_mem(bytes.data(), bytes.size(), nullptr);
  if (opened == nullptr) return error_of("open", errno, kernel_needed);
  std::unique_ptr<BpfObject> object(new BpfObject(opened, kernel_needed));
  if (!constants.empty()) {
    bpf_map* map = bpf_object__find_map_by_name(opened, ".rodata");
    if (const int error = bpf_map__set_initial_value(map, constants.data(), constants.size()); error != 0)
      return object->refused("constants", -error);
  }
  if (const int error = bpf_object__load(opened); error != 0) return object->refused("load", -error);
  return object;
}

BpfObject::~BpfObject() {
  bpf_object__close(object_);
}

bpf_program* BpfObject::program(const char* name) const {
  return bpf_object__find_program_by_name(object_, name);
}

int BpfObject::program_fd(const char* name) const {
  return bpf_program__fd(program(name));
}

int BpfObject::map_fd(const char* name) const {
  return bpf_object__find_map_fd_by_name(object_, name);
}

Error BpfObject::refused(std::string_view what, int error) const {
  return error_of(what, error, kernel_needed_);
}

BpfAddress to_bpf_address(const IpAddress& address) {
  const auto bytes =
      (address.is_v4() ? boost::asio::ip::make_address_v6(boost::asio::ip::v4_mapped, address.to_v4())
                       : address.to_v6())
          .to_bytes();
  BpfAddress words{};
  static_assert(sizeof words == sizeof bytes);
  std::memcpy(&words, bytes.data(), bytes.size());
  return words;
}

}  // namespace portway
