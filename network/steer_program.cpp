#include "network/steer_program.h"

#include <bpf/bpf.h>
#include <sys/mman.h>

#include <cerrno>
#include <span>
#include <utility>

#include "network/steer.h"

namespace portway {
namespace {

// Debian 12's headers do not know it (BPF_TCX_INGRESS in <linux/bpf.h>).
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr std::size_t kRoutedTableSize = std::size_t{kRoutedBuckets} * kRoutedSets;
constexpr std::size_t kRoutedBytes = kRoutedTableSize * sizeof(RoutedSet);
constexpr __u32 kBefore = 1U << 3;  // BPF_F_BEFORE: with nothing named, before all

}  // namespace

Result<std::unique_ptr<SteerProgram>> SteerProgram::load(std::uint32_t mark) {
  auto object = BpfObject::load(steer_object(), "Linux 5.5", std::as_bytes(std::span(&mark, 1)));
  if (!object) return object.error();
  bpf_prog_info info{};
  __u32 size = sizeof info;
  if (bpf_obj_get_info_by_fd((*object)->program_fd("portway_steer"), &info, &size) != 0)
    return (*object)->refused("program information", errno);
  void* table = ::mmap(nullptr, kRoutedBytes, PROT_READ, MAP_SHARED, (*object)->map_fd("routed"), 0);
  if (table == MAP_FAILED) return (*object)->refused("table of routed connections", errno);
  return std::unique_ptr<SteerProgram>(
      new SteerProgram(std::move(*object), info.id, RoutedTable(static_cast<const RoutedSet*>(table))));
}

SteerProgram::SteerProgram(std::unique_ptr<BpfObject> object, std::uint32_t id, RoutedTable routed)
    : object_(std::move(object)),
      id_(id),
      program_(object_->program_fd("portway_steer")),
      guests_(object_->map_fd("guests")),
      owners_(object_->map_fd("owners")),
      forged_(object_->map_fd("forged")),
      routed_table_(std::move(routed)),
      routed_({routed_table_.get(), kRoutedTableSize}) {}

void SteerProgram::Unmap::operator()(const RoutedSet* table) const {
  ::munmap(const_cast<RoutedSet*>(table), kRoutedBytes);
}

Result<void> SteerProgram::set_guest(int link, const std::vector<IpAddress>& addresses, bool steered) {
  if (auto done = own(addresses); !done) return done;
  const auto key = static_cast<__u32>(link);
  SteerGuest value{.address = {}, .steered = steered ? 1U : 0U};
  for (const IpAddress& address : addresses) value.address[address.is_v6() ? 1 : 0] = to_bpf_address(address);
  if (bpf_map_update_elem(guests_, &key, &value, BPF_ANY) != 0) {
    const int error = errno;
    disown(addresses);
    return object_->refused("guest map", error);
  }
  disown(addresses_[link]);
  addresses_[link] = addresses;
  return {};
}

void SteerProgram::remove_guest(int link) {
  const auto key = static_cast<__u32>(link);
  bpf_map_delete_elem(guests_, &key);
  const auto known = addresses_.extract(link);
  if (!known.empty()) disown(known.mapped());
}

bool SteerProgram::attach(int link) {
  bpf_link_create_opts options{};
  options.sz = sizeof options;
  options.flags = kBefore;
  Fd attached(bpf_link_create(program_, link, kTcxIngress, &options));
  if (!attached) return false;
  attached_[link] = std::move(attached);
  return true;
}

bool SteerProgram::is_attached(int link) const {
  const auto known = attached_.find(link);
  if (known == attached_.end()) return false;
  bpf_link_info info{};
  __u32 size = sizeof info;
  // The interface is where XDP has its own; 0 when it is gone.
  return bpf_obj_get_info_by_fd(known->second.get(), &info, &size) == 0 &&
         info.xdp.ifindex == static_cast<__u32>(link);
}

Result<void> SteerProgram::own(const std::vector<IpAddress>& addresses) {
  for (auto address = addresses.begin(); address != addresses.end(); ++address) {
    if (auto done = own(*address); !done) {
      disown({addresses.begin(), address});
      return done;
    }
  }
  return {};
}

void SteerProgram::disown(const std::vector<IpAddress>& addresses) {
  for (const IpAddress& address : addresses) disown(address);
}

Result<void> SteerProgram::own(const IpAddress& address) {
  const BpfAddress key = to_bpf_address(address);
  const __u8 value = 1;
  if (!links_.contains(address) && bpf_map_update_elem(owners_, &key, &value, BPF_ANY) != 0) {
    return object_->refused("map of the guests' addresses", errno);
  }
  ++links_[address];
  return {};
}

void SteerProgram::disown(const IpAddress& address) {
  const auto known = links_.find(address);
  if (known == links_.end() || --known->second > 0) return;
  const BpfAddress key = to_bpf_address(address);
  bpf_map_delete_elem(owners_, &key);
  links_.erase(known);
}

std::uint64_t SteerProgram::forged_packets() const {
  const __u32 first = 0;
  __u64 count = 0;
  return bpf_map_lookup_elem(forged_, &first, &count) == 0 ? count : 0;
}

}  // namespace portway
