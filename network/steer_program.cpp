#include "network/steer_program.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <utility>

#include "network/steer.h"
#include "network/traffic_control.h"

namespace portway {
namespace {

// Debian 12's headers do not know it (BPF_TCX_INGRESS in <linux/bpf.h>).
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
constexpr std::size_t kRoutedTableSize = std::size_t{kRoutedBuckets} * kRoutedSets;
constexpr std::size_t kRoutedBytes = kRoutedTableSize * sizeof(RoutedSet);
constexpr __u32 kBefore = 1U << 3;  // BPF_F_BEFORE: with nothing named, before all

SteerLink key_of(const GuestLink& link) {
  return {.space = link.space, .link = static_cast<__u32>(link.index)};
}

}  // namespace

Result<std::unique_ptr<SteerProgram>> SteerProgram::load(std::uint32_t mark) {
  auto object = BpfObject::load(steer_object(), "Linux 5.5", std::as_bytes(std::span(&mark, 1)));
  if (!object) return object.error();
  const __u32 first = 0;
  const int inside = (*object)->program_fd("portway_inside");
  if (bpf_map_update_elem((*object)->map_fd("inside"), &first, &inside, BPF_ANY) != 0)
    return (*object)->refused("table of programs", errno);
  void* table = ::mmap(nullptr, kRoutedBytes, PROT_READ, MAP_SHARED, (*object)->map_fd("routed"), 0);
  if (table == MAP_FAILED) return (*object)->refused("table of routed connections", errno);
  return std::unique_ptr<SteerProgram>(
      new SteerProgram(std::move(*object), RoutedTable(static_cast<const RoutedSet*>(table))));
}

SteerProgram::SteerProgram(std::unique_ptr<BpfObject> object, RoutedTable routed)
    : object_(std::move(object)),
      program_(object_->program_fd("portway_steer")),
      inside_(object_->map_fd("inside")),
      guests_(object_->map_fd("guests")),
      owners_(object_->map_fd("owners")),
      members_(object_->map_fd("members")),
      forged_(object_->map_fd("forged")),
      routed_table_(std::move(routed)),
      routed_({routed_table_.get(), kRoutedTableSize}) {}

void SteerProgram::Unmap::operator()(const RoutedSet* table) const {
  ::munmap(const_cast<RoutedSet*>(table), kRoutedBytes);
}

Result<void> SteerProgram::set_guest(const GuestLink& link, const std::vector<IpAddress>& addresses,
                                     bool steered, int bridge) {
  const GuestLink of_bridge{.space = link.space, .index = bridge};
  if (auto done = own(link.space, addresses); !done) return done;
  if (bridge != 0) {
    if (auto done = join(of_bridge, addresses); !done) {
      disown(link.space, addresses);
      return done;
    }
  }
  const SteerLink key = key_of(link);
  SteerGuest value{.address = {}, .steered = steered && bridge == 0 ? 1U : 0U, .bridge = 0};
  for (const IpAddress& address : addresses) value.address[address.is_v6() ? 1 : 0] = to_bpf_address(address);
  if (bpf_map_update_elem(guests_, &key, &value, BPF_ANY) != 0) {
    const int error = errno;
    disown(link.space, addresses);
    leave(of_bridge, addresses);
    return object_->refused("guest map", error);
  }
  Guest& known = known_[link];
  disown(link.space, known.addresses);
  leave({.space = link.space, .index = known.bridge}, known.addresses);
  known = {.addresses = addresses, .bridge = bridge};
  return {};
}

void SteerProgram::remove_guest(const GuestLink& link) {
  const SteerLink key = key_of(link);
  bpf_map_delete_elem(guests_, &key);
  const auto known = known_.extract(link);
  if (known.empty()) return;
  disown(link.space, known.mapped().addresses);
  leave({.space = link.space, .index = known.mapped().bridge}, known.mapped().addresses);
}

/// All or none; the bridge is in `guests` as long as it has members.
Result<void> SteerProgram::join(const GuestLink& bridge, const std::vector<IpAddress>& addresses) {
  const SteerLink key = key_of(bridge);
  const SteerGuest value{.address = {}, .steered = 1, .bridge = 1};
  bool done = bpf_map_update_elem(guests_, &key, &value, BPF_ANY) == 0;
  int error = errno;
  for (const IpAddress& address : addresses) {
    joined_.emplace(bridge, address);
    const SteerMember member{.bridge = key, .address = to_bpf_address(address)};
    const __u8 one = 1;
    if (!done || bpf_map_update_elem(members_, &member, &one, BPF_ANY) == 0) continue;
    error = errno;
    done = false;
  }
  if (done) return {};
  leave(bridge, addresses);
  return object_->refused("map of the guests behind bridges", error);
}

void SteerProgram::leave(const GuestLink& bridge, const std::vector<IpAddress>& addresses) {
  if (bridge.index == 0) return;
  const SteerLink key = key_of(bridge);
  for (const IpAddress& address : addresses) {
    const auto joined = joined_.find({bridge, address});
    if (joined == joined_.end()) continue;
    joined_.erase(joined);
    const SteerMember member{.bridge = key, .address = to_bpf_address(address)};
    if (!joined_.contains({bridge, address})) bpf_map_delete_elem(members_, &member);
  }
  const auto next = joined_.lower_bound({bridge, IpAddress()});
  const bool empty = next == joined_.end() || bridge < next->first;
  if (empty) bpf_map_delete_elem(guests_, &key);
}

Result<SteerProgram::Attachable> SteerProgram::make_attachable(const GuestLink& link) const {
  auto fd = link.space == 0 ? Result<Fd>(Fd(::fcntl(program_, F_DUPFD_CLOEXEC, 0))) : make_entry(link.space);
  if (!fd) return fd.error();
  bpf_prog_info info{};
  __u32 size = sizeof info;
  if (bpf_obj_get_info_by_fd(fd->get(), &info, &size) != 0)
    return object_->refused("program information", errno);
  return Attachable{std::move(*fd), info.id};
}

/// A tail call takes nothing along but the packet, so the space travels in its control block, whose last word
/// other programs on the link may lose by this.
Result<Fd> SteerProgram::make_entry(std::uint32_t space) const {
  constexpr auto kSpaceAt =
      static_cast<__s16>(offsetof(__sk_buff, cb) + kSteerSpaceWord * sizeof(__sk_buff::cb[0]));
  const std::array code = {
      bpf_insn{BPF_ALU | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, static_cast<__s32>(space)},
      bpf_insn{BPF_STX | BPF_MEM | BPF_W, BPF_REG_1, BPF_REG_0, kSpaceAt, 0},
      bpf_insn{BPF_LD | BPF_DW | BPF_IMM, BPF_REG_2, BPF_PSEUDO_MAP_FD, 0, inside_},  // of two words
      bpf_insn{0, 0, 0, 0, 0},
      bpf_insn{BPF_ALU | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, 0},
      bpf_insn{BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_tail_call},
      bpf_insn{BPF_ALU | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, TC_ACT_UNSPEC},
      bpf_insn{BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
  };
  Fd entry(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, kFilterName.data(), "", code.data(), code.size(), nullptr));
  if (!entry) return object_->refused("entry program", errno);
  return entry;
}

bool SteerProgram::attach(const GuestLink& link, const Attachable& program) {
  bpf_link_create_opts options{};
  options.sz = sizeof options;
  options.flags = kBefore;
  Fd attached(bpf_link_create(program.fd.get(), link.index, kTcxIngress, &options));
  if (!attached) return false;
  attached_[link] = std::move(attached);
  return true;
}

bool SteerProgram::is_attached(const GuestLink& link) const {
  const auto known = attached_.find(link);
  if (known == attached_.end()) return false;
  bpf_link_info info{};
  __u32 size = sizeof info;
  // The interface is where XDP has its own; 0 when it is gone.
  return bpf_obj_get_info_by_fd(known->second.get(), &info, &size) == 0 &&
         info.xdp.ifindex == static_cast<__u32>(link.index);
}

Result<void> SteerProgram::own(std::uint32_t space, const std::vector<IpAddress>& addresses) {
  for (auto address = addresses.begin(); address != addresses.end(); ++address) {
    if (auto done = own(space, *address); !done) {
      disown(space, {addresses.begin(), address});
      return done;
    }
  }
  return {};
}

void SteerProgram::disown(std::uint32_t space, const std::vector<IpAddress>& addresses) {
  for (const IpAddress& address : addresses) disown(space, address);
}

Result<void> SteerProgram::own(std::uint32_t space, const IpAddress& address) {
  const SteerOwner key{.address = to_bpf_address(address), .space = space};
  const __u8 value = 1;
  if (!links_.contains({space, address}) && bpf_map_update_elem(owners_, &key, &value, BPF_ANY) != 0) {
    return object_->refused("map of the guests' addresses", errno);
  }
  ++links_[{space, address}];
  return {};
}

void SteerProgram::disown(std::uint32_t space, const IpAddress& address) {
  const auto known = links_.find({space, address});
  if (known == links_.end() || --known->second > 0) return;
  const SteerOwner key{.address = to_bpf_address(address), .space = space};
  bpf_map_delete_elem(owners_, &key);
  links_.erase(known);
}

std::uint64_t SteerProgram::forged_packets() const {
  const __u32 first = 0;
  __u64 count = 0;
  return bpf_map_lookup_elem(forged_, &first, &count) == 0 ? count : 0;
}

}  // namespace portway
