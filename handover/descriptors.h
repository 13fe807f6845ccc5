// The descriptors of this process, and what each of them is.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace portway {

enum class DescriptorKind : std::uint8_t {
  kConnection,  // a stream socket, connected or not, that is not marked (base/ends_with_process.h)
  kListener,    // one that listens
  kPipe,
  kBpf,  // a program, a map, or what attaches one
  kOther,
};
DescriptorKind kind_of(int fd);

struct Descriptor {
  int fd = -1;
  DescriptorKind kind = DescriptorKind::kOther;
  dev_t device = 0;
  ino_t inode = 0;
};
/// In ascending order. `known`: what an earlier call has returned. The kinds of those that are still the same
/// are not determined again: that takes most of the time, 4 us each.
std::vector<Descriptor> open_descriptors(std::span<const Descriptor> known = {});
/// Of those, what a successor can use: stream sockets, and pipes of which both ends are here. Neither a
/// pipe to another process, as for a log, nor a standard stream is among them. In ascending order.
std::vector<int> descriptors_to_hand_over(std::span<const Descriptor> open);

/// The inode of the network namespace that a socket is in; 0: not known (it takes CAP_NET_ADMIN there).
std::uint64_t netns_of_socket(int fd);
/// Those that have a name: the inodes of all that are mounted somewhere, in ascending order.
std::vector<std::uint64_t> named_namespaces();
/// Those of all processes that can be seen.
std::vector<std::uint64_t> namespaces_of_processes();

}  // namespace portway
