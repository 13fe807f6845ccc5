#include "tests/support/tcx.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <net/if.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace portway::test {
namespace {

// Debian 12's headers do not know them.
constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);  // BPF_TCX_INGRESS
constexpr __u32 kBefore = 1U << 3;                              // BPF_F_BEFORE
constexpr std::size_t kProgramsMax = 64;                        // BPF_MPROG_MAX

void check(bool good, const char* what) {
  if (!good) throw std::system_error(errno, std::generic_category(), what);
}

int index_of(const std::string& link) {
  const auto index = static_cast<int>(::if_nametoindex(link.c_str()));
  check(index != 0, link.c_str());
  return index;
}

}  // namespace

std::vector<std::string> tcx_programs(const NetworkNamespace& network, const std::string& link) {
  std::array<__u32, kProgramsMax> ids{};
  __u32 count = ids.size();
  network.run([&] {
    __u32 flags = 0;
    check(bpf_prog_query(index_of(link), kTcxIngress, 0, &flags, ids.data(), &count) == 0, "bpf_prog_query");
  });
  std::vector<std::string> names;
  for (__u32 i = 0; i < count; ++i) {
    const Fd program(bpf_prog_get_fd_by_id(ids.at(i)));
    if (!program) continue;  // it has ended meanwhile
    bpf_prog_info info{};
    __u32 size = sizeof info;
    check(bpf_obj_get_info_by_fd(program.get(), &info, &size) == 0, "bpf_obj_get_info_by_fd");
    names.emplace_back(info.name);
  }
  return names;
}

ForeignTcx::ForeignTcx(const NetworkNamespace& network, const std::string& link, Place place)
    : count_(bpf_map_create(BPF_MAP_TYPE_ARRAY, "count", sizeof(__u32), sizeof(__u64), 1, nullptr)) {
  check(static_cast<bool>(count_), "bpf_map_create");
  // r0 = &count[0]; if (r0 != 0) *r0 += 1; return TCX_NEXT;
  const std::array<bpf_insn, 11> code{{
      {BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -4, 0},
      {BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0},
      {BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -4},
      {BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, count_.get()},
      {},
      {BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem},
      {BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 2, 0},
      {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_1, 0, 0, 1},
      {BPF_STX | BPF_ATOMIC | BPF_DW, BPF_REG_0, BPF_REG_1, 0, BPF_ADD},
      {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, -1},
      {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
  }};
  program_.reset(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "foreign", "GPL", code.data(), code.size(), nullptr));
  check(static_cast<bool>(program_), "bpf_prog_load");
  network.run([&] {
    bpf_link_create_opts options{};
    options.sz = sizeof options;
    options.flags = place == Place::kFirst ? kBefore : 0;
    attached_.reset(bpf_link_create(program_.get(), index_of(link), kTcxIngress, &options));
    check(is_attached() || errno == ERANGE, "bpf_link_create");
  });
}

std::uint64_t ForeignTcx::packets() const {
  const __u32 first = 0;
  __u64 packets = 0;
  check(bpf_map_lookup_elem(count_.get(), &first, &packets) == 0, "bpf_map_lookup_elem");
  return packets;
}

std::vector<ForeignTcx> take_all_tcx(const NetworkNamespace& network, const std::string& link) {
  std::vector<ForeignTcx> all;
  do all.emplace_back(network, link);
  while (all.back().is_attached());
  return all;
}

}  // namespace portway::test
