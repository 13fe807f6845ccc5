#include "network/steer_program.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "network/steer.h"

namespace portway {
namespace {

/// What to do about an error of bpf(2).
std::string_view remedy(int error) {
  switch (error) {
    case EPERM:
      return "it needs CAP_BPF and CAP_NET_ADMIN, both of the initial user namespace; a seccomp filter or "
             "the kernel's "
             "lockdown refuses it too";
    case EACCES:
      return "the kernel's verifier or a security module refuses the program";
    case ENOSYS:
      return "the kernel is built without bpf(2), or a seccomp filter hides it";
    case ENOMEM:
      return "memory or RLIMIT_MEMLOCK is used up";
    case E2BIG:
      return "there are more guests than the program's map takes";
    default:
      return "the kernel may be too old: it needs Linux 5.2 with BPF for traffic control "
             "(CONFIG_NET_CLS_BPF)";
  }
}

Error refused(std::string_view what, int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("bpf: {}: {}; {}", what, std::strerror(error), remedy(error))};
}

SteerAddress to_map(const IpAddress& address) {
  const auto bytes =
      (address.is_v4() ? boost::asio::ip::make_address_v6(boost::asio::ip::v4_mapped, address.to_v4())
                       : address.to_v6())
          .to_bytes();
  SteerAddress words{};
  static_assert(sizeof words == sizeof bytes);
  std::memcpy(&words, bytes.data(), bytes.size());
  return words;
}

}  // namespace

Result<std::unique_ptr<SteerProgram>> SteerProgram::load() {
  // The library would write to standard error; what went wrong is in our error.
  libbpf_set_print([](libbpf_print_level, const char*, va_list) { return 0; });
  const auto bytes = steer_object();
  bpf_object* object = bpf_object__open_mem(bytes.data(), bytes.size(), nullptr);
  if (object == nullptr) return refused("open", errno);
  std::unique_ptr<SteerProgram> program(new SteerProgram(object));
  if (auto done = program->put_into_kernel(); !done) return done.error();
  return program;
}

SteerProgram::SteerProgram(bpf_object* object) : object_(object) {}

SteerProgram::~SteerProgram() {
  bpf_object__close(object_);
}

Result<void> SteerProgram::put_into_kernel() {
  if (const int error = bpf_object__load(object_); error != 0) return refused("load", -error);
  program_ = bpf_program__fd(bpf_object__find_program_by_name(object_, "portway_steer"));
  guests_ = bpf_object__find_map_fd_by_name(object_, "guests");
  owners_ = bpf_object__find_map_fd_by_name(object_, "owners");
  forged_ = bpf_object__find_map_fd_by_name(object_, "forged");
  bpf_prog_info info{};
  __u32 size = sizeof info;
  if (bpf_obj_get_info_by_fd(program_, &info, &size) != 0) return refused("program information", errno);
  id_ = info.id;
  return {};
}

Result<void> SteerProgram::set_guest(int link, const IpAddress& guest, bool steered) {
  const auto known = addresses_.find(link);
  const bool same = known != addresses_.end() && known->second == guest;
  if (!same) {
    if (auto done = own(guest); !done) return done;
  }
  const auto key = static_cast<__u32>(link);
  const SteerGuest value{.address = to_map(guest), .steered = steered ? 1U : 0U};
  if (bpf_map_update_elem(guests_, &key, &value, BPF_ANY) != 0) {
    const int error = errno;
    if (!same) disown(guest);
    return refused("guest map", error);
  }
  if (same) return {};
  if (known != addresses_.end()) disown(known->second);
  addresses_.insert_or_assign(link, guest);
  return {};
}

void SteerProgram::remove_guest(int link) {
  const auto key = static_cast<__u32>(link);
  bpf_map_delete_elem(guests_, &key);
  const auto known = addresses_.extract(link);
  if (!known.empty()) disown(known.mapped());
}

Result<void> SteerProgram::own(const IpAddress& address) {
  const SteerAddress key = to_map(address);
  const __u8 value = 1;
  if (!links_.contains(address) && bpf_map_update_elem(owners_, &key, &value, BPF_ANY) != 0) {
    return refused("map of the guests' addresses", errno);
  }
  ++links_[address];
  return {};
}

void SteerProgram::disown(const IpAddress& address) {
  const auto known = links_.find(address);
  if (known == links_.end() || --known->second > 0) return;
  const SteerAddress key = to_map(address);
  bpf_map_delete_elem(owners_, &key);
  links_.erase(known);
}

std::uint64_t SteerProgram::forged_packets() const {
  const __u32 first = 0;
  __u64 count = 0;
  return bpf_map_lookup_elem(forged_, &first, &count) == 0 ? count : 0;
}

}  // namespace portway
